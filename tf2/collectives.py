"""What replicas exchange while they train; call these functions in replica context.

For each collective that gradients flow through, TensorFlow searches for variables among all
operations of the other replicas, in quadratic time. The search ends where gradients are stopped, so
here they are, and the gradients are defined anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def all_reduce(operation: tf.distribute.ReduceOp, value: Any) -> Any:
    """Sum or mean over replicas of `value`, a tensor of any shape or a list of them.

    The gradient of a sum is the sum of the replicas' gradients; that of a mean, their mean.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return value

    @tf.custom_gradient
    def reduce(*parts: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        reduced = context.all_reduce(operation, [tf.stop_gradient(part) for part in parts])
        return reduced, lambda *gradients: all_reduce(operation, list(gradients))

    return tf.nest.pack_sequence_as(value, tf.nest.flatten(reduce(*tf.nest.flatten(value))))


def mean_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Mean over replicas of `value`, of any shape."""
    return all_reduce(tf.distribute.ReduceOp.MEAN, value)


def all_gather(local: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | int]:
    """Concatenates `local` [n, ...] of all replicas, in their order; n is the same on each.

    Gradients flow back to every replica.

    Returns:
        All rows [n * replicas, ...], and the index of this replica's first row among them.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return local, 0
    count = tf.shape(local)[0]
    offset = context.replica_id_in_sync_group * count

    @tf.custom_gradient
    def gather(rows: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        gathered = context.all_gather(tf.stop_gradient(rows), axis=0)

        def own_rows(gradient: tf.Tensor) -> tf.Tensor:
            return all_reduce(tf.distribute.ReduceOp.SUM, gradient)[offset : offset + count]

        return gathered, own_rows

    # The result of a collective has no static shape, not even a rank.
    length = None if local.shape[0] is None else local.shape[0] * context.num_replicas_in_sync
    return tf.ensure_shape(gather(local), [length, *local.shape[1:]]), offset
