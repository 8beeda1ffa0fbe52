"""MoCo v1 (arXiv:1911.05722) and v2 (arXiv:2003.04297): InfoNCE between a query and its key.

Keys come from a momentum encoder, and a queue of those of earlier images holds the negatives. The
versions differ in head, views, temperature and schedule, which are defaults of their entries.

**Batch statistics.** If a query and its key were normalized along with the same images, statistics
would tell which key belongs to a query, since those of the queue were normalized with others.
Statistics of the whole batch, synchronized or not, don't prevent that. So they are taken over parts
of the global batch (`norm_parts`): consecutive rows for queries; for keys, parts to which the rows
were dealt in turn, like cards. With s images in each of p parts, a query and its key share about
s / p of them, as many as after a random shuffle, on any number of replicas, and one replica
computes what several do. Batches are shuffled already, so the deal need not be random.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence

import tensorflow as tf

from common.file_names import MOMENTUM_MODULES
from tf2 import collectives
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.base import ONLINE_METRICS, Batch, Method, Nest, Terms, with_classifier
from tf2.methods.crops import in_turn
from tf2.methods.memory import Memory
from tf2.methods.nt_xent import ABSENT
from tf2.models.encoder import SimCLRModel
from tf2.models.layers import Norm
from tf2.models.mlp import MLP, plain_head


class Matched(typing.NamedTuple):
    """InfoNCE on one replica: scalars, means over local examples.

    Attributes:
        loss: cross-entropy of the softmax over the keys.
        accuracy: how often a query's own key is the nearest one.
    """

    loss: tf.Tensor
    accuracy: tf.Tensor


def info_nce(
    queries: tf.Tensor,
    keys: tf.Tensor,
    negatives: tf.Tensor,
    temperature: float,
    filled: tf.Tensor | int | None = None,
) -> Matched:
    """Equation 1 of MoCo (arXiv:1911.05722): which key is the query's own?

    Gradients flow to the queries only.

    Args:
        queries: [b, d], of any length; they are scaled to length 1.
        keys: [b, d], of length 1.
        negatives: [k, d], of length 1.
        temperature: divides the similarities.
        filled: number of valid rows in `negatives`, the first ones; None means all.

    Returns:
        Loss and accuracy.
    """
    queries = tf.math.l2_normalize(queries, -1)
    keys, negatives = tf.stop_gradient(keys), tf.stop_gradient(tf.convert_to_tensor(negatives))
    own = tf.reduce_sum(queries * keys, -1, keepdims=True)  # [b, 1]
    others = tf.matmul(queries, negatives, transpose_b=True)  # [b, k]
    if filled is not None:
        valid = tf.range(negatives.shape[0]) < tf.cast(filled, tf.int32)
        others = tf.where(valid, others, ABSENT)
    logits = tf.concat([own, others], -1) / temperature  # [b, 1 + k]
    losses = tf.reduce_logsumexp(logits, -1) - logits[:, 0]  # [b]
    hits = tf.cast(tf.argmax(logits, -1, tf.int32) == 0, losses.dtype)
    return Matched(tf.reduce_mean(losses), tf.reduce_mean(hits))


def deal(local: tf.Tensor, parts: int) -> tf.Tensor:
    """Deals the rows of all replicas to `parts` of equal size in turn; call in replica context.

    Args:
        local: [b, ...], this replica's rows; the replicas' b sum up to a multiple of `parts`.
        parts: row i of the global batch goes to part i modulo `parts`.

    Returns:
        [b, ...], this replica's share of the parts, one after the other.
    """
    return _permuted(local, lambda count: tf.reshape(tf.range(count), [-1, parts]))


def gather_up(local: tf.Tensor, parts: int) -> tf.Tensor:
    """The inverse of `deal`: brings rows that it dealt back into their places."""
    return _permuted(local, lambda count: tf.reshape(tf.range(count), [parts, -1]))


def by_parts(crops: Sequence[tf.Tensor], parts: int) -> tf.Tensor:
    """Joins crops [b, ...] so that a part has the same images of each, in `parts` equal parts."""
    shares = zip(*(tf.split(crop, parts) for crop in crops))
    return tf.concat([share for part in shares for share in part], 0)


def by_crops(rows: tf.Tensor, count: int, parts: int) -> list[tf.Tensor]:
    """The inverse of `by_parts`, for `count` crops."""
    shares = tf.split(rows, parts * count)
    return [tf.concat(shares[number::count], 0) for number in range(count)]


def _permuted(local: tf.Tensor, table: typing.Callable[[int | tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """This replica's share of all rows, in the order in which `table` has them by columns."""
    rows, offset = collectives.all_gather(local)
    count = local.shape[0] or tf.shape(local)[0]
    order = tf.reshape(tf.transpose(table(rows.shape[0] or tf.shape(rows)[0])), [-1])
    return tf.gather(rows, tf.slice(order, [offset], [count]))


class MoCo(Method):
    """InfoNCE of a view's query with the key of another view and those of the queue.

    The queue starts empty, and until it is full only its filled rows are negatives; the authors'
    program fills it with noise at first. The momentum encoder follows the updated weights; in the
    authors' program it is averaged at the start of the next step instead, with the same weights, so
    the keys are the same. Where there are labels, an online linear classifier is trained too, which
    doesn't change the encoder.

    Args:
        model: built, with `projection_head` and `norm_parts`.
        config: temperature, memory, `norm_parts` and `global_crops` are read. `initialize` must be
            called before the first update.
    """

    watched: typing.ClassVar[Mapping[str, str]] = {'representation': 'proj_head_input'}

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        self.memory = Memory(model, config)
        supervised = ONLINE_METRICS if model.classifier else ()
        self.metrics = ('contrast_loss', 'contrast_acc', *supervised)

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> MLP:
        """See `Method.projection_head`. Linear in v1, an MLP without normalization in v2."""
        return plain_head(config, width, norm)

    def initialize(self) -> None:
        """See `Method.initialize`. The momentum encoder starts as a copy of the model."""
        self.memory.copy_from(self.model)

    def targets(self, batch: Batch) -> tf.Tensor:
        """See `Method.targets`. The keys [b, d] of the second views."""
        parts = self.config.norm_parts
        if parts == 1:
            return self.memory.keys(batch['views'][1])
        return gather_up(self.memory.keys(deal(batch['views'][1], parts)), parts)

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """See `Method.forward`. Projections, and logits of a classifier, of each query.

        All views are queries but the second one. Each global crop passes alone, local crops pass
        together, in the same parts; logits are those of global crops.
        """
        queries, others = (views[0], *views[2:]), self.config.global_crops - 1
        names = ['proj_head_input', 'proj_head_output']
        names += ['logits_sup'] if self.model.classifier else []
        found = {name: [] for name in names}
        for group in in_turn(queries, others):
            parts = self.model.norm.parts
            outputs = self.model(by_parts(group, parts), training=training)
            for name in names:
                found[name] += by_crops(outputs[name], len(group), parts)
        if self.model.classifier is not None:
            found['logits_sup'] = found['logits_sup'][:others]
        return {name: tuple(rows) for name, rows in found.items()}

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. `batch['views']` are crops of each image, the key's is the second.

        The mean over queries, all of which have the same key.
        """
        queue, temperature = self.memory.queue, self.config.temperature
        each = [
            info_nce(query, targets, queue.rows, temperature, queue.filled())
            for query in outputs['proj_head_output']
        ]
        found = Matched(*(tf.add_n(parts) / len(each) for parts in zip(*each)))
        terms = {
            'loss': found.loss,
            'contrast_loss': found.loss,
            'contrast_acc': found.accuracy,
        }
        return with_classifier(terms, outputs, batch['label'])

    def after_update(self, outputs: Nest, targets: Nest, batch: Batch, step: tf.Tensor) -> None:
        """See `Method.after_update`. Enqueues the keys and updates the momentum encoder.

        The keys are enqueued after the loss; otherwise an image's own key would be a negative.
        """
        self.memory.enqueue(targets)
        self.memory.update_encoder(self.model)

    def exports(self) -> Mapping[str, SimCLRModel]:
        """See `Method.exports`. With the momentum encoder if it is to be exported."""
        momentum = {MOMENTUM_MODULES: self.memory.encoder}
        return super().exports() | (momentum if self.config.export_momentum_encoder else {})
