"""SimSiam: predicts the projection of another view, without negatives or a momentum network.

Chen & He, arXiv:2011.10566.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow as tf

from tf2.config import LearningConfig, ModelConfig
from tf2.methods.base import (
    ONLINE_METRICS,
    WITHOUT_NEGATIVES,
    Batch,
    Method,
    Nest,
    Terms,
    with_classifier,
)
from tf2.methods.crops import predict, with_others
from tf2.models.encoder import SimCLRModel
from tf2.models.head_sizes import layer_widths
from tf2.models.layers import Norm
from tf2.models.mlp import MLP, Dense, built, uniform_by_fan_in

_HIDDEN = Dense()
# Batch normalization would cancel a bias.
_PROJECTION = Dense(affine=False, relu=False)
_PREDICTION = Dense(bias=True, normalized=False, relu=False)


def simsiam_loss(predictions: Sequence[tf.Tensor], projections: Sequence[tf.Tensor]) -> tf.Tensor:
    """Negative cosine similarity, both ways; mean over examples (equation 2 and algorithm 1).

    No gradient flows to the projections.

    Args:
        predictions: of all views, [b, d] float32 each.
        projections: of the first views, the global crops, [b, d] float32 each. A prediction of one
            view is compared with the projections of all others.

    Returns:
        float32 scalar from -1 to 1, the mean over pairs of a prediction and a projection.
    """
    units = [tf.math.l2_normalize(prediction, -1) for prediction in predictions]
    goals = [tf.stop_gradient(tf.math.l2_normalize(z, -1)) for z in projections]
    cosines = [tf.reduce_sum(unit * goal, -1) for unit, goal in with_others(units, goals)]
    return -tf.reduce_mean(tf.add_n(cosines)) / len(cosines)


class SimSiam(Method):
    """One network, whose predictor maps the projection of each view to that of the other.

    Where there are labels, an online linear classifier is trained too, which doesn't change the
    encoder.

    Args:
        model: built, with `projection_head`.
        config: `predictor_hidden_dim`, `fixed_predictor_rate` and `global_crops` are read.

    Attributes:
        predictor: discarded after pretraining.
    """

    watched: ClassVar[Mapping[str, str]] = WITHOUT_NEGATIVES

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        width = model.projection_head.width
        widths = [config.predictor_hidden_dim, width]
        predictor = MLP(width, widths, _HIDDEN, _PREDICTION, model.norm, bias=uniform_by_fan_in)
        self.predictor = built(predictor, width)
        self.metrics = ('prediction_loss', *(ONLINE_METRICS if model.classifier else ()))

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> MLP:
        """See `Method.projection_head`. An MLP whose output is normalized, without affine map."""
        return MLP(width, layer_widths(config, width), _HIDDEN, _PROJECTION, norm)

    def trained(self) -> Sequence[tf.Module]:
        """See `Method.trained`."""
        return (self.model, self.predictor)

    def unscheduled(self) -> Sequence[tf.Module]:
        """See `Method.unscheduled`. The predictor should follow the projections (section 4.2)."""
        return (self.predictor,) if self.config.fixed_predictor_rate else ()

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """See `Method.forward` and `crops.predict`."""
        return predict(self.model, self.predictor, views, self.config.global_crops, training)

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. `batch['views']` are crops of each image, the global ones first."""
        projections = outputs['projections'][: self.config.global_crops]
        loss = simsiam_loss(outputs['predictions'], projections)
        terms = {'loss': loss, 'prediction_loss': loss}
        return with_classifier(terms, outputs, batch['label'])
