"""What methods remember of earlier images: a queue of keys, or a bank with a row for each image.

The memory of SimCLRv2 (section 3, arXiv:2006.10029), after MoCo (arXiv:1911.05722), is a queue of a
momentum encoder's projections; the bank is that of InstDisc (arXiv:1805.01978).
"""

from __future__ import annotations

import tensorflow as tf

from tf2 import collectives
from tf2.config import LearningConfig
from tf2.methods import momentum
from tf2.models.encoder import SimCLRModel, build_model, without_classifier


class Queue(tf.Module):
    """A FIFO queue of the newest `size` rows, the same on every replica.

    Attributes:
        rows: [size, width] float32; a new row replaces the oldest.
        enqueued: int64 scalar, number of rows enqueued so far. It determines where the next one
            goes, and how many of `rows` are filled.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__(name='queue')
        self.size = size
        self.rows = tf.Variable(tf.zeros([size, width]), trainable=False, name='rows')
        # In replica context, only variables with an aggregation can be assigned.
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.enqueued = tf.Variable(
            0, trainable=False, dtype=tf.int64, aggregation=first, name='enqueued'
        )

    def filled(self) -> tf.Tensor:
        """Number of filled rows, the first ones of `rows`; int64 scalar."""
        return tf.minimum(self.enqueued, self.size)

    def enqueue(self, local: tf.Tensor) -> None:
        """Enqueues the rows of all replicas, in their order; call in replica context.

        Args:
            local: [n, width] float32, this replica's rows; n * replicas is at most `size`.
        """
        rows, _ = collectives.all_gather(local)
        count = tf.shape(rows, tf.int64)[0]
        # Modulo row by row: after a change of the batch size, a batch may have to wrap around.
        places = (self.enqueued + tf.range(count)) % self.size
        write_rows(self.rows, places, rows)
        self.enqueued.assign_add(count)


class Bank(tf.Module):
    """A memory bank: a row for every training example, the same on every replica.

    Attributes:
        rows: [examples, width] float32; moving averages of features, of length 1 once visited.
    """

    def __init__(self, examples: int, width: int) -> None:
        super().__init__(name='bank')
        # As the published program draws them: of length 1 on average.
        limit = (width / 3) ** -0.5
        start = tf.random.uniform([examples, width], -limit, limit)
        self.rows = tf.Variable(start, trainable=False, name='rows')

    def update(self, index: tf.Tensor, features: tf.Tensor, momentum: float) -> None:
        """Averages the features of all replicas into their rows; call in replica context.

        Args:
            index: [n] int64, rows of this replica's examples. If one occurs twice, in a batch that
                spans two epochs, the last occurrence counts.
            features: [n, width] float32, of length 1.
            momentum: share of the old row; the result is scaled to length 1.
        """
        index, _ = collectives.all_gather(index)
        features, _ = collectives.all_gather(features)
        same = tf.equal(index[:, None], index[None, :])
        last = tf.argmax(tf.where(same, tf.range(tf.shape(index)[0]), -1), -1)
        old = tf.gather(self.rows, index)
        mixed = momentum * old + (1 - momentum) * tf.gather(features, last)
        write_rows(self.rows, index, tf.math.l2_normalize(mixed, -1))


def write_rows(variable: tf.Variable, places: tf.Tensor, rows: tf.Tensor) -> None:
    """Writes the same rows into each replica's copy of a variable; call in replica context.

    Args:
        variable: [size, width].
        places: [n] int64.
        rows: [n, width], the same on every replica; equal places have equal rows.
    """

    def write(variable: tf.Variable, places: tf.Tensor, rows: tf.Tensor) -> tf.Operation:
        return variable.scatter_nd_update(places, rows)

    def update(strategy: tf.distribute.Strategy, places: tf.Tensor, rows: tf.Tensor) -> None:
        strategy.extended.update(variable, write, (places, rows))

    tf.distribute.get_replica_context().merge_call(update, (places[:, None], rows))


class Memory(tf.Module):
    """A momentum encoder and the queue of its projections. Neither is trained.

    Create it within the strategy's scope.

    Args:
        model: built; its encoder and projection head are copied. It is not tracked by this module.
        config: `memory_size`, `momentum_encoder_decay` and `hidden_norm` are read.

    Attributes:
        encoder: the momentum encoder. Its weights are moving averages of the model's; its moving
            batch statistics come from its own forward passes.
        queue: [memory_size, projection width].
    """

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='memory')
        self.config = config
        self.encoder = build_model(without_classifier(model))
        self.queue = Queue(config.memory_size, model.projection_head.width)

    def copy_from(self, model: SimCLRModel) -> None:
        """Copies `model` to the momentum encoder; call in cross-replica context."""
        momentum.copy_variables(_parts(self.encoder), _parts(model))

    def update_encoder(self, model: SimCLRModel) -> None:
        """Averages `model` into the momentum encoder; call in replica context."""
        decay = self.config.momentum_encoder_decay
        momentum.update_averages(_parts(self.encoder), _parts(model), decay)

    def negatives(self) -> dict[str, tf.Tensor]:
        """The arguments 'negatives' and 'filled' of `nt_xent`."""
        return {'negatives': self.queue.rows, 'filled': self.queue.filled()}

    def keys(self, images: tf.Tensor) -> tf.Tensor:
        """Projections [b, d] of `images` [b, h, w, 3], without a gradient."""
        # With batch statistics, like the projections they are compared with.
        keys = self.encoder(images, training=True)['proj_head_output']  # [b, d]
        keys = tf.math.l2_normalize(keys, -1) if self.config.hidden_norm else keys
        return tf.stop_gradient(keys)

    def enqueue(self, keys: tf.Tensor) -> None:
        """Enqueues the `keys` [b, d] of all replicas; call in replica context."""
        self.queue.enqueue(keys)


def _parts(model: SimCLRModel) -> tuple[tf.keras.layers.Layer, tf.keras.layers.Layer]:
    return model.backbone, model.projection_head
