"""Set-up that must happen before TensorFlow starts: Keras 2, quiet logs, four logical CPUs.

Tests compute in float32 unless they choose otherwise, also on machines where runs would not, and
what fits into memory is judged as on a host of 64 GiB.
"""

from __future__ import annotations

import gc
import os
import pathlib
from collections.abc import Iterator

from common.legacy_keras import choose_keras_2

choose_keras_2()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import pytest
import tensorflow as tf

REPLICAS = 4
# Files that take longest, in the order in which they start: each is run by one process, and one
# that started last would keep a single processor busy while the others have nothing to do.
LONGEST = (
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

_cpu = tf.config.list_physical_devices('CPU')[0]
tf.config.set_logical_device_configuration(
    _cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(REPLICAS)]
)

from app import capacity
from tests.support import shallow_resnet_18
from tf2 import precision

precision.CPU_INFO = pathlib.Path('no such file')
capacity.host_memory = lambda: 64 * 2**30

# Tracing makes many objects that live on: looking through all of TensorFlow's again and again for
# garbage took a sixth of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = pathlib.Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))  # else as they were


@pytest.fixture(scope='module')
def shallow() -> Iterator[None]:
    """A ResNet-18 of one block in each group, for the tests of a file."""
    with shallow_resnet_18():
        yield
