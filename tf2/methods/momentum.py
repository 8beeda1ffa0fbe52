"""Momentum copies: networks whose weights are moving averages of trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def make_equal(copies: Sequence[tf.Module], modules: Sequence[tf.Module]) -> None:
    """Gives `copies` the weights and batch statistics of `modules`; outside of replicas.

    Args:
        copies: built, each with the variables of the module at its place, in the same order.
        modules: what is copied.
    """
    for copy, module in zip(copies, modules, strict=True):
        for mean, weight in zip(copy.variables, module.variables, strict=True):
            mean.assign(tf.convert_to_tensor(weight))


def follow(
    copies: Sequence[tf.Module], modules: Sequence[tf.Module], decay: float | tf.Tensor
) -> None:
    """Moves the weights of `copies`: m <- decay * m + (1 - decay) * w, in a replica context.

    Moving batch statistics are left alone: they are of the copies' own forward passes.

    Args:
        copies: see `make_equal`.
        modules: what is followed.
        decay: share of its own that each weight keeps, in [0, 1].
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
