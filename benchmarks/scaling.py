"""Estimates the cost of pretraining on many devices from the training step's graph.

    python -m benchmarks.scaling --resnet_depth=50 --devices=32 --train_batch_size=4096

The graph is built without weights and not run, so a laptop suffices for the largest network.
`python -m benchmarks.scaling_checks` compares the estimate with measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from unittest import mock

from common.legacy_keras import choose_keras_2

choose_keras_2()

import tensorflow as tf

from tf2 import memory_estimate
from tf2.config import LearningConfig, ModelConfig
from tf2.memory_estimate import FLOAT
from tf2.methods.simclr import SimCLR
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.layers import BatchNorm

VIEWS = 2
IMAGES_PER_EPOCH = 1_281_167  # training images of ImageNet (ILSVRC 2012)
EPOCHS = 100
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Network:
    """The network and its images.

    Attributes:
        model: architecture.
        image_size: height and width in pixels.
        precision: 'float32' or 'bfloat16'.
    """

    model: ModelConfig
    image_size: int
    precision: str


@dataclasses.dataclass(frozen=True)
class Graph:
    """The graph of one training step of one replica.

    Attributes:
        model: built; its variables have no values.
        forward: operations up to the loss.
        backward: operations of the gradients.
    """

    model: SimCLRModel
    forward: Sequence[tf.Operation]
    backward: Sequence[tf.Operation]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of pretraining one network; "per image" means both of its views.

    Attributes:
        forward_flops: floating-point operations per image, in convolutions and matrix products.
        backward_flops: the same for the gradients.
        parameters: number of trained parameters: encoder, projection head and online classifier.
        norms: number of batch normalization layers.
        norm_channels: total number of their channels.
        kept_bytes: per image, activations kept for the backward pass.
        copied_bytes: kept for the backward pass at any batch size: bfloat16 copies of kernels.
    """

    forward_flops: int
    backward_flops: int
    parameters: int
    norms: int
    norm_channels: int
    kept_bytes: int
    copied_bytes: int


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
        count: number of replicas.
        peak_flops: FLOP/s of one device, as published by its vendor.
        utilization: share of the peak that a step is assumed to reach.
        bandwidth: bytes per second from one device to the next.
        memory: bytes of one device.
    """

    count: int
    peak_flops: float
    utilization: float
    bandwidth: float
    memory: float


# --- arithmetic


def flops(operation: tf.Operation) -> int:
    """Floating-point operations of a convolution, a matrix product or their gradients; else 0.

    A multiply-add counts as two.
    """
    inputs, kind = operation.inputs, operation.type
    if kind == 'MatMul':
        inner = inputs[0].shape[0 if operation.get_attr('transpose_a') else 1]
        return 2 * operation.outputs[0].shape.num_elements() * inner
    # Each output of a convolution, or its gradient, meets one filter [h, w, channels].
    if kind == 'Conv2D':
        kernel, images = inputs[1].shape, operation.outputs[0].shape
    elif kind == 'Conv2DBackpropInput':
        kernel, images = inputs[1].shape, inputs[2].shape
    elif kind == 'Conv2DBackpropFilter':
        kernel, images = operation.outputs[0].shape, inputs[2].shape
    else:
        return 0
    return 2 * images.num_elements() * kernel[:-1].num_elements()


def kept_bytes(graph: Graph) -> int:
    """Bytes of forward tensors that the backward pass reads, without the weights."""
    forward = set(graph.forward)
    kept = {
        # Only cuDNN's scratch space has no static shape.
        tensor.name: (tensor.shape.num_elements() or 0) * tensor.dtype.size
        for operation in graph.backward
        for tensor in operation.inputs
        if tensor.op in forward and tensor.op.type != 'ReadVariableOp'
    }
    return sum(kept.values())


def all_reduce_seconds(size: float, devices: Devices) -> float:
    """Time of a ring all-reduce of `size` bytes: each of R devices sends 2 (R - 1) / R of them."""
    return 2 * (devices.count - 1) / devices.count * size / devices.bandwidth


def gathered_bytes(batch: int, width: int) -> int:
    """NT-Xent's gathered float32 projections of the global batch's views, on each replica."""
    return VIEWS * batch * width * FLOAT


def statistics_bytes(costs: Costs) -> int:
    """All-reduced for global batch normalization: two vectors per layer forward, two backward."""
    return 2 * 2 * costs.norm_channels * FLOAT


def fixed_bytes(costs: Costs, slots: int) -> int:
    """Bytes on each device for weights, gradients, `slots` of the optimizer and copies."""
    return (2 + slots) * costs.parameters * FLOAT + costs.copied_bytes


def contrast_flops(batch: int, width: int) -> int:
    """FLOPs of NT-Xent per image: four products with all rows, and two for the gradient of each."""
    return (4 + 8) * 2 * batch * width


# --- the graph


def trace(network: Network, batch: int, *, global_bn: bool = True) -> Graph:
    """The graph of one step.

    Args:
        network: what is trained.
        batch: number of images on the replica.
        global_bn: whether to build batch normalization as for several replicas, without their
            communication.
    """
    size = network.image_size
    # A single replica would use the fused kernel.
    across = mock.patch.object(BatchNorm, '_across_replicas', return_value=global_bn)
    with tf.Graph().as_default() as graph, across:
        model = build_model(
            SimCLRModel(
                network.model, size, CLASSES, precision=network.precision, detach_classifier=True
            )
        )
        method = SimCLR(model, LearningConfig())
        built = len(graph.get_operations())
        views = [tf.compat.v1.placeholder(tf.float32, [batch, size, size, 3]) for _ in range(VIEWS)]
        labels = tf.compat.v1.placeholder(tf.int32, [batch])
        with tf.GradientTape() as tape:
            outputs = method.forward(views, training=True)
            loss = method.loss(outputs, None, {'label': labels})['loss']
        lost = len(graph.get_operations())
        tape.gradient(loss, model.trainable_variables)
        operations = graph.get_operations()
    # In a v1 graph, Keras converts the model's class to its v1 base class. Making a model outside
    # of the graph reverts that, for the models that existed before.
    SimCLRModel(network.model, size, None)
    return Graph(model, operations[built:lost], operations[lost:])


def costs(network: Network, *, global_bn: bool = True) -> Costs:
    """Counts operations in the graph of two images; memory is from `tf2.memory_estimate`."""
    two = trace(network, 2, global_bn=global_bn)
    held = memory_estimate.Network(
        network.model, network.image_size, CLASSES, network.precision, global_bn
    ).whole()
    norms = [layer for layer in two.model.submodules if isinstance(layer, BatchNorm)]

    def per_image(operations: Iterable[tf.Operation]) -> int:
        return sum(map(flops, operations)) // 2

    return Costs(
        forward_flops=per_image(two.forward),
        backward_flops=per_image(two.backward),
        parameters=held.parameters,
        norms=len(norms),
        norm_channels=sum(norm.gamma.shape[0] for norm in norms),
        kept_bytes=VIEWS * held.kept,
        copied_bytes=0 if network.precision == 'float32' else 2 * held.kernels,
    )


# --- the estimate


def estimate(
    network: Network, batch: int, devices: Devices, *, global_bn: bool, slots: int
) -> list[tuple[str, str]]:
    """The rows of the estimate: pairs of a description and a figure with its unit."""
    found, width = costs(network, global_bn=global_bn), network.model.proj_out_dim
    share = batch // devices.count
    image = found.forward_flops + found.backward_flops + contrast_flops(batch, width)
    peak = image * share / devices.peak_flops
    gradients, statistics = found.parameters * FLOAT, statistics_bytes(found) * global_bn
    gathered = gathered_bytes(batch, width)
    communication = all_reduce_seconds(gradients + statistics + 2 * gathered, devices)
    seconds = peak / devices.utilization + communication
    fixed, kept = fixed_bytes(found, slots), share * found.kept_bytes
    fitting = int(max(0, devices.memory - fixed) // found.kept_bytes)
    return [
        ('parameters', f'{found.parameters / 1e6:.1f} M'),
        ('FLOPs per image, two views: forward', f'{found.forward_flops / 1e9:.1f} G'),
        ('FLOPs per image, two views: forward and backward', f'{image / 1e9:.1f} G'),
        ('… of which NT-Xent', f'{contrast_flops(batch, width) / 1e9:.3f} G'),
        (f'FLOPs per step of {batch} images', f'{batch * image / 1e12:.1f} T'),
        (f'all-reduced per step: gradients of {FLOAT} bytes', f'{gradients / 1e6:.1f} MB'),
        (f'all-reduced per step: {found.norms} batch norms', f'{statistics / 1e6:.2f} MB'),
        ('gathered per step, on each device', f'{gathered / 1e6:.2f} MB'),
        ('images per device', f'{share}'),
        (f'memory: weights, gradients, {slots} slot(s), copies', f'{fixed / 1e9:.2f} GB'),
        ('memory: kept for backward, per image', f'{found.kept_bytes / 1e6:.1f} MB'),
        ('memory: kept for backward, per device', f'{kept / 1e9:.2f} GB'),
        ('memory: total, of a device', _of(fixed + kept, devices.memory)),
        ('images that fit on a device', f'{fitting}'),
        ('step at peak, without communication', f'{peak:.3f} s'),
        (f'step at {devices.utilization:.0%} of peak, with communication', f'{seconds:.3f} s'),
        ('… of which communication', f'{communication * 1e3:.1f} ms'),
        ('input needed, all devices', f'{batch / seconds:,.0f} images/s'),
        (
            f'{EPOCHS} epochs of ImageNet',
            f'{EPOCHS * IMAGES_PER_EPOCH / batch * seconds / 3600:.1f} h',
        ),
    ]


def _of(part: float, whole: float) -> str:
    return f'{part / 1e9:.1f} of {whole / 1e9:.1f} GB'


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; defaults are ResNet-50 on a TPU v3-32, see docs/scaling.md."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('--resnet_depth', type=int, default=50, help='depth')
    add('--width_multiplier', type=float, default=1.0, help='width')
    add('--sk_ratio', type=float, default=0.0, help='selective kernels')
    add('--image_size', type=int, default=224, help='pixels')
    add('--mixed_precision', default='bfloat16', choices=('float32', 'bfloat16'), help='precision')
    add('--local_bn', action='store_true', help='batch statistics per device')
    add('--train_batch_size', type=int, default=4096, help='images per step, on all devices')
    add('--optimizer_slots', type=int, default=1, help='1: lars, momentum; 2: adam, lamb')
    add('--devices', type=int, default=32, help='replicas')
    add('--peak_tflops', type=float, default=61.5, help='of one device')
    add('--utilization', type=float, default=0.15, help='share of the peak')
    add('--bandwidth', type=float, default=82.0, help='GB/s from one device to the next')
    add('--memory', type=float, default=17.2, help='GB of one device')
    options = parser.parse_args(argv)
    if options.train_batch_size % options.devices:
        parser.error('--train_batch_size must be a multiple of --devices')
    return options


def main() -> None:
    """Prints the estimate."""
    given = arguments()
    model = ModelConfig(
        resnet_depth=given.resnet_depth,
        width_multiplier=given.width_multiplier,
        sk_ratio=given.sk_ratio,
    )
    devices = Devices(
        given.devices,
        given.peak_tflops * 1e12,
        given.utilization,
        given.bandwidth * 1e9,
        given.memory * 1e9,
    )
    rows = estimate(
        Network(model, given.image_size, given.mixed_precision),
        given.train_batch_size,
        devices,
        global_bn=not given.local_bn,
        slots=given.optimizer_slots,
    )
    for what, figure in rows:
        print(f'{what:52} {figure:>20}')


if __name__ == '__main__':
    main()
