"""Reads runs, and compares their results and costs in a table."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from app.config.resolution import from_values
from app.config.schema import TRAIN_EXAMPLES, Config
from app.evaluate import TOP_1
from app.planned_run import PlannedRun
from app.report.events import Events, read_events
from app.run_folder import read_data, read_details, read_flags, read_result
from common.errors import UserError
from common.file_names import FLAGS_FILE, LABELS_FILE
from common.stages import Stage
from tf2.config import ModelConfig
from tf2.methods import make_head
from tf2.models.encoder import SimCLRModel, build_model, freeze


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: of the run.
        network: 'ResNet-18 (width 0.25)'.
        parameters: trainable ones, see `count_parameters`.
        labels: labeled examples that the network was trained on; 0 for pretraining.
        through_teacher: labeled examples that its teacher, or that one's teacher, was trained on,
            if these are more than `labels`; else 0.
        top_1: accuracy on the evaluation split at the end, in [0, 1]; None without a classifier.
        seconds: see `report.events`.
        note: how to read the line; may be empty.
    """

    title: str
    network: str
    parameters: int
    labels: int
    through_teacher: int
    top_1: float | None
    seconds: float
    note: str


# The most important columns come first, because a phone shows only these without scrolling.
COLUMNS = ('Stage', 'Top-1', 'Labels used', 'Parameters', 'Network', 'Time')


@dataclasses.dataclass(frozen=True)
class Run:
    """What the folder of a run holds.

    Attributes:
        planned: the run.
        values: `flags.json`.
        config: the settings in `values`.
        result: `result.json`; empty if the run was not evaluated.
        details: `details.json`; empty if there is no such file.
        data: `data.json`; None if there is no such file.
        events: what it wrote for TensorBoard.
    """

    planned: PlannedRun
    values: Mapping[str, Any]
    config: Config
    result: Mapping[str, Any]
    details: Mapping[str, Any]
    data: Mapping[str, Any] | None
    events: Events

    @property
    def stage(self) -> Stage:
        """The stage of training."""
        return self.config.learning.stage

    @property
    def top_1(self) -> float | None:
        """Accuracy at the end, which may be lower than the best one; None if there is none."""
        return self.result.get(TOP_1)


def read_run(planned: PlannedRun) -> Run:
    """Reads the folder of a run, but no model.

    Raises:
        UserError: if there is no run.
    """
    folder = planned.folder
    values = read_flags(folder, need=('num_classes', TRAIN_EXAMPLES))
    if values is None:
        raise UserError(
            f'The report needs the runs of all stages; found no {FLAGS_FILE} in {folder}, the '
            f'folder of {planned.title}.'
        )
    events = read_events(folder)
    config, result, details = from_values(values), read_result(folder), read_details(folder)
    return Run(planned, values, config, result, details, read_data(folder), events)


def table(plan: Sequence[PlannedRun]) -> list[Row]:
    """One row for each run, read from its folder.

    Raises:
        UserError: if a folder holds no run.
    """
    return rows_of([read_run(planned) for planned in plan])


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """The rows of `table` for runs that were read already."""
    rows, known = [], 0
    for run in runs:
        labels = labels_used(run)
        through = known if run.stage.has_teacher and known > labels else 0
        known = max(labels, through)
        rows.append(
            Row(
                title=run.planned.title,
                network=run.config.model.title,
                parameters=count_parameters(run),
                labels=labels,
                through_teacher=through,
                top_1=run.top_1,
                seconds=run.events.seconds,
                note=_note(run),
            )
        )
    return rows


def labels_used(run: Run) -> int:
    """The number of labeled examples that the network itself was trained on."""
    if not run.config.learning.learns_from_labels:
        return 0
    path = os.path.join(run.planned.folder, LABELS_FILE)
    if not tf.io.gfile.exists(path):
        return run.values[TRAIN_EXAMPLES]
    with tf.io.gfile.GFile(path) as file:
        return len(file.read().splitlines())


def count_parameters(run: Run) -> int:
    """The number of parameters of the network, frozen ones included, moving statistics not.

    After pretraining, these are encoder and projection head; in later stages the encoder, the
    layers of the head that the classifier reads, and the classifier.
    """
    config = run.config
    classes = run.values['num_classes'] if run.stage.classifies else None
    return parameters_of(config.model, config.data.image_size, classes, config.learning.method)


@functools.lru_cache(maxsize=16)  # the table and the page ask for the same networks
def parameters_of(model: ModelConfig, image_size: int, classes: int | None, method: str) -> int:
    """The number of parameters that `count_parameters` counts.

    Args:
        model: architecture.
        image_size: in pixels.
        classes: of the classifier; None counts encoder and projection head instead.
        method: of the pretraining, which determines the projection head.
    """
    # Variables in a graph have no values, so even a large network takes no memory.
    with tf.Graph().as_default():
        network = build_model(SimCLRModel(model, image_size, classes, make_head=make_head(method)))
        if classes is not None:
            freeze(network, -1)
        return sum(variable.shape.num_elements() for variable in network.trainable_variables)


def _note(run: Run) -> str:
    parts = []
    neighbors, teacher = (
        run.result.get(f'eval/{name}') for name in ('knn_accuracy', 'teacher_top_1_accuracy')
    )
    if not run.stage.classifies and run.top_1 is not None:
        parts.append('top-1 of a linear classifier trained alongside on all labels')
    frozen, blocks = run.config.learning.fine_tune_after_block, run.config.model.blocks
    if run.stage.needs_labels and frozen >= blocks:
        parts.append('only the linear classifier was trained')
    if neighbors is not None:
        parts.append(f'nearest neighbors {percent(neighbors)}')
    if teacher is not None:
        parts.append(f'top-1 of its teacher {percent(teacher)}')
    return '; '.join(parts)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one string for each of COLUMNS."""
    labels = f'{row.labels:,}'
    if row.through_teacher:
        labels = f'{row.through_teacher:,} (through the teacher)'
    return (
        row.title,
        percent(row.top_1),
        labels,
        f'{row.parameters:,}',
        row.network,
        duration(row.seconds),
    )


def format_table(rows: Sequence[Row]) -> str:
    """The table as plain text: headings, rows, then notes."""
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    # The title is left-aligned, the rest right-aligned.
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    notes = [f'{row.title}: {row.note}.' for row in rows if row.note]
    return '\n'.join([*('  '.join(line).rstrip() for line in aligned), *notes])


def percent(share: float | None) -> str:
    """0.8485 as '84.85%'; a dash for None."""
    return '–' if share is None else f'{100 * share:.2f}%'


def duration(seconds: float) -> str:
    """'27 s', '14 min 25 s' or '2 h 05 min'."""
    whole = round(seconds)
    if whole < 60:
        return f'{whole} s'
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f'{minutes} min {rest:02d} s'
    return f'{minutes // 60} h {minutes % 60:02d} min'
