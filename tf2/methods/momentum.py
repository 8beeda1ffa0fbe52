"""Momentum copies: networks whose weights are moving averages of trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def copy_variables(copies: Sequence[tf.Module], modules: Sequence[tf.Module]) -> None:
    """Copies all variables of `modules` to `copies`; call in cross-replica context.

    Args:
        copies: built, each with the variables of its counterpart in `modules`, in the same order.
        modules: what to copy.
    """
    for copy, module in zip(copies, modules, strict=True):
        for mean, weight in zip(copy.variables, module.variables, strict=True):
            mean.assign(tf.convert_to_tensor(weight))


def update_averages(
    copies: Sequence[tf.Module], modules: Sequence[tf.Module], decay: float | tf.Tensor
) -> None:
    """Updates the weights of `copies`: m <- decay * m + (1 - decay) * w; call in replica context.

    Moving batch statistics are not averaged: they come from the copies' own forward passes.

    Args:
        copies: see `copy_variables`.
        modules: with the weights w.
        decay: in [0, 1].
    """
    pairs = [
        pair
        for copy, module in zip(copies, modules, strict=True)
        for pair in zip(copy.trainable_variables, module.trainable_variables, strict=True)
    ]

    def move(mean: tf.Variable, weight: tf.Variable) -> tf.Operation:
        return mean.assign(decay * mean + (1 - decay) * weight)

    def update(strategy: tf.distribute.Strategy) -> None:
        for mean, weight in pairs:
            strategy.extended.update(mean, move, (weight,))

    tf.distribute.get_replica_context().merge_call(update)
