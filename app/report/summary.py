"""What a run was and what came of it, in words for newcomers."""

from __future__ import annotations

import os

from app.evaluate import TOP_1
from app.report import markup, measurements
from app.report.markup import text
from app.report.runs import Run, count_parameters, duration, labels_used, percent

_NEIGHBORS = 'eval/knn_accuracy'
_TILES = 4  # accuracies, at most
_WORDS = {TOP_1: 'classified correctly', _NEIGHBORS: 'by nearest neighbors'}
_WORDS_BESIDE = {TOP_1: 'by a linear classifier'}  # which was trained alongside


def summary(run: Run) -> str:
    """What the run was, its main figures, and all of its results, as HTML."""
    shown = [
        f'<p>{text(run.stage.about)}</p>',
        f'<p><b>{text(_main_sentence(run))}</b></p>',
        markup.tiles(_tiles(run)),
        f'<h2>Results</h2>\n{_results(run)}',
        f'<h2>What was trained</h2>\n{_facts(run)}',
    ]
    return '\n'.join(shown)


def _main_sentence(run: Run) -> str:
    """The main figure in words."""
    chance = _chance(run)
    guess = f' Guessing would give {chance}.' if chance else ''
    neighbors, top_1 = run.result.get(_NEIGHBORS), run.top_1
    if run.stage.classifies and top_1 is not None:
        return f'It classifies {percent(top_1)} of the evaluation images correctly.{guess}'
    if neighbors is not None:
        return (
            f'{percent(neighbors)} of the evaluation images get the right class if they get that '
            f'of the training images which the encoder finds most similar.{guess}'
        )
    if top_1 is not None:
        return (
            f'A linear classifier on top of the encoder classifies {percent(top_1)} of the '
            f'evaluation images correctly.{guess}'
        )
    if not run.result:
        return (
            'It was trained, but not evaluated: the curves below show how the training went. A '
            'command at the end of this page evaluates it; the one that resumes the run then '
            'writes this page anew.'
        )
    return 'There is no accuracy, as that takes labels: see the curves and the images below.'


def _chance(run: Run) -> str:
    classes = run.values.get('num_classes')
    return f'{100 / classes:.3g}%' if classes else ''


def _tiles(run: Run) -> list[tuple[str, str]]:
    first = [TOP_1] if run.stage.classifies else [_NEIGHBORS, TOP_1]
    shares = [key for key in run.result if key.startswith('eval/') and key.endswith('_accuracy')]
    order = [*first, *(key for key in shares if key not in first)]
    shown = [key for key in order if run.result.get(key) is not None][:_TILES]
    words = _WORDS if run.stage.classifies else {**_WORDS, **_WORDS_BESIDE}
    tiles = [
        (measurements.formatted(key, run.result[key]), words.get(key, measurements.title_of(key)))
        for key in shown
    ]
    losses = run.events.scalars.get('train/total_loss', {})
    if losses:
        tiles.append((f'{list(losses.values())[-1]:.3g}', 'loss at the end'))
    if run.events.seconds:
        tiles.append((duration(run.events.seconds), 'of training and evaluation'))
    return tiles


def _results(run: Run) -> str:
    rows = measurements.rows_of(run.result)
    if not rows:
        return '<p>There are no measurements: the run was not evaluated.</p>'
    lines = [markup.row(name, [value, meaning]) for name, value, meaning in rows]
    columns = ('Measurement', 'Value', 'Meaning')
    table = markup.table('Results', columns, lines)
    return f'<div class="left results">{table}</div>\n{_best(run)}'


def _best(run: Run) -> str:
    best, step = (run.result.get(f'best/{name}') for name in (TOP_1, 'global_step'))
    if best is None or run.top_1 is None or best <= run.top_1:
        return ''
    words = (
        f'On the way top-1 was {percent(best)}, at step {step:,.0f}. The end of the training is '
        'exported, not that step.'
    )
    return f'<p class="quiet">{text(words)}</p>'


def _facts(run: Run) -> str:
    config = run.config
    learning, train = config.learning, config.train
    method = '' if run.stage.classifies else f'{learning.method}: '
    steps = max((step for points in run.events.scalars.values() for step in points), default=0)
    facts = {
        'Stage': f'{run.planned.title}, --train_mode={learning.train_mode}',
        'Method': f'{method}{learning.entry.summary}',
        'Network': f'{config.model.title}, {count_parameters(run):,} parameters with its '
        f'{"classifier" if run.stage.classifies else "projection head"}',
        'Started from': learning.checkpoint or 'random weights',
        'Teacher': learning.teacher if run.stage.has_teacher else None,
        'Labels used': f'{labels_used(run):,}',
        'Length': f'{steps:,} steps of {train.train_batch_size:,} images',
        'Optimizer': f'{config.optimizer.optimizer}, learning rate '
        f'{config.optimizer.learning_rate:g}',
        'Precision': train.mixed_precision,
        'Folder': os.path.abspath(run.planned.folder)
        if '://' not in run.planned.folder
        else run.planned.folder,
    }
    lines = [markup.row(name, [value]) for name, value in facts.items() if value]
    return f'<div class="left facts">{markup.table("What was trained", (), lines)}</div>'
