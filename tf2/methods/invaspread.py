"""InvaSpread (arXiv:1904.03436): views of an image are alike, all other images spread out.

One encoder and the batch alone: no bank, no queue and no momentum.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence

import tensorflow as tf

from tf2 import collectives
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.base import ONLINE_METRICS, Batch, Method, Nest, Terms, with_classifier
from tf2.methods.nt_xent import ABSENT
from tf2.models.encoder import SimCLRModel
from tf2.models.layers import Norm
from tf2.models.mlp import MLP, plain_head

# A probability of 1, by rounding, would make the loss infinite.
_LARGEST = 1 - 1e-6


class Spread(typing.NamedTuple):
    """The loss on one replica: float32 scalars, means over local views.

    Attributes:
        loss: of both views.
        accuracy: how often a view's partner is the nearest of all other views.
    """

    loss: tf.Tensor
    accuracy: tf.Tensor


def invaspread_loss(
    view_a: tf.Tensor, view_b: tf.Tensor, temperature: float, negative_weight: float = 1.0
) -> Spread:
    """The loss of section 3 over the views of all replicas, as the published program has it.

    A view should be recognized as its partner, and as no other view. Both views are queries, and a
    view isn't compared with itself. As published, the gradient flows through the query of each
    product alone: the views that it is compared with are constants, its partner too. Call in
    replica context, with the same number of rows on each replica.

    Args:
        view_a: [n, d] float32, of length 1, first views of this replica's n images.
        view_b: [n, d] float32, second views.
        temperature: divides the similarities.
        negative_weight: at least 1; multiplies the other views' exponentials and losses.

    Returns:
        Loss and accuracy over n * replicas images.
    """
    (all_a, offset), (all_b, _) = (
        collectives.all_gather(tf.stop_gradient(view)) for view in (view_a, view_b)
    )
    everything = tf.concat([all_a, all_b], 0)  # [2N, d]
    logits = tf.matmul(tf.concat([view_a, view_b], 0), everything, transpose_b=True) / temperature
    images = tf.range(tf.shape(view_a)[0]) + offset
    first, second = images, images + tf.shape(all_a)[0]
    places, partners = tf.concat([first, second], 0), tf.concat([second, first], 0)  # [2n]
    columns = tf.range(tf.shape(everything)[0])
    itself, partner = (columns == place[:, None] for place in (places, partners))  # [2n, 2N]
    others = tf.where(itself | partner, ABSENT, logits)
    own = tf.reduce_sum(tf.where(partner, logits, 0.0), -1, keepdims=True)  # [2n, 1]
    weighted = others + tf.math.log(float(negative_weight))
    total = tf.reduce_logsumexp(tf.concat([own, weighted], -1), -1, keepdims=True)
    mistaken = tf.minimum(tf.exp(others - total), _LARGEST)  # for other views
    spread = -negative_weight * tf.reduce_sum(tf.math.log1p(-mistaken), -1)
    hits = tf.cast(tf.squeeze(own, -1) > tf.reduce_max(others, -1), tf.float32)
    loss = tf.reduce_mean(tf.squeeze(total - own, -1) + spread)
    return Spread(loss, tf.reduce_mean(hits))


class InvaSpread(Method):
    """`invaspread_loss` on two views and, where there are labels, an online linear classifier.

    The classifier doesn't change the encoder.

    Args:
        model: built, with `projection_head`.
        config: temperature and `negative_weight` are read.
    """

    watched: typing.ClassVar[Mapping[str, str]] = {'representation': 'representation'}

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        supervised = ONLINE_METRICS if model.classifier else ()
        self.metrics = ('contrast_loss', 'contrast_acc', *supervised)

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> MLP:
        """See `Method.projection_head`. Linear unless `num_proj_layers` is above 1."""
        return plain_head(config, width, norm)

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """See `Method.forward`. Features of length 1, and logits of a classifier, of each view."""
        outputs = self.model(tf.concat(views, 0), training=training)  # [2b, ...] each
        features = tf.math.l2_normalize(outputs['proj_head_output'], -1)
        found = {
            'representation': tf.split(outputs['proj_head_input'], len(views))[0],  # [b, d]
            'features': tuple(tf.split(features, len(views))),
        }
        if self.model.classifier is not None:
            found['logits_sup'] = tuple(tf.split(outputs['logits_sup'], len(views)))
        return found

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. `batch['views']` are two views of each image."""
        config = self.config
        found = invaspread_loss(*outputs['features'], config.temperature, config.negative_weight)
        terms = {
            'loss': found.loss,
            'contrast_loss': found.loss,
            'contrast_acc': found.accuracy,
        }
        return with_classifier(terms, outputs, batch['label'])
