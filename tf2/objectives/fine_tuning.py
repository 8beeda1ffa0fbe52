"""Fine-tuning on labels, and linear evaluation as its special case (SimCLRv2 section 2)."""

from __future__ import annotations

import tensorflow as tf

from settings import UserError
from tf2.config import ObjectiveConfig
from tf2.models.encoder import SimCLRModel, freeze
from tf2.objectives.base import Batch, Objective, labelled_cross_entropy


class FineTuning(Objective):
    """Cross-entropy of the classifier on one view; trains what `fine_tune_after_block` leaves.

    Args:
        model: built, with a classifier that sends its gradient on.
        config: `fine_tune_after_block` is read.

    Raises:
        UserError: without a classifier.
    """

    metrics = ('supervised_loss', 'supervised_acc')

    def __init__(self, model: SimCLRModel, config: ObjectiveConfig) -> None:
        super().__init__(name='fine_tuning')
        if model.classifier is None:
            raise UserError(
                'Fine-tuning needs labels; found a data set without. Choose another --dataset, or '
                '--train_mode=pretrain.'
            )
        self.model = model
        freeze(model, config.fine_tune_after_block)

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """What is not frozen."""
        return self.model.trainable_variables

    def compute(self, batch: Batch, training: bool) -> dict[str, tf.Tensor]:
        """See `Objective.compute`. `batch['views']` holds one view of each image."""
        outputs = self.model(batch['views'][0], training=training)
        terms = labelled_cross_entropy(batch['label'], outputs['logits_sup'])
        return {'loss': terms['supervised_loss'], **terms}
