"""Layers with kernels, which weight decay applies to."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

# `MultiHeadAttention` is made of EinsumDense layers.
_KERNEL_LAYERS = (
    tf.keras.layers.Conv2D,
    tf.keras.layers.DepthwiseConv2D,
    tf.keras.layers.Dense,
    tf.keras.layers.EinsumDense,
)


def kernel_layers(module: tf.Module) -> Iterator[tf.keras.layers.Layer]:
    """Every convolution and dense layer in `module`, including itself.

    Args:
        module: a layer, model or other tf.Module.
    """
    for layer in (module, *module.submodules):
        if isinstance(layer, _KERNEL_LAYERS):
            yield layer


def kernel_of(layer: tf.keras.layers.Layer) -> tf.Variable:
    """The kernel of one of `kernel_layers`.

    Raises:
        ValueError: when the layer has no kernel yet because it was never called.
    """
    if not layer.built:
        raise ValueError(
            f'Expected built layers; {layer.name} has no kernel: call the model first.'
        )
    if isinstance(layer, tf.keras.layers.DepthwiseConv2D):
        return layer.depthwise_kernel
    return layer.kernel
