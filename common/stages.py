"""Stages of training: what `--train_mode` chooses among. How pretraining learns is its method."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        title: for people.
        doing: verb that stands before the network.
        classifies: whether the result is a classifier. Then the encoder learns from what the
            classifier does, every checkpoint is evaluated, and the best one is named. Where it is
            not, a classifier only measures the encoder.
        needs_labels: whether it can't do without labels.
        has_teacher: whether it learns from a teacher, and from labels only as far as that leaves
            them weight.
    """

    title: str
    doing: str
    classifies: bool = True
    needs_labels: bool = False
    has_teacher: bool = False

    def learns_from_labels(self, teacher_weight: float) -> bool:
        """Whether labels change what is trained.

        Args:
            teacher_weight: share of the teacher in the loss, `--distill_alpha`.
        """
        return self.needs_labels or (self.has_teacher and teacher_weight < 1)


STAGES = {
    'pretrain': Stage('Pretraining', 'Pretraining', classifies=False),
    'finetune': Stage('Fine-tuning', 'Fine-tuning', needs_labels=True),
    'distill': Stage('Distillation', 'Distilling into', has_teacher=True),
}
FIRST = 'pretrain'
