"""Set-up that must happen before TensorFlow starts: Keras 2, quiet logs, four logical CPUs.

On every machine, tests compute in float32 unless they choose otherwise, and the memory estimate
assumes a host of 64 GiB. Runs end without a report unless a test asks for it.
"""

from __future__ import annotations

import gc
import os
import pathlib
import signal
from collections.abc import Iterator

from common.legacy_keras import choose_keras_2

choose_keras_2()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# What XLA can compile does not depend on how well LLVM optimizes the result, which took five sixths
# of the time to compile a training step.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import pytest
import tensorflow as tf

REPLICAS = 4
# The slowest files, in the order in which they start. Each runs in one process: if one started
# last, the other processes would be idle while it runs.
SLOWEST = (
    'test_run.py',
    'test_faults.py',
    'app/test_pipeline.py',
    'tf2/models/test_encoder.py',
    'test_workers.py',
    'tf2/test_trajectories.py',
    'app/test_report.py',
    'hub_export/test_module.py',
    'hub_export/test_fresh_process.py',
)

# Under nohup SIGHUP is ignored, and in the background of a shell SIGINT. Tests send both, also to
# processes that they start, which inherit this.
for _number, _default in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _default)

_cpu = tf.config.list_physical_devices('CPU')[0]
tf.config.set_logical_device_configuration(
    _cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(REPLICAS)]
)

from app import capacity
from tests.support import (
    bare_runs,
    labels_read_once,
    plain_networks,
    run_eagerly,
    shallow_resnet_18,
    without_reports,
)
from tf2 import precision

precision.CPU_INFO = pathlib.Path('no such file')
capacity.host_memory = lambda: 64 * 2**30
without_reports()

# Tracing makes many long-lived objects. Searching them and TensorFlow's own for garbage again and
# again took a sixth of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = pathlib.Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))  # stable


@pytest.fixture(scope='module')
def shallow() -> Iterator[None]:
    """Reduces ResNet-18 to one block in each group, for all tests of a file."""
    with shallow_resnet_18():
        yield


@pytest.fixture(scope='module')
def plain() -> Iterator[None]:
    """Replaces ResNets by a few convolutions, for all tests of a file."""
    with plain_networks():
        yield


@pytest.fixture(scope='module', name='bare_runs')
def bare() -> Iterator[None]:
    """Runs write neither modules nor sample views, for all tests of a file."""
    with bare_runs():
        yield


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Runs operations one by one, which is faster than tracing a graph for a few steps."""
    with run_eagerly():
        yield


@pytest.fixture(scope='module')
def known_labels() -> Iterator[None]:
    """Labels are read once, for all tests of a file."""
    with labels_read_once():
        yield
