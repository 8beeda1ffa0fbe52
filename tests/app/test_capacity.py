"""Runs that can't fit into memory are refused before anything is built, with numbers and advice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

import run
from app import capacity
from app.capacity import Devices
from app.config.resolution import resolve
from app.config.schema import Config
from app.presets import PRESETS
from common.errors import UserError

GIB = 2**30
HOST = Devices('CPU', 24 * GIB)

# Kind: a flag asks for more memory than there is -> the flag that the advice names.
BEYOND = [
    ({'width_multiplier': 1000}, 'width_multiplier'),
    ({'width_multiplier': 64, 'optimizer': 'adam', 'resnet_depth': 200}, 'width_multiplier'),
    ({'num_proj_layers': 1000, 'width_multiplier': 4}, 'num_proj_layers'),
    ({'proj_out_dim': 2**31 - 1}, 'proj_out_dim'),
    ({'memory_size': 2**30, 'train_batch_size': 2**10}, 'memory_size'),
    ({'train_batch_size': 1_000_000_000}, 'train_batch_size'),
    ({'eval_batch_size': 1_000_000_000, 'mode': 'train_then_eval'}, 'eval_batch_size'),
    ({'image_size': 1_000_000}, 'image_size'),
    ({'num_proj_layers': 1000, 'width_multiplier': 4, 'ft_proj_selector': 5}, 'num_proj_layers'),
]


def config_of(given: Mapping[str, Any]) -> Config:
    return resolve({'mode': 'train', 'model_dir': 'm', **given}, PRESETS)


@pytest.mark.parametrize(('given', 'flag'), BEYOND, ids=str)
def test_a_run_that_does_not_fit_is_refused_and_the_advised_one_fits(
    given: dict[str, Any], flag: str
) -> None:
    with pytest.raises(UserError) as refusal:
        capacity.check_fits(config_of(given), HOST)
    said = str(refusal.value)
    assert re.match(r'This run must fit into memory, 24\.0 GB of this CPU; it needs about ', said)
    assert '\n' not in said
    name, value = re.search(r'the largest --(\w+) that fits is ([\d.]+)\.$', said).groups()
    assert name == flag
    advised = {**given, name: type(given[name])(float(value))}
    capacity.check_fits(config_of(advised), HOST)


def test_parts_are_listed_by_size() -> None:
    config = config_of({'width_multiplier': 64, 'optimizer': 'adam', 'preset': 'cifar10'})
    with pytest.raises(UserError, match=r': adam [\d.]+ GB, weights .* GB, gradients .* GB, activ'):
        capacity.check_fits(config, HOST)


@pytest.mark.parametrize('given', [given for given, _ in BEYOND][::3], ids=str)
def test_memory_is_checked_before_tensorflow_is_imported(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(capacity, 'has_accelerators', lambda: False)
    monkeypatch.setattr(run, '_gc_disabled_during_import', None)  # around the import of TensorFlow
    flags = [f'--{name}={value}' for name, value in given.items()]
    assert run.main(['run.py', '--model_dir=m', *flags]) == 2
    assert 'it needs about' in capsys.readouterr().err


@pytest.mark.parametrize(
    'preset',
    [n for n, p in PRESETS.items() if 'imagenet' not in str(p.flags) and n != 'own_images'],
)
def test_presets_for_small_images_fit_on_a_laptop(preset: str) -> None:
    distills = PRESETS[preset].flags.get('train_mode') == 'distill'
    given = {'preset': preset, **({'teacher': 'x'} if distills else {})}
    capacity.check_fits(config_of(given), Devices('CPU', 8 * GIB))


@pytest.mark.parametrize(
    ('preset', 'kind', 'gib', 'replicas'),
    [
        ('own_images', 'GPU', 16, 1),
        ('imagenet_v1', 'GPU', 80, 8),
        ('imagenet_v2', 'GPU', 16, 64),
        ('finetune_1pct', 'GPU', 80, 4),
        ('linear_eval', 'GPU', 16, 1),
    ],
)
def test_presets_for_large_images_fit_on_their_intended_devices(
    preset: str, kind: str, gib: int, replicas: int
) -> None:
    capacity.check_fits(config_of({'preset': preset}), Devices(kind, gib * GIB, replicas))


def test_only_inexact_parts_of_the_estimate_have_a_tolerance() -> None:
    config = config_of({'preset': 'cifar10'})
    needed = sum(capacity._run_of(config, HOST, None, 0).training().values())
    capacity.check_fits(config, Devices('CPU', int(needed / 1.19)))
    with pytest.raises(UserError, match='largest --train_batch_size that fits is'):
        capacity.check_fits(config, Devices('CPU', int(needed / 1.21)))
    wide = config_of({'width_multiplier': 256, 'train_batch_size': 2, 'image_size': 8})
    fixed = capacity._run_of(wide, HOST, None, 0).fixed()
    with pytest.raises(UserError, match='--width_multiplier that fits'):
        capacity.check_fits(wide, Devices('CPU', fixed - 1))


def test_a_known_teacher_counts() -> None:
    config = config_of({'preset': 'demo_student', 'teacher': 'x'})
    capacity.check_fits(config, HOST)
    recorded = {'resnet_depth': 200, 'width_multiplier': 64, 'image_size': 28, 'seed': 0}
    with pytest.raises(UserError, match=r': teacher 1\.\d TB'):
        capacity.check_fits(config, HOST, recorded)


@pytest.mark.parametrize(
    ('given', 'checked'),
    [
        ({}, True),
        ({'logical_devices': 4}, True),
        ({'tpu_name': 'a'}, False),
        ({'strategy': 'multi_worker'}, False),
        ({'checkpoint': 'a'}, False),
    ],
)
def test_without_tensorflow_only_runs_on_the_host_are_checked(
    given: dict[str, Any], checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(capacity, 'check_fits', lambda config, devices: asked.append(devices))
    monkeypatch.setattr(capacity, 'has_accelerators', lambda: False)
    config = config_of({'train_mode': 'finetune', 'preset': 'demo_finetune', **given})
    capacity.check_on_host(config)
    assert bool(asked) is checked
    assert [devices.sharing for devices in asked] == [given.get('logical_devices', 1)] * checked
    monkeypatch.setattr(capacity, 'has_accelerators', lambda: True)
    capacity.check_on_host(config)
    assert len(asked) == checked


def test_devices_of_unknown_memory_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, 'gpu_memory', lambda: None)
    assert capacity.devices_of(4, 4, on_gpu=True) is None
    monkeypatch.setattr(capacity, 'gpu_memory', lambda: 8 * GIB)
    assert capacity.devices_of(4, 4, on_gpu=True) == Devices('GPU', 8 * GIB, 4, 1)
    assert capacity.devices_of(4, 2, on_gpu=False).sharing == 2


def test_sizes_have_readable_units() -> None:
    sizes = (0, 1023, 1536, 24 * GIB, 2**70)
    assert [capacity.size_of(size) for size in sizes] == [
        '0 B',
        '1023 B',
        '1.5 KB',
        '24.0 GB',
        '1024.0 EB',
    ]
