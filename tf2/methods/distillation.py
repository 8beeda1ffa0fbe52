"""Distillation of a frozen teacher into a student (SimCLRv2 section 2, arXiv:2006.10029)."""

from __future__ import annotations

import tensorflow as tf

from tf2.config import LearningConfig
from tf2.methods.base import Batch, Logits, Nest, Terms, labeled_cross_entropy
from tf2.methods.fine_tuning import FineTuning
from tf2.models.encoder import SimCLRModel


def soft_cross_entropy(
    teacher: tf.Tensor, student: tf.Tensor, temperature: float, *, squared: bool = True
) -> tf.Tensor:
    """Mean over examples of the cross-entropy between the two softmaxes (equation 2).

    No gradient flows to the teacher.

    Args:
        teacher: [b, c] float32 logits.
        student: [b, c] float32 logits.
        temperature: divides both.
        squared: whether to multiply the result by the squared temperature, which keeps the scale
            of the gradient about the same at every temperature (Hinton et al., arXiv:1503.02531,
            section 2). The published program does; SimCLRv2's equation does not.

    Returns:
        float32 scalar.
    """
    probabilities = tf.stop_gradient(tf.nn.softmax(teacher / temperature))  # [b, c]
    losses = -tf.reduce_sum(probabilities * tf.nn.log_softmax(student / temperature), -1)  # [b]
    return tf.reduce_mean(losses) * (temperature**2 if squared else 1.0)


class Distillation(FineTuning):
    """(1 - alpha) * cross-entropy with the labels + alpha * cross-entropy with the teacher.

    The first term is a mean over the labeled examples, the second over all examples. Trains the
    same variables as fine-tuning.

    Args:
        model: the student; built, with a classifier.
        config: alpha, temperature and `fine_tune_after_block` are read.
        teacher: images [b, h, w, 3] -> logits [b, c], frozen. It is a function, not a module, so
            neither checkpoints nor the optimizer contain its weights.
    """

    def __init__(self, model: SimCLRModel, config: LearningConfig, teacher: Logits) -> None:
        super().__init__(model, config)
        self.config = config
        self._teacher = teacher
        supervised = ('supervised_loss', 'supervised_acc') if config.distill_alpha < 1 else ()
        self.metrics = ('distill_loss', 'teacher_agreement', *supervised)

    def targets(self, batch: Batch) -> tf.Tensor:
        """See `Method.targets`. The teacher's logits [b, c] of the last view."""
        return tf.stop_gradient(self._teacher(batch['views'][-1]))

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. Outputs are the student's logits of the first view.

        'supervised_loss' and 'supervised_acc' are 0 if no example of the batch has a label.
        """
        config = self.config
        distilled = soft_cross_entropy(
            targets,
            outputs,
            config.distill_temperature,
            squared=config.distill_temperature_squared,
        )
        agree = tf.argmax(outputs, -1, tf.int32) == tf.argmax(targets, -1, tf.int32)  # [b]
        terms = {
            'loss': config.distill_alpha * distilled,
            'distill_loss': distilled,
            'teacher_agreement': tf.reduce_mean(tf.cast(agree, tf.float32)),
        }
        if config.distill_alpha < 1:
            terms |= labeled_cross_entropy(batch['label'], outputs)
            terms['loss'] += (1 - config.distill_alpha) * terms['supervised_loss']
        return terms
