"""What the devices of a run can't do is refused before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from app import experiment
from app.config.resolution import resolve
from app.presets import PRESETS
from common.errors import UserError
from tests.support import mirrored


def check(replicas: int, **flags: Any) -> None:
    given = {'mode': 'train', 'dataset': 'bundled', 'preset': None, 'image_size': 32, **flags}
    experiment.check_devices(resolve(given, PRESETS), mirrored(replicas))


@pytest.mark.parametrize(
    ('replicas', 'flags', 'message'),
    [
        (
            3,
            {'eval_batch_size': 64},
            '--eval_batch_size .* of the number of replicas, 3; .* Try 63',
        ),
        (
            4,
            {'method': 'moco_v2', 'norm_parts': 2, 'train_batch_size': 64, 'memory_size': 128},
            '--norm_parts must be a multiple of the number of replicas, 4; found 2. Try 4',
        ),
        (2, {'jit_compile': True}, '--jit_compile works on one device or a TPU; found 2 devices'),
    ],
    ids=str,
)
def test_several_devices_limit_the_settings(
    replicas: int, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(replicas, **flags)
    check(1, **flags)


def test_a_tpu_has_no_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.distribution, 'is_tpu', lambda strategy: True)
    with pytest.raises(UserError, match=r'float16 works on GPUs and CPUs; found a TPU'):
        check(1, mixed_precision='float16')
    check(1, mixed_precision='bfloat16')
