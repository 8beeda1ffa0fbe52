"""Which strategy is chosen, and what replicas exchange."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from settings import UserError
from tests.support import mirrored, run_on_replicas
from tf2 import distribution
from tf2.config import TrainConfig

BUILT = {
    0: tf.distribute.OneDeviceStrategy,
    1: tf.distribute.OneDeviceStrategy,
    2: tf.distribute.MirroredStrategy,
}


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Kind -> names of the devices that seem to be there; logical CPUs stand for them."""
    there: dict[str, list[str]] = {'GPU': [], 'TPU': []}

    def names(kind: str) -> list[tf.config.LogicalDevice]:
        return [tf.config.LogicalDevice(name, kind) for name in there[kind]]

    monkeypatch.setattr(tf.config, 'list_logical_devices', names)
    monkeypatch.setattr(tf.config, 'list_physical_devices', names)
    return there


@pytest.mark.parametrize('gpus', BUILT)
def test_the_strategy_fits_the_devices(
    devices: dict, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    made = []
    for kind in set(BUILT.values()):
        monkeypatch.setattr(
            tf.distribute, kind.__name__, lambda names, kind=kind: made.append((kind, names))
        )
    devices['GPU'] = [f'/gpu:{i}' for i in range(gpus)]
    distribution.build_strategy(TrainConfig())
    (kind, chosen), *more = made
    assert not more and kind is BUILT[gpus]
    expected = {0: '/cpu:0', 1: '/gpu:0'}
    if gpus < 2:
        assert chosen == expected[gpus]
    else:
        assert [device.name for device in chosen] == devices['GPU']


@pytest.mark.parametrize(
    ('options', 'attached', 'is_tpu'),
    [
        ({}, 0, False),
        ({}, 1, True),
        ({'tpu_name': 'a'}, 0, True),
        ({'master': 'grpc://a'}, 0, True),
        ({'use_tpu': True}, 1, True),
        ({'use_tpu': False, 'tpu_name': 'a'}, 1, False),
    ],
)
def test_a_tpu_is_used_if_it_is_there_unless_told_otherwise(
    devices: dict, monkeypatch: pytest.MonkeyPatch, options: dict, attached: int, is_tpu: bool
) -> None:
    devices['TPU'] = ['/tpu:0'] * attached
    monkeypatch.setattr(distribution, '_tpu_strategy', lambda config: 'on a TPU')
    assert (distribution.build_strategy(TrainConfig(**options)) == 'on a TPU') is is_tpu


def test_a_tpu_that_is_not_there_is_missed(devices: dict) -> None:
    with pytest.raises(UserError, match='expects an attached TPU, --tpu_name or --master; found'):
        distribution.build_strategy(TrainConfig(use_tpu=True))


@pytest.mark.parametrize('error', [ValueError, RuntimeError, OSError, ImportError])
def test_a_tpu_that_cannot_be_reached_is_named(
    devices: dict, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error('no route\nto host')

    monkeypatch.setattr(tf.distribute.cluster_resolver, 'TPUClusterResolver', fail)
    with pytest.raises(
        UserError, match=r'No TPU could be reached at pod \(no route to host\)\. Check'
    ):
        distribution.build_strategy(TrainConfig(tpu_name='pod'))


@pytest.mark.parametrize(('size', 'advice'), [(7, 6), (1, 2), (3, 2)])
def test_batches_split_evenly_or_are_refused(size: int, advice: int) -> None:
    strategy = mirrored(2)
    distribution.check_divisible(strategy, train_batch_size=4, eval_batch_size=2)
    words = f'--eval_batch_size must be a multiple .* replicas, 2; found {size}. Try {advice}.'
    with pytest.raises(UserError, match=words):
        distribution.check_divisible(strategy, train_batch_size=4, eval_batch_size=size)


@pytest.mark.parametrize('replicas', [1, 2, 4])
def test_gather_gives_every_replica_all_rows_and_the_place_of_its_own(replicas: int) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(12, 2)
    shares = np.split(rows, replicas)
    results = run_on_replicas(
        mirrored(replicas),
        lambda local: [tf.convert_to_tensor(part) for part in distribution.all_gather(local)],
        shares,
    )
    for (gathered, offset), own in zip(results, shares, strict=True):
        np.testing.assert_array_equal(gathered, rows)
        np.testing.assert_array_equal(gathered[offset : offset + len(own)], own)


def test_gradients_flow_through_the_gather_to_every_replica() -> None:
    rng = np.random.default_rng(0)
    shares = rng.normal(size=(2, 3, 4)).astype(np.float32)
    weights = rng.normal(size=(2, 6, 4)).astype(np.float32)

    def gradient(local: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(local)
            gathered, _ = distribution.all_gather(local)
            loss = tf.reduce_sum(weight * gathered**2)
        return tape.gradient(loss, local)

    found = run_on_replicas(mirrored(2), gradient, shares, weights)
    for replica in range(2):
        for row in range(3):
            # The row takes part in the losses of both replicas.
            factor = sum(weights[loss][3 * replica + row] for loss in range(2))
            expected = 2 * shares[replica][row] * factor
            np.testing.assert_allclose(found[replica][row], expected, rtol=1e-5)
