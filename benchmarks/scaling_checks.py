"""Compares the estimate of `benchmarks.scaling` with counts and measurements on this machine.

    python -m benchmarks.scaling_checks

Takes about three minutes on two cores. Memory is measured in separate processes, each of which runs
two training steps on small images and reports its peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys
from collections.abc import Sequence
from unittest import mock

from common.legacy_keras import choose_keras_2

choose_keras_2()

import tensorflow as tf

from app.assembly import assemble
from app.config.resolution import from_values
from benchmarks.scaling import CLASSES, VIEWS, Network, costs, flops, gathered_bytes, trace
from tf2 import collectives, distribution, precision
from tf2.config import ModelConfig
from tf2.models.layers import BatchNorm

BATCHES = (16, 32, 48)  # images, to which a line is fitted


@dataclasses.dataclass(frozen=True)
class Measured:
    """A network whose memory is measured."""

    depth: int
    image_size: int
    precision: str
    global_bn: bool

    @property
    def network(self) -> Network:
        """The same for the estimate."""
        return Network(ModelConfig(resnet_depth=self.depth), self.image_size, self.precision)

    def __str__(self) -> str:
        kind = 'global' if self.global_bn else 'local'
        return f'ResNet-{self.depth}, {self.image_size} px, {self.precision}, {kind} BN'


MEASURED = (
    Measured(18, 64, 'float32', False),
    Measured(50, 64, 'float32', False),
    Measured(50, 64, 'bfloat16', False),
    Measured(50, 64, 'bfloat16', True),
)


def profiled_flops(network: Network) -> tuple[int, int]:
    """FLOPs of a step of two images, by the estimate and by TensorFlow's profiler.

    The profiler also counts ReLUs, means, sums of gradients and the like.
    """
    graph = trace(network, 2, global_bn=False)
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options['output'] = 'none'
    everything = tf.compat.v1.profiler.profile(graph.forward[0].graph, options=options)
    own = sum(map(flops, [*graph.forward, *graph.backward]))
    return own, everything.total_float_ops


def gathered_on_replicas(batch: int, width: int) -> int:
    """Bytes of both views' projections on one of two replicas after the gather."""
    devices = tf.config.list_logical_devices('CPU')[:2]
    strategy = tf.distribute.MirroredStrategy(
        [device.name for device in devices], tf.distribute.ReductionToOneDevice()
    )

    def replica() -> list[tf.Tensor]:
        return [collectives.all_gather(tf.ones([batch // 2, width]))[0] for _ in range(VIEWS)]

    gathered = tf.function(lambda: strategy.run(replica), autograph=False)()
    views = [strategy.experimental_local_results(view)[0] for view in gathered]
    return sum(view.numpy().nbytes for view in views)


def peak_bytes(measured: Measured, batch: int) -> int:
    """Peak memory of this process after two training steps, built as runs build them."""
    size = measured.image_size
    config = from_values(
        {
            'resnet_depth': measured.depth,
            'image_size': size,
            'mixed_precision': measured.precision,
            'train_batch_size': batch,
        }
    )
    strategy = distribution.build_strategy(config.devices)
    # The estimate is for accelerators, where no matrix products replace gradients of convolutions.
    products = mock.patch.object(precision, 'uses_filter_products', return_value=False)
    with mock.patch.object(BatchNorm, '_across_replicas', return_value=measured.global_bn):
        with strategy.scope(), products:
            trainer = assemble(config, num_classes=CLASSES, train_examples=50_000).trainer
        step = tf.function(lambda batch: strategy.run(trainer.replica_step, (batch,)))
        views = tf.random.stateless_uniform([VIEWS, batch, size, size, 3], [0, 0])
        for _ in range(2):
            step({'views': tuple(tf.unstack(views)), 'label': tf.zeros([batch], tf.int32)})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured_slope(index: int) -> float:
    """Growth of the peak memory of `MEASURED[index]`, bytes per image, fitted over `BATCHES`."""
    peaks = []
    for batch in BATCHES:
        command = [sys.executable, '-m', __spec__.name, f'--memory={index}', f'--batch={batch}']
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks.append(int(output.split()[-1]))
    return slope(BATCHES, peaks)


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line."""
    middle = sum(places) / len(places)
    return sum((x - middle) * y for x, y in zip(places, values)) / sum(
        (x - middle) ** 2 for x in places
    )


def show(what: str, estimated: float, found: float, unit: str) -> None:
    """Prints one line of the table."""
    print(f'{what:56} {estimated:12.3f} {found:12.3f} {unit:8} {found / estimated:.3f}', flush=True)


def main() -> None:
    """Prints the table: estimate, count or measurement, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--memory', type=int, help='measure only the memory of this network')
    parser.add_argument('--batch', type=int, help='images per step, for --memory')
    given = parser.parse_args()
    if given.memory is not None:
        print(peak_bytes(MEASURED[given.memory], given.batch))
        return
    cpu = tf.config.list_physical_devices('CPU')[0]
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    print(f'{"":56} {"estimate":>12} {"found":>12} {"":8} ratio')
    for depth in (18, 50):
        own, profiled = profiled_flops(Network(ModelConfig(resnet_depth=depth), 224, 'float32'))
        show(f'ResNet-{depth}, 224 px: FLOPs of a step, 2 images', own / 1e9, profiled / 1e9, 'G')
    gathered, found = gathered_bytes(256, 128), gathered_on_replicas(256, 128)
    show('gathered by each of 2 replicas, 256 images', gathered / 1e6, found / 1e6, 'MB')
    for index, measured in enumerate(MEASURED):
        kept = costs(measured.network, global_bn=measured.global_bn).kept_bytes
        show(f'{measured}: memory', kept / 1e6, measured_slope(index) / 1e6, 'MB/image')


if __name__ == '__main__':
    main()
