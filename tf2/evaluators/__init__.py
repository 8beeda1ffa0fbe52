"""Measurements of a model. An evaluator is one file here and one line in `EVALUATORS`."""

from __future__ import annotations

from tf2.evaluators.agreement import TeacherAgreement
from tf2.evaluators.base import Evaluator, Inputs
from tf2.evaluators.classification import Classification
from tf2.evaluators.knn import NearestNeighbors

EVALUATORS: dict[str, type[Evaluator]] = {
    'classification': Classification,
    'knn': NearestNeighbors,
    'teacher': TeacherAgreement,
}


def build(inputs: Inputs) -> list[Evaluator]:
    """The evaluators that apply to `inputs`, in the order of EVALUATORS.

    Built once and run for every checkpoint, they trace the model once.
    """
    return [kind(inputs) for kind in EVALUATORS.values() if kind.applies(inputs)]


def run(evaluators: list[Evaluator]) -> dict[str, float]:
    """Runs `evaluators` from `build`.

    Args:
        evaluators: what to measure.

    Returns:
        Name -> value.

    Raises:
        UserError: when an evaluator finds too few labelled examples.
    """
    return dict(pair for evaluator in evaluators for pair in evaluator.run())
