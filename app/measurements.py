"""Checks that a run has what its `--evaluators` need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.config.schema import Config
from app.data_checks import RunData
from common.errors import UserError
from tf2.evaluators import EVALUATORS, NEEDS, names_in


def check_evaluators(
    config: Config,
    given: Mapping[str, Any],
    data: RunData,
    *,
    has_classifier: bool,
    has_teacher: bool,
) -> None:
    """Raises UserError if an evaluator named on the command line lacks something it needs.

    Default evaluators that lack something are skipped silently.
    """
    chosen = given.get('evaluators')
    if chosen is None or not config.run.does.measures:
        return
    learns = data.train_labels.labeled > 0 or config.learning.stage.classifies
    there = {
        'eval_labels': data.measures_accuracy,
        'train_labels': data.train_labels.labeled > 0,
        'classifier': has_classifier and learns,
        'neighbors': config.evaluation.knn_neighbors > 0,
        'teacher': has_teacher,
    }
    for name in names_in(chosen):
        for need in EVALUATORS[name].needs:
            if not there[need]:
                raise UserError(
                    f'--evaluators={name} needs {NEEDS[need]}; found none. Give it, or leave '
                    f'{name} out of --evaluators.'
                )
    if 'knn_neighbors' in given and 'knn' not in names_in(chosen):
        raise UserError(
            f'--knn_neighbors is read with knn among --evaluators only; found '
            f'--evaluators={chosen}. Leave it out, or add knn.'
        )
