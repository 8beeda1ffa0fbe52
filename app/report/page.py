"""The page: one HTML file, without other files, network or scripts."""

from __future__ import annotations

import os
from collections.abc import Sequence

import tensorflow as tf

from app.experiment import check_recorded_data
from app.planned_run import PlannedRun
from app.report import (
    data_part,
    images_part,
    markup,
    measurements,
    next_steps,
    predictions,
    runs,
    summary,
    training_part,
)
from app.report.predictions import Study
from app.report.runs import Run
from app.report.settings import settings
from common.errors import UserError, printable
from common.file_names import REPORT_FILE
from data.failures import as_user_errors
from data.sources import Source, open_source
from tf2 import distribution
from tf2.files import write_text, writing


def report_on(folder: str, plan: Sequence[PlannedRun], source: Source | None = None) -> None:
    """Writes `report.html` to `folder` and prints its path.

    What a user can mend must not turn a finished training into a failure: it is printed, and the
    same command tries again.

    Args:
        folder: of a run, or of a pipeline.
        plan: see `write_report`.
        source: see `write_report`.
    """
    path = os.path.join(folder, REPORT_FILE)
    advice = 'Run the same command again, or leave the report out with --report=False.'
    try:
        with distribution.within_memory('report', plan[-1].folder, advice), writing(folder):
            write_report(path, plan, source)
    except UserError as error:
        print(
            'The training is complete and its results are written. Only the report is missing: '
            f'{printable(str(error))} The same command tries again.',
            flush=True,
        )
        return
    print(f'Report: {path}', flush=True)


def write_report(path: str, plan: Sequence[PlannedRun], source: Source | None = None) -> None:
    """Writes the page about a run, or about those of a pipeline, to `path`, whole or not at all.

    It takes one pass of the exported network over a bounded number of images, see `predictions`,
    and seconds for the map and the figures. For the demo that is 9 s of processor time and 200 MB
    of memory, and the page has 0.6 MB.

    Args:
        path: of the page; its folder is made if it isn't there.
        plan: in the order in which they ran, at least one. Neighbors and map are those of the first
            run that pretrains, the confusion matrix is that of the last run.
        source: the data set of the last run, if it is open; default: it is opened.

    Raises:
        UserError: if a folder holds no run, or its data set isn't prepared or can't be read.
    """
    if not plan:
        raise UserError('A report needs at least one run; found none.')
    read = [runs.read_run(planned) for planned in plan]
    if source is None:
        # The folder may come from elsewhere.
        check_recorded_data(read[-1].config, given={})
        source = open_source(read[-1].config.data)
    with as_user_errors(source):
        page = _page(read, source)
    if os.path.dirname(path):
        tf.io.gfile.makedirs(os.path.dirname(path))
    write_text(path, page)


def _page(read: Sequence[Run], source: Source) -> str:
    last = read[-1]
    pretrained = next((run for run in read if not run.stage.classifies), read[0])
    study = _study(last, source)
    encoder = study if pretrained is last else _study(pretrained, source)
    own = predictions.source_of(pretrained, source)
    several = len(read) > 1
    data = last.config.data.own_images or source.name
    title = f'{"SimCLR" if several else last.planned.title} on {data}'
    body = [
        f'<h1>{markup.text(title)}</h1>',
        *(_overview(read) if several else [summary.summary(last), _settings(last)]),
        data_part.data_part(last, source),
        *(_stage(run, folded=several) for run in read),
        images_part.confusion(last, study, source),
        images_part.neighbors(pretrained, encoder, own),
        images_part.image_map(pretrained, encoder, own),
        _commands(read),
    ]
    return markup.document(title, body)


def _study(run: Run, source: Source) -> Study | None:
    return predictions.study(run, predictions.source_of(run, source))


def _overview(read: Sequence[Run]) -> list[str]:
    rows = runs.rows_of(read)
    lines = [_line(runs.cells(row)) for row in rows]
    notes = [f'{row.title}: {row.note}.' for row in rows if row.note]
    notes += [
        'Top-1: share of the evaluation images that were classified correctly, at the end.',
        'Parameters: of encoder and projection head in pretraining; later of encoder and '
        'classifier.',
        'Time: training with its evaluations, without pauses between sessions.',
        'The folder of each stage has a report.html of its own, with more about it.',
    ]
    listed = ''.join(f'<li>{markup.text(note)}</li>' for note in notes)
    return [
        f'<h2>Results</h2>\n{markup.table("Results", runs.COLUMNS, lines)}\n'
        f'<ul class="notes">{listed}</ul>'
    ]


def _line(cells: Sequence[str]) -> str:
    title, *others = map(markup.text, cells)
    top = runs.COLUMNS.index('Top-1') - 1
    marked = [f'<td{" class=top" if i == top else ""}>{cell}</td>' for i, cell in enumerate(others)]
    return f'<tr><th scope="row">{title}</th>{"".join(marked)}</tr>\n'


def _settings(run: Run) -> str:
    return (
        '<h2>Settings</h2>\n<p>Those that differ from the defaults; flags.json in the folder of '
        f'the run has all of them.</p>\n{settings(run)}'
    )


def _stage(run: Run, *, folded: bool) -> str:
    """How the training of a run went; among several runs, with its settings folded away."""
    config = run.config
    steps = max((step for points in run.events.scalars.values() for step in points), default=0)
    words = (
        f'{steps:,} steps of {config.train.train_batch_size:,} images; '
        f'{config.optimizer.optimizer}, learning rate {config.optimizer.learning_rate:g}'
    )
    if run.stage.has_teacher:
        words += (
            f'; weight of the teacher {run.values.get("distill_alpha", 1):g}, '
            f'temperature {run.values.get("distill_temperature", 1):g}'
        )
    title = run.planned.title if folded else 'How the training went'
    other = markup.folded('Settings that differ from the defaults', settings(run)) if folded else ''
    return (
        f'<h2>{markup.text(title)}</h2>\n<p class="quiet">{markup.text(words)}</p>\n'
        f'{training_part.curves(run)}\n{_measured(run) if folded else ""}'
        f'{training_part.views(run)}{other}'
    )


def _measured(run: Run) -> str:
    """The numbers in `result.json`, and accuracies per class if there are any."""
    lines = [
        ('Last evaluation', measurements.numbers(run.result)),
        ('Accuracy per class', measurements.by_class(run.details)),
    ]
    return ''.join(f'<p>{title}: {markup.text(text)}.</p>\n' for title, text in lines if text)


def _commands(read: Sequence[Run]) -> str:
    repeat = [(run.planned.title, run.planned.command) for run in read]
    steps = next_steps.steps_of(read[-1])
    if len(read) == 1:
        resume = 'Resume it, or train it for longer with another --train_epochs'
        return markup.commands('How to go on', [(resume, repeat[0][1]), *steps])
    following = markup.commands(f'How to go on from {read[-1].planned.title}', steps)
    return f'{markup.commands("To repeat each stage", repeat)}\n{following}'
