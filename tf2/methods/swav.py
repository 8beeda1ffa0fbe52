"""SwAV: predicts to which prototypes another view of the image is assigned (arXiv:2006.09882).

Each view of an image is compared with trained prototypes. Global crops are assigned to them, those
of a global batch evenly to all of them, and the assignment of each is predicted from all other
views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow as tf

from tf2 import collectives
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.base import (
    ONLINE_METRICS,
    WITHOUT_NEGATIVES,
    Batch,
    Gradients,
    Method,
    Nest,
    Terms,
    with_classifier,
)
from tf2.methods.crops import encode
from tf2.methods.memory import Queue
from tf2.models.encoder import SimCLRModel
from tf2.models.head_sizes import layer_widths
from tf2.models.layers import Norm
from tf2.models.mlp import MLP, Dense, uniform_by_fan_in

_HIDDEN = Dense(bias=True)
_LAST = Dense(bias=True, normalized=False, relu=False)


def sinkhorn(
    scores: tf.Tensor, epsilon: float, iterations: int, counted: tf.Tensor | None = None
) -> tf.Tensor:
    """Assigns the samples of all replicas to prototypes, each of which gets an equal share.

    The algorithm of Sinkhorn and Knopp (section 3.1); call in replica context.
    Factors of the whole matrix cancel out, so there are none.

    Args:
        scores: [..., n, k] float32 from -1 to 1, similarities of this replica's n samples with k
            prototypes. They get no gradient.
        epsilon: the smaller, the closer a sample's assignment is to a single prototype.
        iterations: how often shares of prototypes and of samples are made equal.
        counted: [n] float32, 0 for samples to leave out and 1 for the others; None counts all.

    Returns:
        [..., n, k] float32, shares of the prototypes; they sum to 1 for each sample that counts.
    """
    # The highest exponent is 0, so that a small `epsilon` doesn't overflow.
    shares = tf.exp((tf.stop_gradient(scores) - 1) / epsilon)
    shares = shares if counted is None else shares * counted[:, None]
    for _ in range(iterations):
        local = tf.reduce_sum(shares, -2, keepdims=True)
        of_prototypes = collectives.all_reduce(tf.distribute.ReduceOp.SUM, local)
        shares = tf.math.divide_no_nan(shares, of_prototypes)
        shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares, -1, keepdims=True))
    return shares


def swapped_loss(
    scores: Sequence[tf.Tensor], assignments: Sequence[tf.Tensor], temperature: float
) -> tf.Tensor:
    """Cross-entropy of each assignment with the prediction of every other view (equation 2).

    No gradient flows to the assignments.

    Args:
        scores: of all views, [b, k] float32 each.
        assignments: of the first views, the global crops, [b, k] float32 each; rows sum to 1.
        temperature: divides the scores.

    Returns:
        float32 scalar, the mean over examples and over pairs of an assignment and another view.
    """
    predicted = [tf.nn.log_softmax(score / temperature) for score in scores]
    terms = [
        -tf.reduce_sum(tf.stop_gradient(assigned) * prediction, -1)  # [b]
        for place, assigned in enumerate(assignments)
        for other, prediction in enumerate(predicted)
        if other != place
    ]
    return tf.reduce_mean(tf.add_n(terms)) / len(terms)


class SwAV(Method):
    """Prototypes, trained along with the network, and the assignments to them.

    The prototypes have length 1 before every step. With a queue, projections of earlier images are
    assigned along with those of a batch. It is filled from the start, and used from its epoch on;
    the published program starts to fill it then. Where there are labels, an online linear
    classifier is trained too, which doesn't change the encoder.

    Args:
        model: built, with `projection_head`.
        config: `temperature`, `global_crops`, and the settings of prototypes, Sinkhorn's algorithm
            and the queue are read. `initialize` must be called before the first update.

    Attributes:
        prototypes: maps projections [b, d] to scores [b, prototypes]; discarded after pretraining.
        queue: of the projections of each image's global crops, side by side; None without.
        uses_queue: float32 scalar, 1 if the next step uses the queue, else 0; None without one.
    """

    watched: ClassVar[Mapping[str, str]] = WITHOUT_NEGATIVES

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        width = model.projection_head.width
        self.prototypes = tf.keras.layers.Dense(
            config.prototypes,
            use_bias=False,
            kernel_initializer=uniform_by_fan_in(width),
            dtype='float32',
        )
        self.prototypes.build([None, width])
        self.queue = self.uses_queue = None
        if config.queue_size:
            self.queue = Queue(config.queue_size, config.global_crops * width)
            # In replica context, only variables with an aggregation can be assigned.
            kept = {'trainable': False, 'aggregation': tf.VariableAggregation.ONLY_FIRST_REPLICA}
            self.uses_queue = tf.Variable(0.0, name='uses_queue', **kept)
        self.metrics = (
            'assignment_loss',
            'assignment_acc',
            *(ONLINE_METRICS if model.classifier else ()),
        )

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> MLP:
        """See `Method.projection_head`. An MLP with biases, whose output is not normalized."""
        widths = layer_widths(config, width)
        return MLP(width, widths, _HIDDEN, _LAST, norm, bias=uniform_by_fan_in)

    def trained(self) -> Sequence[tf.Module]:
        """See `Method.trained`."""
        return (self.model, self.prototypes)

    def initialize(self) -> None:
        """See `Method.initialize`. Scales the prototypes to length 1."""
        self.prototypes.kernel.assign(_columns_of_length_1(self.prototypes.kernel))

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """See `Method.forward`. Projections of length 1, and logits of a classifier, by view."""
        outputs = encode(self.model, views, training)
        found = {
            'representation': outputs['proj_head_input'][0],  # [b, d]
            'projections': tuple(
                tf.math.l2_normalize(rows, -1) for rows in outputs['proj_head_output']
            ),
        }
        if self.model.classifier is not None:
            found['logits_sup'] = outputs['logits_sup'][: self.config.global_crops]
        return found

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. `batch['views']` are crops of each image, the global ones first."""
        scores = self.prototypes(tf.stack(outputs['projections']))  # [views, b, prototypes]
        assigned = self._assign(scores[: self.config.global_crops])
        loss = swapped_loss(tf.unstack(scores), tf.unstack(assigned), self.config.temperature)
        nearest = tf.argmax(scores[1], -1)  # [b]
        hits = tf.cast(nearest == tf.argmax(assigned[0], -1), tf.float32)
        terms = {'loss': loss, 'assignment_loss': loss, 'assignment_acc': tf.reduce_mean(hits)}
        return with_classifier(terms, outputs, batch['label'])

    def _assign(self, scores: tf.Tensor) -> tf.Tensor:
        """Assignments of global crops, from their scores; both [crops, b, prototypes]."""
        config, counted = self.config, None
        rows = scores.shape[1] or tf.shape(scores)[1]
        if self.queue is not None:
            earlier = self.prototypes(self._share_of_queue())  # [crops, q, prototypes]
            counted = tf.concat([self.uses_queue * tf.ones(earlier.shape[1]), tf.ones([rows])], 0)
            scores = tf.concat([earlier, scores], 1)
        shares = sinkhorn(scores, config.sinkhorn_epsilon, config.sinkhorn_iterations, counted)
        return shares[:, -rows:]

    def _share_of_queue(self) -> tf.Tensor:
        """This replica's share of the queue, [crops, q, d]; all replicas together count each row.

        The queue holds whole global batches, so it divides evenly.
        """
        context = tf.distribute.get_replica_context()
        rows = self.queue.size // context.num_replicas_in_sync
        first = context.replica_id_in_sync_group * rows
        share = tf.slice(self.queue.rows, [first, 0], [rows, self.queue.rows.shape[1]])
        return tf.stack(tf.split(share, self.config.global_crops, -1))

    def adjust_gradients(self, gradients: Gradients, step: tf.Tensor) -> Gradients:
        """See `Method.adjust_gradients`. Prototypes get none in the first epochs.

        If an optimizer decays them nevertheless, that changes their lengths alone.
        """
        frozen = self.epoch(step) < self.config.freeze_prototypes_epochs
        return [
            tf.where(frozen, tf.zeros_like(gradient), gradient)
            if variable is self.prototypes.kernel
            else gradient
            for gradient, variable in zip(gradients, self.trainable_variables, strict=True)
        ]

    def after_update(self, outputs: Nest, targets: Nest, batch: Batch, step: tf.Tensor) -> None:
        """See `Method.after_update`. Scales the prototypes to length 1, and enqueues.

        Projections are enqueued after the loss; otherwise those of a batch would be assigned twice.
        """
        kernel = self.prototypes.kernel

        def normalize(strategy: tf.distribute.Strategy) -> None:
            strategy.extended.update(kernel, lambda own: own.assign(_columns_of_length_1(own)))

        tf.distribute.get_replica_context().merge_call(normalize)
        if self.queue is not None:
            assigned = outputs['projections'][: self.config.global_crops]  # [b, d] each
            self.queue.enqueue(tf.concat(assigned, -1))
            full = self.queue.filled() == self.queue.size
            started = self.epoch(step + 1) >= self.config.queue_start_epoch
            self.uses_queue.assign(tf.cast(full & started, tf.float32))


def _columns_of_length_1(kernel: tf.Tensor | tf.Variable) -> tf.Tensor:
    return tf.math.l2_normalize(tf.convert_to_tensor(kernel), 0)
