"""The memory of SimCLRv2: projections of earlier images, by a momentum encoder, as negatives.

SimCLRv2 section 3 (arXiv:2006.10029), after MoCo (arXiv:1911.05722).
"""

from __future__ import annotations

import tensorflow as tf

from tf2 import distribution
from tf2.config import LearningConfig
from tf2.methods import momentum
from tf2.models.encoder import SimCLRModel, build_model, without_classifier


class Queue(tf.Module):
    """First in, first out: the newest `size` rows, the same ones on every replica.

    Attributes:
        rows: [size, width] float32; a new row takes the place of the oldest.
        enqueued: int64 scalar, number of rows that were ever put in. It tells both the place of
            the next one and how many of the first `rows` hold something.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__(name='queue')
        self.size = size
        self.rows = tf.Variable(tf.zeros([size, width]), trainable=False, name='rows')
        # In a replica context variables of this aggregation may be assigned to.
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.enqueued = tf.Variable(
            0, trainable=False, dtype=tf.int64, aggregation=first, name='enqueued'
        )

    def filled(self) -> tf.Tensor:
        """How many of `rows` hold something, the first ones; int64 scalar."""
        return tf.minimum(self.enqueued, self.size)

    def enqueue(self, local: tf.Tensor) -> None:
        """Puts in the rows of all replicas, in their order; to be called in a replica context.

        Args:
            local: [n, width] float32, those of this replica; n * replicas is at most `size`.
        """
        rows, _ = distribution.all_gather(local)
        count = tf.shape(rows, tf.int64)[0]
        # Modulo row by row: a run that goes on with another batch size may have to wrap around
        # in the middle of a batch.
        places = (self.enqueued + tf.range(count)) % self.size

        def write(variable: tf.Variable, places: tf.Tensor, rows: tf.Tensor) -> tf.Operation:
            return variable.scatter_nd_update(places, rows)

        def update(strategy: tf.distribute.Strategy, places: tf.Tensor, rows: tf.Tensor) -> None:
            # Every replica has all rows, so each writes its own copy.
            strategy.extended.update(self.rows, write, (places, rows))

        tf.distribute.get_replica_context().merge_call(update, (places[:, None], rows))
        self.enqueued.assign_add(count)


class Memory(tf.Module):
    """A momentum encoder and the queue of its projections. Neither is trained.

    To be made within the strategy's scope.

    Args:
        model: built; encoder and projection head are made like its own. It is no part of this.
        config: `memory_size`, `momentum_encoder_decay` and `hidden_norm` are read.

    Attributes:
        encoder: the momentum encoder. Its weights are moving averages of the model's; its moving
            batch statistics are of its own forward passes.
        queue: [memory_size, projection width].
    """

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='memory')
        self.config = config
        self.encoder = build_model(without_classifier(model))
        self.queue = Queue(config.memory_size, model.projection_head.width)

    def start_from(self, model: SimCLRModel) -> None:
        """Makes the momentum encoder equal to `model`; to be called outside of replicas."""
        momentum.make_equal(_parts(self.encoder), _parts(model))

    def follow(self, model: SimCLRModel) -> None:
        """Lets the momentum encoder follow `model`; to be called in a replica context."""
        decay = self.config.momentum_encoder_decay
        momentum.follow(_parts(self.encoder), _parts(model), decay)

    def negatives(self) -> dict[str, tf.Tensor]:
        """What `nt_xent` is to tell views apart from: its 'negatives' and 'filled'."""
        return {'negatives': self.queue.rows, 'filled': self.queue.filled()}

    def keys(self, images: tf.Tensor) -> tf.Tensor:
        """Projections [b, d] of `images` [b, h, w, 3], without a gradient."""
        # With batch statistics, as the projections that are compared with them have.
        keys = self.encoder(images, training=True)['proj_head_output']  # [b, d]
        keys = tf.math.l2_normalize(keys, -1) if self.config.hidden_norm else keys
        return tf.stop_gradient(keys)

    def enqueue(self, keys: tf.Tensor) -> None:
        """Puts `keys` [b, d] of all replicas into the queue; to be called in a replica context."""
        self.queue.enqueue(keys)


def _parts(model: SimCLRModel) -> tuple[tf.keras.layers.Layer, tf.keras.layers.Layer]:
    return model.backbone, model.projection_head
