"""What every objective offers the training loop."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TypeAlias

import tensorflow as tf

from tf2 import distribution
from tf2.models.encoder import SimCLRModel

Batch: TypeAlias = Mapping[str, object]
Logits: TypeAlias = Callable[[tf.Tensor], tf.Tensor]


class Objective(tf.Module, abc.ABC):
    """A loss and what it trains. The training loop knows nothing else about a method.

    Attributes:
        metrics: names of the scalars `compute` returns besides 'loss'.
    """

    metrics: tuple[str, ...] = ()

    @property
    @abc.abstractmethod
    def trainable_variables(self) -> list[tf.Variable]:
        """What the optimizer updates, in a fixed order."""

    @abc.abstractmethod
    def compute(self, batch: Batch, training: bool) -> dict[str, tf.Tensor]:
        """The loss on this replica's share of the batch.

        Args:
            batch: 'views', a tuple of [b, h, w, 3] float32 in [0, 1], and 'label' [b] int32,
                -1 where there is none.
            training: passed on to the model.

        Returns:
            'loss' and `metrics`, float32 scalars; their means over replicas are the figures of the
            global batch.
        """

    @property
    def momentum_encoder(self) -> SimCLRModel | None:
        """A moving average of the model that can be exported too; None where there is none."""
        return None

    def start(self) -> None:
        """Called before the first update of a new run, when the model has its first weights.

        Outside of replicas. Not called when a run goes on: its state was restored.
        """
        return None

    def after_update(self) -> None:
        """Called on every replica after the variables changed; moving averages go here."""
        return None


def labelled_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Cross-entropy and accuracy over the examples that have a label, on all replicas.

    The means of the figures over replicas are those of the global batch.

    Args:
        labels: [b] int32, -1 where there is none.
        logits: [b, classes] float32.

    Returns:
        'supervised_loss' and 'supervised_acc', float32 scalars; 0 if no example has a label.
    """
    known = tf.cast(labels >= 0, tf.float32)  # [b]
    targets = tf.maximum(labels, 0)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)  # [b]
    hits = tf.cast(tf.argmax(logits, -1, tf.int32) == targets, tf.float32)  # [b]
    # Over all replicas, for these may have unequal shares of the labels.
    count = tf.maximum(distribution.mean_over_replicas(tf.reduce_sum(known)), 1e-6)
    return {
        'supervised_loss': tf.reduce_sum(losses * known) / count,
        'supervised_acc': tf.reduce_sum(hits * known) / count,
    }
