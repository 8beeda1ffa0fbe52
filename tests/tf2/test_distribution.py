"""Which strategy is chosen, and how workers agree."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import mirrored
from tf2 import distribution
from tf2.config import DeviceConfig


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Fakes devices: kind -> names; logical CPUs replace them."""
    there: dict[str, list[str]] = {'CPU': ['/cpu:0', '/cpu:1'], 'GPU': [], 'TPU': []}

    def names(kind: str) -> list[tf.config.LogicalDevice]:
        return [tf.config.LogicalDevice(name, kind) for name in there[kind]]

    monkeypatch.setattr(tf.config, 'list_logical_devices', names)
    monkeypatch.setattr(tf.config, 'list_physical_devices', names)
    return there


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Records the strategies that were asked for, instead of making them."""
    asked: list[tuple] = []

    def note(name: str) -> Callable[..., str]:
        return lambda *arguments: asked.append((name, *arguments)) or name

    for name in ('OneDeviceStrategy', 'MirroredStrategy'):
        monkeypatch.setattr(tf.distribute, name, note(name))
    monkeypatch.setattr(distribution, '_tpu_strategy', note('tpu'))
    monkeypatch.setattr(distribution, '_multi_worker_strategy', note('multi_worker'))
    monkeypatch.setattr(distribution, 'split_device', note('split'))
    return asked


@pytest.mark.parametrize(
    ('gpus', 'options', 'expected'),
    [
        (0, {}, ('OneDeviceStrategy', '/cpu:0')),
        (1, {}, ('OneDeviceStrategy', '/gpu:0')),
        (2, {}, ('MirroredStrategy', ['/gpu:0', '/gpu:1'], None)),
        (2, {'strategy': 'one_device'}, ('OneDeviceStrategy', '/gpu:0')),
        (2, {'strategy': 'multi_worker'}, ('multi_worker', 120)),
    ],
)
def test_the_strategy_fits_the_devices_or_is_the_one_named(
    devices: dict, made: list, gpus: int, options: dict, expected: tuple
) -> None:
    devices['GPU'] = [f'/gpu:{i}' for i in range(gpus)]
    distribution.build_strategy(DeviceConfig(**options))
    assert made == [expected]


@pytest.mark.parametrize('options', [{'logical_devices': 2}, {'strategy': 'mirrored'}])
def test_parts_of_a_cpu_are_replicas_if_asked_for(devices: dict, made: list, options: dict) -> None:
    distribution.build_strategy(DeviceConfig(**options))
    name, names, reduction = made[-1]
    assert (name, names) == ('MirroredStrategy', ['/cpu:0', '/cpu:1'])
    assert isinstance(reduction, tf.distribute.ReductionToOneDevice)
    assert made[:-1] == ([('split', 2)] if 'logical_devices' in options else [])


@pytest.mark.parametrize(
    ('options', 'attached', 'reason'),
    [
        ({}, 0, None),
        ({}, 1, 'a TPU is attached'),
        ({'tpu_name': 'a'}, 0, '--tpu_name'),
        ({'master': 'grpc://a'}, 0, '--master'),
        ({'use_tpu': True}, 1, '--use_tpu'),
        ({'strategy': 'tpu'}, 0, '--strategy=tpu'),
        ({'use_tpu': False, 'tpu_name': 'a'}, 1, None),
        ({'strategy': 'one_device', 'tpu_name': 'a'}, 1, None),
    ],
)
def test_a_tpu_is_used_if_it_is_there_unless_told_otherwise(
    devices: dict, monkeypatch: pytest.MonkeyPatch, options: dict, attached: int, reason: str | None
) -> None:
    monkeypatch.setattr(distribution, '_tpu_strategy', lambda config: 'on a TPU')
    devices['TPU'] = ['/tpu:0'] * attached
    alone, config = mirrored(1), DeviceConfig(**options)
    assert (distribution.build_strategy(config) == 'on a TPU') is (reason is not None)
    shown = distribution.describe(config, alone)
    assert shown.startswith('Strategy ')
    if reason:
        assert shown == f'Strategy tpu with 1 replica ({reason})'


def test_contradictory_flags_are_refused() -> None:
    with pytest.raises(UserError, match='--use_tpu needs --strategy=auto; found --strategy=tp'):
        DeviceConfig(use_tpu=True, strategy='tpu')


def test_several_gpus_are_not_split(devices: dict) -> None:
    devices['GPU'] = ['/gpu:0', '/gpu:1']
    with pytest.raises(UserError, match=r'a CPU or one GPU.*; found 2 GPUs'):
        distribution.split_device(2)


def test_a_device_in_use_is_not_split_otherwise() -> None:
    """Tests run on four logical CPUs, which an earlier run may have made."""
    tf.config.list_logical_devices()
    distribution.split_device(4)
    with pytest.raises(UserError, match=r'--logical_devices=2 must .*; found it'):
        distribution.split_device(2)


@pytest.mark.parametrize('cluster', [None, '{', '[]', '{"cluster": {}}'])
def test_unnamed_workers_are_an_error(monkeypatch: pytest.MonkeyPatch, cluster: str | None) -> None:
    for name in [name for name in os.environ if name.startswith(('TF_CONFIG', 'SLURM'))]:
        monkeypatch.delenv(name)
    if cluster is not None:
        monkeypatch.setenv('TF_CONFIG', cluster)
    with pytest.raises(UserError, match=r'expects TF_CONFIG, JSON such as .*; found'):
        distribution.build_strategy(DeviceConfig(strategy='multi_worker'))


def test_a_missing_tpu_is_an_error(devices: dict) -> None:
    with pytest.raises(UserError, match='expects an attached TPU, --tpu_name or --master; found'):
        distribution.build_strategy(DeviceConfig(use_tpu=True))


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
        distribution.build_strategy(DeviceConfig(tpu_name='pod'))


def test_a_step_of_slurm_names_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('TF_CONFIG', raising=False)
    step = {
        'SLURM_STEP_NUM_TASKS': '3',
        'SLURM_STEP_NODELIST': 'n[1-2]',
        'SLURM_STEP_TASKS_PER_NODE': '2,1',
        'SLURM_PROCID': '2',
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    resolver, cluster = distribution._cluster()
    assert cluster == {'worker': ['n1:8888', 'n1:8889', 'n2:8888']}
    assert (resolver.task_type, resolver.task_id) == ('worker', 2)


@pytest.mark.parametrize(('size', 'advice'), [(7, 6), (1, 2), (3, 2)])
def test_batches_split_evenly_or_are_refused(size: int, advice: int) -> None:
    strategy = mirrored(2)
    distribution.check_divisible(strategy, train_batch_size=4, eval_batch_size=2)
    words = f'--eval_batch_size must be a multiple .* replicas, 2; found {size}. Try {advice}.'
    with pytest.raises(UserError, match=words):
        distribution.check_divisible(strategy, train_batch_size=4, eval_batch_size=size)


@pytest.mark.parametrize('replicas', [1, 2])
def test_accelerators_are_recognized(replicas: int) -> None:
    assert not distribution.has_accelerators(mirrored(replicas))
    # A strategy may be made for a device that is not there.
    assert distribution.has_accelerators(tf.distribute.OneDeviceStrategy('/gpu:0'))


@pytest.mark.parametrize('kept', [True, False])
def test_a_lost_worker_gives_one_line(
    kept: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any code that notices it. With a single process, the error stays as it is."""
    error = tf.errors.UnavailableError(None, None, 'Graph execution error:\nSocket\nclosed')
    if kept:
        (tmp_path / 'ckpt-4.index').touch()
    with pytest.raises(tf.errors.UnavailableError), distribution.together(mirrored(1), tmp_path):
        raise error
    monkeypatch.setattr(distribution, 'spans_workers', lambda strategy: True)
    with pytest.raises(UserError) as refused, distribution.together(mirrored(1), str(tmp_path)):
        raise error
    last = f'{tmp_path}/ckpt-4' if kept else 'none was written yet'
    assert 'another one is gone: Socket closed. Stop all of them' in str(refused.value)
    assert str(refused.value).endswith(f'The last checkpoint: {last}.')


def test_one_cpu_gets_the_batches_as_they_are() -> None:
    strategy = tf.distribute.OneDeviceStrategy('/cpu:0')
    asked = []

    def batches(worker: int, workers: int) -> tf.data.Dataset:
        asked.append((worker, workers))
        return tf.data.Dataset.range(6).batch(2)

    dataset = distribution.distribute(strategy, batches)
    assert [batch.tolist() for batch in dataset.as_numpy_iterator()] == [[0, 1], [2, 3], [4, 5]]
    assert asked == [(0, 1)]
    # A tuned iterator may wait for its tuning thread when it ends, up to a minute.
    assert dataset.options().autotune.enabled is False
