"""The stages of a pipeline, and the table of what each cost and reached."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from app.config.resolution import from_values
from app.config.schema import TRAIN_EXAMPLES, Config
from app.evaluate import TOP_1
from app.report.events import Events, read_events
from app.run_folder import read_details, read_flags, read_result
from common.errors import UserError
from common.file_names import FLAGS_FILE, LABELS_FILE
from common.stages import Stage
from tf2.methods import make_head
from tf2.models.encoder import SimCLRModel, build_model, freeze


@dataclasses.dataclass(frozen=True)
class PipelineRun:
    """One training of the pipeline.

    Attributes:
        name: 'pretrain', 'finetune', 'self_distill' or 'student'.
        title: for people: 'Pretraining'.
        folder: its model_dir.
        command: the command line that repeats it.
    """

    name: str
    title: str
    folder: str
    command: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: its title.
        network: 'ResNet-18 (width 0.25)'.
        parameters: trainable ones, see `count_parameters`.
        labels: labeled examples that trained the network; 0 for pretraining.
        through_teacher: where `labels` is 0, those that trained its teacher or the teacher's.
        top_1: accuracy on the evaluation split at the end, in [0, 1]; None without a classifier.
        seconds: see `report.events`.
        note: what one must know to read the line; may be empty.
    """

    stage: str
    network: str
    parameters: int
    labels: int
    through_teacher: int
    top_1: float | None
    seconds: float
    note: str


# What matters most stands first: on a phone the others are scrolled to.
COLUMNS = ('Stage', 'Top-1', 'Labels used', 'Parameters', 'Network', 'Time')


@dataclasses.dataclass(frozen=True)
class Run:
    """All that is read from a stage's folder.

    Attributes:
        stage: whose it is.
        values: `flags.json`.
        config: the same as settings.
        result: `result.json`; empty if the stage was not evaluated.
        details: `details.json`; empty if there is no such file.
        events: what it wrote for TensorBoard.
    """

    stage: PipelineRun
    values: Mapping[str, Any]
    config: Config
    result: Mapping[str, Any]
    details: Mapping[str, Any]
    events: Events

    @property
    def kind(self) -> Stage:
        """The stage of training that it is."""
        return self.config.learning.stage

    @property
    def top_1(self) -> float | None:
        """Accuracy at the end, not the best one on the way; None if there is none."""
        return self.result.get(TOP_1)


def read_run(stage: PipelineRun) -> Run:
    """Reads a stage's folder, but no model.

    Raises:
        UserError: if no training run left its settings there.
    """
    values = read_flags(stage.folder, need=('num_classes', TRAIN_EXAMPLES))
    if values is None:
        raise UserError(
            f'The report needs the runs of all stages; found no {FLAGS_FILE} in '
            f'{stage.folder}, the folder of {stage.title}.'
        )
    result = read_result(stage.folder)
    config = from_values(values)
    details = read_details(stage.folder)
    return Run(stage, values, config, result, details, read_events(stage.folder))


def table(stages: Sequence[PipelineRun]) -> list[Row]:
    """One row a stage, from their folders only.

    Raises:
        UserError: if a folder holds no run.
    """
    return rows_of([read_run(stage) for stage in stages])


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """The rows of `table`, from what was read."""
    rows, known = [], 0
    for run in runs:
        labels = labels_used(run)
        through = known if run.kind.has_teacher and known > labels else 0
        known = max(labels, through)
        rows.append(
            Row(
                stage=run.stage.title,
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
    """Labeled examples that a stage itself learned from."""
    if not run.config.learning.learns_from_labels:
        return 0
    path = os.path.join(run.stage.folder, LABELS_FILE)
    if not tf.io.gfile.exists(path):
        return run.values[TRAIN_EXAMPLES]
    with tf.io.gfile.GFile(path) as file:
        return len(file.read().splitlines())


def count_parameters(run: Run) -> int:
    """Trainable parameters: what the stage's result is computed with.

    After pretraining that is encoder and projection head; else encoder, the layers of the head
    that the classifier reads, and the classifier. Freezing some of them changes nothing here.
    """
    classes = run.values['num_classes'] if run.kind.classifies else None
    config, head = run.config, make_head(run.config.learning.method)
    # A graph has variables without values: nothing is drawn or kept, however large the network.
    with tf.Graph().as_default():
        model = build_model(
            SimCLRModel(config.model, config.data.image_size, classes, make_head=head)
        )
        if run.kind.classifies:
            freeze(model, -1)
        return sum(variable.shape.num_elements() for variable in model.trainable_variables)


def _note(run: Run) -> str:
    parts = []
    neighbors, teacher = (
        run.result.get(f'eval/{name}') for name in ('knn_accuracy', 'teacher_top_1_accuracy')
    )
    if not run.kind.classifies and run.top_1 is not None:
        parts.append('top-1 of a linear classifier trained alongside on all labels')
    frozen, blocks = run.config.learning.fine_tune_after_block, run.config.model.blocks
    if run.kind.needs_labels and frozen >= blocks:
        parts.append('only the linear classifier was trained')
    if neighbors is not None:
        parts.append(f'nearest neighbors {percent(neighbors)}')
    if teacher is not None:
        parts.append(f'top-1 of its teacher {percent(teacher)}')
    return '; '.join(parts)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one entry for each of COLUMNS."""
    labels = f'{row.labels:,}'
    if row.through_teacher:
        labels = f'{row.through_teacher:,} (through the teacher)'
    return (
        row.stage,
        percent(row.top_1),
        labels,
        f'{row.parameters:,}',
        row.network,
        duration(row.seconds),
    )


def format_table(rows: Sequence[Row]) -> str:
    """The table as plain text: a heading, a line for each row, then the notes."""
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    # The stage to the left, numbers to the right.
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    notes = [f'{row.stage}: {row.note}.' for row in rows if row.note]
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
