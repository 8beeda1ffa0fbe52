"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR, and pretraining with it."""

from __future__ import annotations

import functools
import typing

import tensorflow as tf

from tf2 import distribution
from tf2.config import ObjectiveConfig
from tf2.models.encoder import SimCLRModel
from tf2.objectives.base import Batch, Objective, labelled_cross_entropy
from tf2.objectives.memory import Memory

ABSENT = -1e9  # stands for minus infinity, with a finite gradient


class Contrast(typing.NamedTuple):
    """NT-Xent on one replica.

    Attributes:
        loss: float32 scalar, mean over local examples of the losses of both views.
        logits_ab: [n, N] float32, similarity / temperature of local first views to all second.
        targets: [n] int32, column of `logits_ab` that holds the other view of the same image.
    """

    loss: tf.Tensor
    logits_ab: tf.Tensor
    targets: tf.Tensor


def nt_xent(
    view_a: tf.Tensor,
    view_b: tf.Tensor,
    temperature: float,
    *,
    hidden_norm: bool = True,
    negatives: tf.Tensor | None = None,
    filled: tf.Tensor | int | None = None,
) -> Contrast:
    """Equation 1 of SimCLR (arXiv:2002.05709) over the views of all replicas.

    Every view is to be told apart from the other views of the global batch, as the partner of
    the second view of its image. To be called in a replica context, with as many rows on each.

    Args:
        view_a: [n, d] float32, projections of the first views of this replica's n images.
        view_b: [n, d] float32, projections of the second views.
        temperature: divides the similarities.
        hidden_norm: whether projections are scaled to length 1 first.
        negatives: [m, d] float32, further rows that every view is to be told apart from
            (SimCLRv2 section 3, arXiv:2006.10029). They are compared as they are, and get no
            gradient. The same on every replica.
        filled: how many of `negatives` there are, the first ones; the others do not count. None
            means all.

    Returns:
        Loss and logits; N = n * replicas.
    """
    if hidden_norm:
        view_a, view_b = (tf.math.l2_normalize(view, -1) for view in (view_a, view_b))
    (all_a, offset), (all_b, _) = (distribution.all_gather(view) for view in (view_a, view_b))
    targets = tf.range(tf.shape(view_a)[0]) + offset  # [n]
    own = targets[:, None] == tf.range(tf.shape(all_a)[0])[None]  # [n, N]

    def similarity(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        return tf.matmul(rows, columns, transpose_b=True) / temperature  # [n, N]

    def others(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        return tf.where(own, ABSENT, similarity(rows, columns))  # [n, N]

    def remembered(rows: tf.Tensor) -> list[tf.Tensor]:
        if negatives is None:
            return []
        logits = similarity(rows, tf.stop_gradient(negatives))  # [n, m]
        return [logits if filled is None else _first_columns(logits, filled)]

    positives = tf.reduce_sum(view_a * view_b, -1) / temperature  # [n]
    logits_ab = similarity(view_a, all_b)
    loss_a = _log_sum_exp(logits_ab, others(view_a, all_a), *remembered(view_a)) - positives  # [n]
    logits_ba = similarity(view_b, all_a)
    loss_b = _log_sum_exp(logits_ba, others(view_b, all_b), *remembered(view_b)) - positives  # [n]
    return Contrast(tf.reduce_mean(loss_a + loss_b), logits_ab, targets)


def _first_columns(logits: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """`logits` [n, m] whose columns from `count` on stand for minus infinity."""
    columns = tf.range(tf.shape(logits)[1])
    return tf.where(columns < tf.cast(count, columns.dtype), logits, ABSENT)


def _log_sum_exp(*parts: tf.Tensor) -> tf.Tensor:
    """Row by row over several [n, …], without writing them side by side: [n]."""
    return functools.reduce(_log_add_exp, [tf.reduce_logsumexp(logits, -1) for logits in parts])


def _log_add_exp(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    highest = tf.maximum(first, second)
    return highest + tf.math.log1p(tf.exp(-tf.abs(first - second)))


def contrast_metrics(contrast: Contrast) -> dict[str, tf.Tensor]:
    """'contrast_acc', how often the partner is the nearest second view, and 'contrast_entropy'.

    The entropy, in nats, is that of the softmax over `logits_ab`. Both are float32 scalars.
    """
    logits = tf.stop_gradient(contrast.logits_ab)  # [n, N]
    hits = tf.argmax(logits, -1, tf.int32) == contrast.targets
    log_probabilities = tf.nn.log_softmax(logits)
    entropies = -tf.reduce_sum(tf.exp(log_probabilities) * log_probabilities, -1)  # [n]
    return {
        'contrast_acc': tf.reduce_mean(tf.cast(hits, tf.float32)),
        'contrast_entropy': tf.reduce_mean(entropies),
    }


class Pretraining(Objective):
    """NT-Xent on two views and, where there are labels, an online linear classifier.

    The classifier reads the representation behind stop_gradient: it measures, and does not teach.

    Args:
        model: built.
        config: temperature and memory are read. With a memory, whose variables are made here,
            `start` is to be called before the first update.
    """

    def __init__(self, model: SimCLRModel, config: ObjectiveConfig) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        self.memory = Memory(model, config) if config.memory_size else None
        supervised = ('supervised_loss', 'supervised_acc') if model.classifier else ()
        self.metrics = ('contrast_loss', 'contrast_acc', 'contrast_entropy', *supervised)

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """Encoder, projection head and online classifier; of a memory, nothing."""
        return self.model.trainable_variables

    @property
    def momentum_encoder(self) -> SimCLRModel | None:
        """See `Objective.momentum_encoder`."""
        return self.memory and self.memory.encoder

    def start(self) -> None:
        """See `Objective.start`. The momentum encoder starts equal to the model."""
        if self.memory is not None:
            self.memory.copy(self.model)

    def compute(self, batch: Batch, training: bool) -> dict[str, tf.Tensor]:
        """See `Objective.compute`. `batch['views']` are two views of each image.

        A memory takes in the second views when their loss is computed: as negatives they would
        count against the views of their own image.
        """
        outputs = self.model(tf.concat(batch['views'], 0), training=training)
        view_a, view_b = tf.split(outputs['proj_head_output'], 2)  # [b, d] each
        contrast = self._contrast(view_a, view_b)
        if self.memory is not None and training:
            self.memory.remember(batch['views'][1])
        terms = {'contrast_loss': contrast.loss, **contrast_metrics(contrast)}
        loss = contrast.loss
        if self.model.classifier is not None:
            labels = tf.tile(batch['label'], [2])  # [2b]
            terms |= labelled_cross_entropy(labels, outputs['logits_sup'])
            loss += terms['supervised_loss']
        return {'loss': loss, **terms}

    def after_update(self) -> None:
        """See `Objective.after_update`. The momentum encoder follows the model."""
        if self.memory is not None:
            self.memory.follow(self.model)

    def _contrast(self, view_a: tf.Tensor, view_b: tf.Tensor) -> Contrast:
        return nt_xent(
            view_a,
            view_b,
            self.config.temperature,
            hidden_norm=self.config.hidden_norm,
            **(self.memory.negatives() if self.memory is not None else {}),
        )
