"""The names of a classifier's classes: where they come from, and what has to match them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from app.config.schema import Config
from app.data_checks import RunData
from common.errors import UserError
from data.labels import difference, listed, same_classes, with_class_order
from data.sources.source import Source
from tf2.teacher import Teacher
from tf2.weights import Weights


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a run.

    Attributes:
        source: the data set, with its classes in this order.
        names: by label; None if unknown.
        notes: lines for the user.
        mismatch: why the classifier of `--checkpoint` has other classes; None if it has the same,
            or nothing tells.
    """

    source: Source
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    mismatch: str | None = None


def match_classes(
    config: Config,
    source: Source,
    recorded: Mapping[str, Any] | None,
    teacher: Teacher | None,
    weights: Weights | None,
) -> Classes:
    """Finds the names of the classes, and puts those of the data set in the same order.

    The run's own names take precedence over its teacher's, these over those of the checkpoint it
    starts from, and these over those of the data.

    Raises:
        UserError: if the data set, or the teacher, has other classes.
    """
    own, theirs, loaded = (
        tuple(names) if names else None
        for names in (
            (recorded or {}).get('class_names'),
            teacher and teacher.class_names,
            weights and weights.class_names,
        )
    )
    known, whose = own, f'--model_dir={config.output.model_dir}'
    if theirs:
        path = f'--teacher={teacher.path}'
        known, whose = (known, whose) if known else (theirs, path)
        if theirs != known:
            raise UserError(
                f'{path} must have the classes of {whose}, in the same order: '
                f'{difference(known, theirs)}. Choose the teacher it was trained with.'
            )
    kept = source.class_names
    if not known and loaded and kept and same_classes(loaded, kept):
        known, whose = loaded, f'--checkpoint={weights.path}'
    if known and kept:
        source = with_class_order(source, known, whose)
    names = known or kept
    notes = ()
    if source.class_names != kept:
        notes = (
            f'Classes are numbered as in {whose}: {listed(names)}; {config.data.dataset} has '
            f'{listed(kept)}.',
        )
    mismatch = None
    if loaded and names and loaded != names:
        mismatch = f'its classes are {difference(loaded, names)}'
    return Classes(source, names, notes, mismatch)


def number_of_classes(
    config: Config, data: RunData, teacher: Teacher | None, recorded: Mapping[str, Any] | None
) -> int | None:
    """The number of the classifier's classes; None without a classifier."""
    source = data.source
    if teacher is not None:
        _check_teacher(config, source, teacher)
        return teacher.num_classes
    if config.learning.teacher is not None:
        return _recorded_classes(config, source, recorded or {})
    if config.learning.stage.classifies:
        return source.num_classes
    if not config.learning.lineareval_while_pretraining:
        return None
    # A resumed run keeps the variables it started with.
    begun = recorded is not None and recorded.get('num_classes') is not None
    return source.num_classes if data.train_labels.labeled or begun else None


def _recorded_classes(config: Config, source: Source, recorded: Mapping[str, Any]) -> int | None:
    """The number of classes of a student whose teacher is not opened, as recorded."""
    classes = recorded.get('num_classes', source.num_classes)
    if source.num_classes not in (None, classes):
        raise UserError(
            f'--model_dir={config.output.model_dir} holds a classifier of {classes} classes; '
            f'{source.name} has {source.num_classes}. Choose the data set it was trained on.'
        )
    return classes


def _check_teacher(config: Config, source: Source, teacher: Teacher) -> None:
    if source.num_classes not in (None, teacher.num_classes):
        raise UserError(
            f'--teacher={teacher.path} must have the classes of {source.name}, '
            f'{source.num_classes}; found {teacher.num_classes}. Choose a teacher that was '
            'fine-tuned on this data set.'
        )


def check_recorded(
    class_names: tuple[str, ...] | None, path: str | None, record: Mapping[str, Any] | None
) -> None:
    """Raises UserError if a checkpoint records other classes than the run's.

    Args:
        class_names: of the run; None if unknown.
        path: of the checkpoint; None without one.
        record: see `Checkpoints`.
    """
    names = (record or {}).get('class_names')
    if names and class_names and tuple(names) != class_names:
        raise UserError(
            f'{path} must have the classes of this run, in the same order: '
            f'{difference(names, class_names)}. Choose another --model_dir, or the '
            'data it was trained on.'
        )
