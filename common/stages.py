"""The stages of training, which are the choices of `--train_mode`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        title: for users.
        doing: verb before the name of the network in messages.
        about: what happens in it, in a sentence for newcomers.
        classifies: whether the result is a classifier. Then the gradient of the classifier trains
            the encoder too, every checkpoint is evaluated, and the best one is named. Otherwise a
            classifier only measures the encoder.
        needs_labels: whether it needs labels.
        has_teacher: whether it learns from a teacher; then it also learns from labels, unless all
            weight is on the teacher.
    """

    title: str
    doing: str
    about: str
    classifies: bool = True
    needs_labels: bool = False
    has_teacher: bool = False

    def learns_from_labels(self, teacher_weight: float) -> bool:
        """Whether labels change what is trained.

        Args:
            teacher_weight: weight of the teacher in the loss, `--distill_alpha`.
        """
        return self.needs_labels or (self.has_teacher and teacher_weight < 1)


STAGES = {
    'pretrain': Stage(
        'Pretraining',
        'Pretraining',
        'An encoder, which turns an image into a vector, learned from images alone. Labels, if '
        'there are any, only measure how much it has learned.',
        classifies=False,
    ),
    'finetune': Stage(
        'Fine-tuning',
        'Fine-tuning',
        'A classifier on top of an encoder learned from labeled images.',
        needs_labels=True,
    ),
    'distill': Stage(
        'Distillation',
        'Distilling into',
        'A network, the student, learned to give the same answers as another one, its teacher.',
        has_teacher=True,
    ),
}
FIRST = 'pretrain'
