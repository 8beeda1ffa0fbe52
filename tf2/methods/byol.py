"""BYOL: predicts a momentum network's projection of another view (arXiv:2006.07733)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow as tf

from tf2.config import LearningConfig, ModelConfig
from tf2.methods import momentum
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
from tf2.models.encoder import SimCLRModel, build_model, without_classifier
from tf2.models.head_sizes import layer_widths
from tf2.models.layers import Norm
from tf2.models.mlp import MLP, Dense, built, by_fan_in

_HIDDEN = Dense(bias=True)
_LAST = Dense(normalized=False, relu=False)


def byol_loss(predictions: Sequence[tf.Tensor], targets: Sequence[tf.Tensor]) -> tf.Tensor:
    """Squared distances between unit vectors, both ways; mean over examples (equation 2).

    No gradient flows to the targets.

    Args:
        predictions: of all views, [b, d] float32 each.
        targets: the target network's projections of the first views, the global crops, [b, d]
            float32 each. A prediction of one view is compared with the targets of all others.

    Returns:
        float32 scalar from 0 to 8: twice the mean over pairs of a prediction and a target, which is
        the paper's sum for two views.
    """
    units = [tf.math.l2_normalize(prediction, -1) for prediction in predictions]
    goals = [tf.stop_gradient(tf.math.l2_normalize(target, -1)) for target in targets]
    distances = [tf.reduce_sum((unit - goal) ** 2, -1) for unit, goal in with_others(units, goals)]
    return tf.reduce_mean(tf.add_n(distances)) * (2 / len(distances))


def target_decay(base: float, progress: float | tf.Tensor) -> tf.Tensor:
    """Decay of the target network: from `base` to 1 along a cosine (section 3.2).

    Args:
        base: at the start.
        progress: share of the run that is done, from 0 to 1.

    Returns:
        float32 scalar.
    """
    return 1 - (1 - base) * (tf.cos(math.pi * tf.convert_to_tensor(progress)) + 1) / 2


class BYOL(Method):
    """Two networks, of which the target follows the trained one as a moving average.

    Where there are labels, an online linear classifier is trained too, which doesn't change the
    encoder.

    Args:
        model: built, with `projection_head`.
        config: `predictor_hidden_dim`, `target_decay` and `global_crops` are read. `initialize`
            must be called before the first update.

    Attributes:
        predictor: maps projections to those of the other view; discarded after pretraining.
        target: encoder and projection head whose weights are moving averages of the model's.
    """

    watched: ClassVar[Mapping[str, str]] = WITHOUT_NEGATIVES

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        width = model.projection_head.width
        widths = [config.predictor_hidden_dim, width]
        predictor = MLP(width, widths, _HIDDEN, _LAST, model.norm, kernel=by_fan_in)
        self.predictor = built(predictor, width)
        self.target = build_model(without_classifier(model))
        self.metrics = ('prediction_loss', *(ONLINE_METRICS if model.classifier else ()))

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> MLP:
        """See `Method.projection_head`. An MLP whose output is not normalized."""
        return MLP(width, layer_widths(config, width), _HIDDEN, _LAST, norm, kernel=by_fan_in)

    def trained(self) -> Sequence[tf.Module]:
        """See `Method.trained`. Not the target network."""
        return (self.model, self.predictor)

    def initialize(self) -> None:
        """See `Method.initialize`. The target network starts as a copy of the model."""
        momentum.copy_variables(_parts(self.target), _parts(self.model))

    def targets(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """See `Method.targets`. The target network's projections [b, d] of each global crop."""
        # With batch statistics, as the authors' program does.
        crops = batch['views'][: self.config.global_crops]
        outputs = (self.target(view, training=True) for view in crops)
        return tuple(tf.stop_gradient(output['proj_head_output']) for output in outputs)

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """See `Method.forward` and `crops.predict`."""
        return predict(self.model, self.predictor, views, self.config.global_crops, training)

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. `batch['views']` are crops of each image, the global ones first."""
        loss = byol_loss(outputs['predictions'], targets)
        terms = {'loss': loss, 'prediction_loss': loss}
        return with_classifier(terms, outputs, batch['label'])

    def after_update(self, outputs: Nest, targets: Nest, batch: Batch, step: tf.Tensor) -> None:
        """See `Method.after_update`. Averages the updated weights into the target network."""
        decay = target_decay(self.config.target_decay, self.progress(step))
        momentum.update_averages(_parts(self.target), _parts(self.model), decay)


def _parts(model: SimCLRModel) -> tuple[tf.keras.layers.Layer, tf.keras.layers.Layer]:
    return model.backbone, model.projection_head
