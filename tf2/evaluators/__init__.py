"""Measurements of a model. An evaluator is one file here and one entry in `EVALUATORS`.

Evaluators implement `base.Evaluator`. Importing this package doesn't import TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.errors import UserError
from common.registry import load

if TYPE_CHECKING:
    from tf2.evaluators.base import Evaluator, Inputs

# What an evaluator may need, as named in error messages.
NEEDS = {
    'eval_labels': 'labels in the evaluation split',
    'train_labels': 'labels in the training split',
    'classifier': 'a classifier, which needs labels in the training split',
    'neighbors': '--knn_neighbors above 0',
    'teacher': 'a --teacher, as in distillation',
}


@dataclasses.dataclass(frozen=True)
class EvaluatorEntry:
    """What is known about an evaluator before TensorFlow is imported.

    Attributes:
        implementation: its class, as 'module:Class'.
        summary: what it measures, for `--help`.
        needs: keys of `NEEDS`.
        default: whether it is part of the default of `--evaluators`.
    """

    implementation: str
    summary: str
    needs: tuple[str, ...] = ()
    default: bool = False

    def load(self) -> type[Evaluator]:
        """The class; imports TensorFlow."""
        return load(self.implementation)


EVALUATORS: dict[str, EvaluatorEntry] = {
    'classification': EvaluatorEntry(
        'tf2.evaluators.classification:Classification',
        'Top-1 and top-5 accuracy of the classifier.',
        needs=('eval_labels', 'classifier'),
        default=True,
    ),
    'knn': EvaluatorEntry(
        'tf2.evaluators.knn:NearestNeighbors',
        'Accuracy of weighted nearest neighbors in the representation (arXiv:1805.01978).',
        needs=('neighbors', 'eval_labels', 'train_labels'),
        default=True,
    ),
    'teacher': EvaluatorEntry(
        'tf2.evaluators.agreement:TeacherAgreement',
        "Agreement with the teacher, and the teacher's accuracy.",
        needs=('teacher',),
        default=True,
    ),
    'probe': EvaluatorEntry(
        'tf2.evaluators.probe:LinearProbe',
        'Accuracy of a linear classifier fitted to the representation, on up to 5,000 images.',
        needs=('eval_labels', 'train_labels'),
    ),
    'per_class': EvaluatorEntry(
        'tf2.evaluators.per_class:PerClass',
        'Accuracy of the classifier per class, and its mean over classes.',
        needs=('eval_labels', 'classifier'),
    ),
    'confusion': EvaluatorEntry(
        'tf2.evaluators.confusion:ConfusionMatrix',
        'Confusion matrix of the classifier.',
        needs=('eval_labels', 'classifier'),
    ),
    'alignment': EvaluatorEntry(
        'tf2.evaluators.alignment:Alignment',
        'Mean squared distance between normalized views of an image (arXiv:2005.10242).',
    ),
    'uniformity': EvaluatorEntry(
        'tf2.evaluators.uniformity:Uniformity',
        'Uniformity of normalized representations; lower is more uniform (arXiv:2005.10242).',
    ),
    'rank': EvaluatorEntry(
        'tf2.evaluators.rank:EffectiveRank',
        'Effective rank of the representation; 1 if it has collapsed (Roy & Vetterli 2007).',
    ),
}
DEFAULT = ','.join(name for name, entry in EVALUATORS.items() if entry.default)


def names_in(text: str) -> list[str]:
    """Parses names separated by commas; returns them in the order of EVALUATORS.

    Raises:
        UserError: if there is no name, or an unknown one.
    """
    asked = [name.strip() for name in text.split(',') if name.strip()]
    unknown = [name for name in asked if name not in EVALUATORS]
    if unknown or not asked:
        raise UserError(
            f'--evaluators must name some of {", ".join(EVALUATORS)}, separated by commas; found '
            f'{(unknown or [text])[0]!r}.'
        )
    return [name for name in EVALUATORS if name in asked]


def fitting(text: str, missing: Iterable[str]) -> str:
    """The evaluators named in `text` that don't need any of `missing`, keys of `NEEDS`."""
    missing = set(missing)
    return ','.join(name for name in names_in(text) if not missing & set(EVALUATORS[name].needs))


def build(inputs: Inputs, names: str = DEFAULT) -> list[Evaluator]:
    """Builds the evaluators in `names` that apply to `inputs`, in the order of EVALUATORS.

    Call it within the strategy's scope. Build evaluators once and run them for every checkpoint, so
    that the model is traced once.
    """
    kinds = [EVALUATORS[name].load() for name in names_in(names)]
    return [kind(inputs) for kind in kinds if kind.applies(inputs)]
