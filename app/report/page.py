"""The page: one HTML file, without other files, network or scripts."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence

import tensorflow as tf
from matplotlib.figure import Figure

from app.experiment import check_recorded_data
from app.planned_run import PlannedRun
from app.report import figures, markup, measurements, predictions, runs
from app.report.figures import Curve
from app.report.predictions import Neighborhood, Picture
from app.report.runs import Run, percent
from common.errors import UserError
from data.sources import NO_LABEL, Source, open_source
from tf2.files import write_text


def write_report(path: str, plan: Sequence[PlannedRun]) -> None:
    """Writes the page about the runs of a pipeline to `path`, whole or not at all.

    Args:
        path: of the page; its folder is made if it isn't there.
        plan: in the order in which they ran, at least one. Neighbors are those of the first run
            that pretrains, the confusion matrix is that of the last run.

    Raises:
        UserError: if a folder holds no run, or its data set isn't prepared or can't be read.
    """
    if not plan:
        raise UserError('A report needs at least one run; found none.')
    read = [runs.read_run(planned) for planned in plan]
    # The folder may come from elsewhere.
    check_recorded_data(read[-1].config, given={})
    page = _page(read, open_source(read[-1].config.data))
    if os.path.dirname(path):
        tf.io.gfile.makedirs(os.path.dirname(path))
    write_text(path, page)


def _page(read: Sequence[Run], source: Source) -> str:
    pretrained = next((run for run in read if not run.stage.classifies), read[0])
    body = [
        f'<h1>SimCLR on {html.escape(source.name)}</h1>',
        _facts(read[-1], source),
        _table(read),
        *(_stage(run) for run in read),
        _confusion(read[-1], source),
        _neighbors(pretrained, predictions.neighborhoods(pretrained, source), source),
        _commands(read),
    ]
    return markup.document(f'SimCLR on {source.name}', body)


def _facts(run: Run, source: Source) -> str:
    data = run.config.data
    classes = f'{source.num_classes} classes' if source.num_classes else 'no labels'
    train, test = (source.num_examples(split) for split in (data.train_split, data.eval_split))
    text = (
        f'{classes}; {train:,} training images ({data.train_split}) and {test:,} for evaluation '
        f'({data.eval_split}), seen at {data.image_size} × {data.image_size} pixels.'
    )
    return f'<p>{html.escape(text)}</p>'


def _table(read: Sequence[Run]) -> str:
    rows = runs.rows_of(read)
    lines = [_line(runs.cells(row)) for row in rows]
    notes = [f'{row.title}: {row.note}.' for row in rows if row.note]
    notes += [
        'Top-1: share of the evaluation images that were classified correctly, at the end.',
        'Parameters: of encoder and projection head in pretraining; later of encoder and '
        'classifier.',
        'Time: training with its evaluations, without pauses between sessions.',
    ]
    listed = ''.join(f'<li>{html.escape(note)}</li>' for note in notes)
    return (
        f'<h2>Results</h2>\n{markup.table("Results", runs.COLUMNS, lines)}\n'
        f'<ul class="notes">{listed}</ul>'
    )


def _line(cells: Sequence[str]) -> str:
    title, *others = map(html.escape, cells)
    top = runs.COLUMNS.index('Top-1') - 1
    marked = [f'<td{" class=top" if i == top else ""}>{cell}</td>' for i, cell in enumerate(others)]
    return f'<tr><th scope="row">{title}</th>{"".join(marked)}</tr>\n'


def _stage(run: Run) -> str:
    scalars, title = run.events.scalars, run.planned.title
    drawn = [
        _curves(figures.curves(scalars, figures.LOSSES), title, share=False),
        _curves(figures.curves(scalars, figures.ACCURACIES), title, share=True),
    ]
    plots = ''.join(drawn) or '<p>This stage wrote no curves.</p>'
    settings = run.config
    steps = max((step for points in scalars.values() for step in points), default=0)
    text = (
        f'{steps:,} steps of {settings.train.train_batch_size:,} images; '
        f'{settings.optimizer.optimizer}, learning rate {settings.optimizer.learning_rate:g}'
    )
    if run.stage.has_teacher:
        text += (
            f'; weight of the teacher {run.values.get("distill_alpha", 1):g}, '
            f'temperature {run.values.get("distill_temperature", 1):g}'
        )
    return (
        f'<h2>{html.escape(title)}</h2>\n<p class="quiet">{html.escape(text)}</p>\n'
        f'<div class="curves">{plots}</div>\n{_measured(run)}{_views(run)}'
    )


def _measured(run: Run) -> str:
    """The numbers in `result.json`, and accuracies per class if there are any."""
    lines = [
        ('Last evaluation', measurements.numbers(run.result)),
        ('Accuracy per class', measurements.by_class(run.details)),
    ]
    return ''.join(f'<p>{title}: {html.escape(text)}.</p>\n' for title, text in lines if text)


def _curves(drawn: Sequence[Curve], stage: str, *, share: bool) -> str:
    if not drawn:
        return ''
    ends = [(curve.label, list(curve.points.values())[-1]) for curve in drawn]
    values = ', '.join(
        f'{label.replace(",", " in")} {percent(end) if share else f"{end:.3g}"}'
        for label, end in ends
    )
    caption = f'{"Accuracies" if share else "Losses"} of {stage}. At the end: {values}.'
    figure = figures.curve_figure(drawn, title='accuracy' if share else 'loss', share=share)
    image = _figure_image(figure, f'Curves over steps. {caption}')
    return f'<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>'


def _figure_image(figure: Figure, alt: str) -> str:
    return markup.image(figures.to_svg(figure).encode(), 'svg+xml', alt)


def _views(run: Run) -> str:
    if not run.events.views:
        return ''
    pictures, count, small = [], 1, False
    for number, encoded in enumerate(run.events.views, 1):
        image = tf.image.convert_image_dtype(tf.io.decode_png(encoded, 3), tf.float32)
        height, width = image.shape[:2]
        count, small = max(1, width // height), height <= markup.LOSSLESS
        # Each view, not the strip of all, becomes a thumbnail.
        views = tf.stack(tf.split(image, count, axis=1))
        strip = tf.concat(list(predictions.thumbnails(views.numpy())), axis=1)
        pictures.append(markup.picture(strip, f'Training image {number} as the network sees it'))
    what = 'one random view of each image'
    if count > 1:
        what = f'{"two" if count == 2 else count} random views of each image, side by side'
    kind = f'views{"" if count > 1 else " single"}{" small" if small else ""}'
    caption = f'What {run.planned.title} trains on: {what}.'
    return (
        f'<figure><div class="{kind}">{"".join(pictures)}</div>'
        f'<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _confusion(run: Run, source: Source) -> str:
    heading = '<h2>Which classes are confused</h2>\n'
    found = predictions.confusion(run, predictions.source_of(run, source))
    if found is None:
        return heading + (
            '<p>There is no confusion matrix: it takes labels in the evaluation split, and an '
            'exported network with a classifier.</p>'
        )
    total, right = int(found.counts.sum()), int(found.counts.trace())
    caption = (
        f'{run.planned.title} on the split {run.config.data.eval_split}: number of images by true '
        f'class (rows) and predicted class (columns). {right:,} of {total:,} are correct, '
        f'{percent(found.accuracy)}. The darker, the larger the share of the row.'
    )
    if percent(run.top_1) != percent(found.accuracy):
        precision = run.config.train.mixed_precision
        caption += f' The stage itself measured {percent(run.top_1)}'
        rounds = f', in {precision}; the exported network computes in float32.'
        caption += '.' if precision == 'float32' else rounds
    image = _figure_image(figures.confusion_figure(found), f'Confusion matrix. {caption}')
    large = ' large' if len(found.names) > 12 else ''
    return (
        f'{heading}<figure><div class="matrix{large}">{image}</div>'
        f'<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _neighbors(run: Run, found: Sequence[Neighborhood], source: Source) -> str:
    heading = '<h2>Nearest neighbors of the encoder</h2>\n'
    if not found:
        return f'{heading}<p>{html.escape(run.planned.title)} exported no network.</p>'
    names = predictions.class_names(source)
    small = ' small' if found[0].query.pixels.shape[0] <= markup.LOSSLESS else ''
    searched = min(source.num_examples(run.config.data.train_split), predictions.SEARCHED)
    nearest = len(found[0].neighbors)
    caption = (
        f'Images of the split {run.config.data.eval_split}, each followed by the {nearest} '
        f'nearest of {searched:,} training images: highest cosine similarity of the features after '
        f'{run.planned.title}.'
    )
    known = any(predictions.same_class(n.query, p) is not None for n in found for p in n.neighbors)
    if known:
        caption += ' A solid green border and ✓ mark the class of the first image, a dashed red '
        caption += 'one and ✗ another class.'
    rows = ''.join(_neighborhood(neighborhood, names) for neighborhood in found)
    return (
        f'{heading}<figure><div class="neighbors{small}">{rows}</div>'
        f'<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _neighborhood(found: Neighborhood, names: Sequence[str]) -> str:
    def name(picture: Picture) -> str:
        return '' if picture.label == NO_LABEL else names[picture.label]

    query = name(found.query)
    parts = [
        _cell('query', markup.picture(found.query.pixels, f'Evaluation image: {query}'), query)
    ]
    for picture, similarity in zip(found.neighbors, found.similarities):
        same = predictions.same_class(found.query, picture)
        kind, mark = {True: ('right', '✓ '), False: ('wrong', '✗ '), None: ('', '')}[same]
        alt = f'Training image: {name(picture)}, similarity {similarity:.2f}'
        parts.append(_cell(kind, markup.picture(picture.pixels, alt), f'{mark}{name(picture)}'))
    return ''.join(parts)


def _cell(kind: str, image: str, text: str) -> str:
    return f'<div class="{kind}">{image}{html.escape(text)}</div>'


def _commands(read: Sequence[Run]) -> str:
    parts = [
        f'<h3>{html.escape(run.planned.title)}</h3>\n<pre>{html.escape(run.planned.command)}</pre>'
        for run in read
    ]
    return '<h2>To repeat each stage</h2>\n' + '\n'.join(parts)
