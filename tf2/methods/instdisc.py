"""InstDisc (arXiv:1805.01978): every image is a class of its own, told by a memory bank.

The bank holds a moving average of each image's feature. A feature is compared with the row of its
image and with rows drawn at random, by noise-contrastive estimation or a softmax, or with all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow as tf

from tf2 import collectives
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.base import ONLINE_METRICS, Batch, Method, Nest, Terms, with_classifier
from tf2.methods.memory import Bank
from tf2.models.encoder import SimCLRModel
from tf2.models.layers import Norm
from tf2.models.mlp import MLP, plain_head

_EPSILON = 1e-7  # of the published program


def similarities(features: tf.Tensor, bank: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Products of features with rows of the bank, which gets no gradient.

    Args:
        features: [b, d].
        bank: [examples, d].
        rows: [b, k] integers.

    Returns:
        [b, k].
    """
    examples, width = bank.shape
    if examples <= rows.shape[1] * width:  # takes less memory than the rows drawn
        everything = tf.matmul(features, tf.stop_gradient(bank), transpose_b=True)
        return tf.gather(everything, rows, batch_dims=1)
    return tf.einsum('bd,bkd->bk', features, tf.stop_gradient(tf.gather(bank, rows)))


def normalizer(similar: tf.Tensor, temperature: float, examples: int) -> tf.Tensor:
    """Z, estimated from the rows that were drawn: a scalar without gradient (section 3.2).

    Args:
        similar: [b, 1 + k], see `similarities`.
        temperature: divides the similarities.
        examples: rows of the bank.
    """
    return examples * tf.stop_gradient(tf.reduce_mean(tf.exp(similar / temperature)))


def nce_loss(
    similar: tf.Tensor, temperature: float, z: tf.Tensor | float, examples: int
) -> tf.Tensor:
    """Noise-contrastive estimation (section 3.2): is a row the image's own, or noise?

    Args:
        similar: [b, 1 + k], of a feature with its own row and then with k rows drawn uniformly.
        temperature: divides the similarities.
        z: constant that normalizes the exponentials.
        examples: rows of the bank.

    Returns:
        Scalar, a sum over the rows drawn and a mean over features.
    """
    probability = tf.exp(similar / temperature) / z  # [b, 1 + k]
    noise = (similar.shape[1] - 1) / examples
    own = tf.math.log1p((noise + _EPSILON) / probability[:, 0])  # -log P / (P + noise)
    others = tf.math.log1p((probability[:, 1:] + _EPSILON) / noise)  # -log noise / (P + noise)
    return tf.reduce_mean(own + tf.reduce_sum(others, -1))


def softmax_loss(similar: tf.Tensor, own: tf.Tensor | int, temperature: float) -> tf.Tensor:
    """Cross-entropy of the softmax over rows of the bank (section 3.1); scalar.

    Args:
        similar: [b, k], see `similarities`.
        own: [b] integers, the columns of the images' own rows, or one for all.
        temperature: divides the similarities.
    """
    labels = tf.broadcast_to(tf.cast(own, tf.int64), tf.shape(similar)[:1])
    logits = similar / temperature
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def proximal_term(features: tf.Tensor, own_rows: tf.Tensor) -> tf.Tensor:
    """Mean squared distance of features [b, d] from their rows (section 3.3); scalar."""
    distances = tf.reduce_sum((features - tf.stop_gradient(own_rows)) ** 2, -1)  # [b]
    return tf.reduce_mean(distances)


class InstDisc(Method):
    """Compares each image's feature with the bank, then averages it into its row.

    Z is that of the first batch. The rows drawn depend on the run's seed, the number of updates and
    the place in the global batch. Where there are labels, an online linear classifier is trained
    too, which doesn't change the encoder.

    Args:
        model: built, with `projection_head`.
        config: temperature and the settings of the bank are read.
        examples: number of training examples; 'index' of a batch is below it.

    Attributes:
        bank: a row for each training example.
        z: float32 scalar; 0 before the first update.
    """

    watched: ClassVar[Mapping[str, str]] = {'representation': 'representation'}

    def __init__(self, model: SimCLRModel, config: LearningConfig, *, examples: int) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        self.examples = examples
        self.bank = Bank(examples, model.projection_head.width)
        # In replica context, only variables with an aggregation can be assigned.
        kept = {'trainable': False, 'aggregation': tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.z = tf.Variable(0.0, name='z', **kept)
        self.drawn = tf.Variable(0, dtype=tf.int32, name='drawn', **kept)
        seed = tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32)
        self.seed = tf.Variable(seed, name='seed', **kept)
        proximal = ('proximal_loss',) if config.proximal_weight else ()
        supervised = ONLINE_METRICS if model.classifier else ()
        self.metrics = ('contrast_loss', 'contrast_acc', *proximal, *supervised)

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> MLP:
        """See `Method.projection_head`. Linear unless `num_proj_layers` is above 1."""
        return plain_head(config, width, norm)

    def targets(self, batch: Batch) -> tf.Tensor | None:
        """See `Method.targets`. Rows to compare with, [b, 1 + k] int64, the own one first.

        None for the whole bank.
        """
        count = self.config.bank_negatives
        if not count:
            return None
        index = batch['index']
        context = tf.distribute.get_replica_context()
        share = index.shape[0] or tf.shape(index)[0]
        drawn = tf.random.stateless_uniform(
            [share * context.num_replicas_in_sync, count],
            tf.stack([self.seed, self.drawn]),
            maxval=self.examples,
            dtype=tf.int64,
            alg='philox',  # else XLA draws other numbers
        )
        # One replica draws for its place among all, so that several draw what one would.
        first = share * context.replica_id_in_sync_group
        return tf.concat([index[:, None], tf.slice(drawn, [first, 0], [share, count])], -1)

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """See `Method.forward`. Features [b, d] of length 1, and logits of a classifier."""
        outputs = self.model(views[0], training=training)
        features = {
            'representation': outputs['proj_head_input'],
            'features': tf.math.l2_normalize(outputs['proj_head_output'], -1),
        }
        return features | ({'logits_sup': outputs['logits_sup']} if self.model.classifier else {})

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. `batch['index']` are the images' rows."""
        config, features, index = self.config, outputs['features'], batch['index']
        if targets is None:
            bank = tf.stop_gradient(tf.convert_to_tensor(self.bank.rows))
            similar, own = tf.matmul(features, bank, transpose_b=True), index
        else:
            similar, own = similarities(features, self.bank.rows, targets), tf.zeros_like(index)
        if config.bank_loss == 'nce':
            first = collectives.mean_over_replicas(
                normalizer(similar, config.temperature, self.examples)
            )
            z = tf.stop_gradient(tf.where(self.z > 0, self.z, first))
            contrast = nce_loss(similar, config.temperature, z, self.examples)
        else:
            contrast = softmax_loss(similar, own, config.temperature)
        hits = tf.cast(tf.argmax(similar, -1) == own, tf.float32)
        terms = {
            'loss': contrast,
            'contrast_loss': contrast,
            'contrast_acc': tf.reduce_mean(hits),
        }
        if config.proximal_weight:
            rows = tf.gather(self.bank.rows, index)
            terms['proximal_loss'] = config.proximal_weight * proximal_term(features, rows)
            terms['loss'] += terms['proximal_loss']
        return with_classifier(terms, outputs, batch['label'])

    def after_update(self, outputs: Nest, targets: Nest, batch: Batch, step: tf.Tensor) -> None:
        """See `Method.after_update`. Fixes Z if it isn't yet, and averages features into rows.

        The features are those of the loss, from before the update.
        """
        if self.config.bank_loss == 'nce':
            self._fix_z(outputs['features'], targets)
        if targets is not None:
            self.drawn.assign_add(1)
        self.bank.update(batch['index'], outputs['features'], self.config.bank_momentum)

    def _fix_z(self, features: tf.Tensor, rows: tf.Tensor) -> None:
        def estimate() -> tf.Tensor:
            similar = similarities(features, self.bank.rows, rows)
            return normalizer(similar, self.config.temperature, self.examples)

        found = tf.cond(self.z > 0, lambda: tf.constant(0.0), estimate)
        found = collectives.mean_over_replicas(found)
        self.z.assign(tf.where(self.z > 0, self.z, found))
