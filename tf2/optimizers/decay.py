"""Which variables decay: chosen by the layer they belong to, never by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

_KERNEL_LAYERS = (
    tf.keras.layers.Conv2D,
    tf.keras.layers.DepthwiseConv2D,
    tf.keras.layers.Dense,
)


def variable_key(variable: tf.Variable) -> str:
    """Identity of a variable, the same for a distributed variable and its copy on a replica.

    Optimizers are handed the copies when they update, but were told about the whole.
    """
    if isinstance(variable, tf.distribute.DistributedValues):
        return variable._unique_id
    for holder in (variable, variable.handle):
        if hasattr(holder, '_distributed_container'):
            return holder._distributed_container()._unique_id
    return variable._unique_id


def decayed_kernels(module: tf.Module) -> list[tf.Variable]:
    """Kernels of every convolution and dense layer in `module`, itself included.

    Args:
        module: a built layer, model or other tf.Module.

    Returns:
        Each kernel once, in the order in which `submodules` lists the layers. Biases and batch
        normalisation parameters are not among them.

    Raises:
        ValueError: when a layer has no kernel yet because it was never called.
    """
    layers = (layer for layer in _walk(module) if isinstance(layer, _KERNEL_LAYERS))
    return _unique(_kernel(layer) for layer in layers)


def not_batch_norm(
    module: tf.Module, variables: Sequence[tf.Variable] | None = None
) -> list[tf.Variable]:
    """Trainable variables that are not batch normalisation parameters: kernels and biases.

    Args:
        module: a built layer, model or other tf.Module, in which batch normalisation is looked for.
        variables: those to choose from; default: `module.trainable_variables`.

    Returns:
        Each variable once, in their order.
    """
    candidates = module.trainable_variables if variables is None else variables
    norms = (layer for layer in _walk(module) if _is_batch_norm(layer))
    excluded = {variable_key(variable) for norm in norms for variable in norm.variables}
    return [v for v in _unique(candidates) if variable_key(v) not in excluded]


def l2_penalty(variables: Iterable[tf.Variable]) -> tf.Tensor:
    """Half the sum of squares of all `variables`, [] float32; 0 when there are none."""
    terms = [tf.nn.l2_loss(tf.cast(variable, tf.float32)) for variable in variables]
    return tf.add_n(terms) if terms else tf.zeros([])


def _walk(module: tf.Module) -> Iterator[tf.Module]:
    yield module
    yield from module.submodules


def _is_batch_norm(module: tf.Module) -> bool:
    # Keras has several unrelated batch normalisation classes; running statistics are what they,
    # and any class of our own, have in common.
    return hasattr(module, 'moving_mean') and hasattr(module, 'moving_variance')


def _kernel(layer: tf.keras.layers.Layer) -> tf.Variable:
    if not layer.built:
        raise ValueError(
            f'Expected built layers; {layer.name} has no kernel: call the model first.'
        )
    if isinstance(layer, tf.keras.layers.DepthwiseConv2D):
        return layer.depthwise_kernel
    return layer.kernel


def _unique(variables: Iterable[tf.Variable]) -> list[tf.Variable]:
    return list({variable_key(variable): variable for variable in variables}.values())
