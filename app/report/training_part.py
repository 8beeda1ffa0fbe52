"""How a training went: curves, and what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from matplotlib.figure import Figure

from app.report import figures, markup, predictions
from app.report.figures import Curve
from app.report.markup import text
from app.report.runs import Run, percent


def curves(run: Run) -> str:
    """Losses, accuracies, learning rate and speed over the steps, as HTML."""
    scalars, title = run.events.scalars, run.planned.title
    drawn = [
        _figure(figures.curves(scalars, figures.LOSSES), 'loss', f'Losses of {title}'),
        _figure(figures.curves(scalars, figures.ACCURACIES), 'accuracy', f'Accuracies of {title}'),
        _figure(figures.curves(scalars, figures.RATES), 'learning rate', 'Learning rate'),
        _figure(figures.curves(scalars, figures.SPEEDS), 'images per second', 'Speed'),
    ]
    plots = ''.join(drawn) or '<p>This stage wrote no curves.</p>'
    damaged = ''.join(
        f'<p class="quiet">The end of {text(name)} can’t be read, as after a process was killed: '
        'the curves may lack points.</p>'
        for name in run.events.damaged
    )
    return f'<div class="curves">{plots}</div>{damaged}'


def _figure(drawn: Sequence[Curve], axis: str, title: str) -> str:
    if not drawn:
        return ''
    share = axis == 'accuracy'
    ends = [(curve.label, list(curve.points.values())[-1]) for curve in drawn]
    values = ', '.join(
        f'{label.replace(",", " in")} {percent(end) if share else _number(end)}'
        for label, end in ends
    )
    caption = f'{title}. At the end: {values}.'
    figure = figures.curve_figure(drawn, title=axis, share=share)
    image = svg(figure, f'Curves over steps. {caption}')
    return f'<figure>{image}<figcaption>{text(caption)}</figcaption></figure>'


def _number(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def svg(figure: Figure, alt: str) -> str:
    """A figure as a part of the page."""
    return markup.image(figures.to_svg(figure).encode(), 'svg+xml', alt)


def views(run: Run) -> str:
    """The images that the run was trained on, as HTML; nothing if it kept none."""
    if not run.events.views:
        return ''
    pictures, count, small = [], 1, False
    for number, encoded in enumerate(run.events.views, 1):
        image = tf.image.convert_image_dtype(tf.io.decode_png(encoded, 3), tf.float32)
        height, width = image.shape[:2]
        count, small = max(1, width // height), height <= markup.LOSSLESS
        # Each view, not the strip of all, becomes a thumbnail.
        parts = tf.stack(tf.split(image, count, axis=1))
        strip = tf.concat(list(predictions.thumbnails(parts.numpy())), axis=1)
        pictures.append(markup.picture(strip, f'Training image {number} as the network sees it'))
    what = 'one random view of each image'
    if count > 1:
        what = f'{"two" if count == 2 else count} random views of each image, side by side'
    kind = f'views{"" if count > 1 else " single"}{" small" if small else ""}'
    caption = f'What {run.planned.title} trains on: {what}.'
    return (
        '<h3>Sample views</h3>\n'
        f'<figure><div class="{kind}">{"".join(pictures)}</div>'
        f'<figcaption>{text(caption)}</figcaption></figure>'
    )
