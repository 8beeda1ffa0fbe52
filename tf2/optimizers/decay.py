"""Which variables decay, chosen by the layer they belong to, never by name."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

from tf2.models.kernels import kernel_layers, kernel_of


def variable_key(variable: tf.Variable) -> str:
    """Identity of a variable, the same for a distributed variable and its copies on replicas.

    Optimizers are configured with the distributed variables, but update the copies.
    """
    if isinstance(variable, tf.distribute.DistributedValues):
        return variable._unique_id
    for holder in (variable, variable.handle):
        if hasattr(holder, '_distributed_container'):
            return holder._distributed_container()._unique_id
    return variable._unique_id


def decayed_kernels(
    modules: Iterable[tf.Module], *, besides: Iterable[tf.Module] = ()
) -> list[tf.Variable]:
    """Kernels of all convolution and dense layers in `modules` that are not frozen.

    Excludes biases, normalization parameters and embeddings.

    Args:
        modules: built layers, models or other tf.Modules.
        besides: parts of them whose kernels to leave out.

    Returns:
        Each kernel once, in the order in which `submodules` lists the layers.

    Raises:
        ValueError: when a layer has no kernel yet because it was never called.
    """
    left_out = {id(layer) for module in besides for layer in kernel_layers(module)}
    return _unique(
        kernel_of(layer)
        for module in modules
        for layer in kernel_layers(module)
        if layer.trainable and id(layer) not in left_out
    )


def kernels_and_biases(modules: Iterable[tf.Module]) -> list[tf.Variable]:
    """Trainable kernels and biases of all convolution and dense layers in `modules`.

    Args:
        modules: built layers, models or other tf.Modules.

    Returns:
        Each variable once, in the order of the modules' `trainable_variables`.
    """
    modules = list(modules)
    layers = (layer for module in modules for layer in kernel_layers(module))
    chosen = {variable_key(variable) for layer in layers for variable in layer.variables}
    return [variable for variable in everything(modules) if variable_key(variable) in chosen]


def everything(modules: Iterable[tf.Module]) -> list[tf.Variable]:
    """All trainable variables of `modules`, each once, in their order."""
    return _unique(variable for module in modules for variable in module.trainable_variables)


def l2_penalty(variables: Iterable[tf.Variable]) -> tf.Tensor:
    """Half the sum of squares of all `variables`, [] float32; 0 when there are none."""
    terms = [tf.nn.l2_loss(tf.cast(variable, tf.float32)) for variable in variables]
    return tf.add_n(terms) if terms else tf.zeros([])


def _unique(variables: Iterable[tf.Variable]) -> list[tf.Variable]:
    return list({variable_key(variable): variable for variable in variables}.values())
