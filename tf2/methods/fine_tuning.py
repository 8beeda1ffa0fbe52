"""Fine-tuning on labels, and linear evaluation as its special case (SimCLRv2 section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from common.errors import UserError
from tf2.config import LearningConfig
from tf2.methods.base import Batch, Method, Nest, Terms, labeled_cross_entropy
from tf2.models.encoder import SimCLRModel, freeze


class FineTuning(Method):
    """Cross-entropy of the classifier on one view.

    Args:
        model: built, with a classifier that sends its gradient on.
        config: `fine_tune_after_block` decides what is frozen.

    Raises:
        UserError: without a classifier.
    """

    metrics = ('supervised_loss', 'supervised_acc')

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='fine_tuning')
        if model.classifier is None:
            raise UserError(
                'Fine-tuning needs labels; found a data set without. Choose another --dataset, or '
                '--train_mode=pretrain.'
            )
        self.model = model
        freeze(model, config.fine_tune_after_block)

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> tf.Tensor:
        """See `Method.forward`. Logits [b, classes] of the first view."""
        return self.model(views[0], training=training)['logits_sup']

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`."""
        terms = labeled_cross_entropy(batch['label'], outputs)
        return {'loss': terms['supervised_loss'], **terms}
