"""What a network makes of images: confused classes, nearest neighbors, and a map."""

from __future__ import annotations

from collections.abc import Sequence

from app.report import embedding_map, figures, markup, predictions
from app.report.markup import text
from app.report.predictions import ClassResult, Neighborhood, Picture, Study
from app.report.runs import Run, percent
from app.report.training_part import svg
from data.sources import NO_LABEL, Source

_ALL_CLASSES, _ENDS = 12, 5  # with more classes, only so many of the best and of the worst


def confusion(run: Run, study: Study | None, source: Source) -> str:
    """Which classes are confused, and which are the best and the worst ones, as HTML."""
    heading = '<h2>Which classes are confused</h2>\n'
    if study is None:
        return heading + _missing(run, source)
    found = study.confusion
    if found is None:
        return heading + (
            '<p>There is no confusion matrix: it takes labels in the evaluation split, and a '
            'network with a classifier.</p>'
        )
    total, right = int(found.counts.sum()), int(found.counts.trace())
    first = ' (its first images)' if found.read >= predictions.EVALUATED else ''
    caption = (
        f'{run.planned.title} on the split {run.config.data.eval_split}{first}: number of images '
        f'by true class (rows) and predicted class (columns). {right:,} of {total:,} are correct, '
        f'{percent(found.accuracy)}. The darker, the larger the share of the row.'
    )
    if run.top_1 is not None and percent(run.top_1) != percent(found.accuracy):
        precision = run.config.train.mixed_precision
        caption += f' The run itself measured {percent(run.top_1)}'
        rounds = f', in {precision}; the exported network computes in float32.'
        caption += '.' if first or precision == 'float32' else rounds
    image = svg(figures.confusion_figure(found), f'Confusion matrix. {caption}')
    large = ' large' if len(found.names) > 12 else ''
    return (
        f'{heading}<figure><div class="matrix{large}">{image}</div>'
        f'<figcaption>{text(caption)}</figcaption></figure>\n{_best_and_worst(found.by_class())}'
    )


def _missing(run: Run, source: Source) -> str:
    return f'<p>{text(predictions.why_no_study(run, source))}</p>'


def _best_and_worst(classes: Sequence[ClassResult]) -> str:
    """A table of classes, best first."""
    shown, words = classes, 'All classes, from the best to the worst.'
    if len(classes) > _ALL_CLASSES:
        shown = [*classes[:_ENDS], *classes[-_ENDS:]]
        words = f'The {_ENDS} best and the {_ENDS} worst of {len(classes):,} classes.'
    lines = [
        f'<tr><th scope="row">{text(found.name)}</th>{markup.bar(found.right, found.images)}'
        f'<td>{percent(found.right / found.images)}</td><td>{found.images:,}</td>'
        f'<td>{text(found.taken_for or "–")}</td></tr>\n'
        for found in shown
    ]
    columns = ('Class', '', 'Correct', 'Images', 'Most often taken for')
    return (
        f'<h3>Best and worst classes</h3>\n<p class="quiet">{text(words)}</p>\n'
        f'<div class="classes ranked">{markup.table("Best and worst classes", columns, lines)}'
        '</div>'
    )


def neighbors(run: Run, study: Study | None, source: Source) -> str:
    """Evaluation images, each with the most similar training images, as HTML."""
    heading = '<h2>Nearest neighbors of the encoder</h2>\n'
    if study is None:
        return heading + _missing(run, source)
    found = study.neighborhoods
    if not found:
        return f'{heading}<p>None of the evaluation images can be read.</p>'
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
        f'<figcaption>{text(caption)}</figcaption></figure>'
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


def _cell(kind: str, image: str, words: str) -> str:
    return f'<div class="{kind}">{image}{text(words)}</div>'


def image_map(run: Run, study: Study | None, source: Source) -> str:
    """A map of evaluation images on which similar ones are near each other, as HTML."""
    heading = '<h2>A map of the images</h2>\n'
    if study is None:
        return heading + _missing(run, source)
    sample = study.sample
    points = embedding_map.positions(sample.embeddings)
    if points is None:
        return heading + (
            f'<p>There is no map: it takes {embedding_map.FEWEST} images, which the encoder does '
            'not all see as the same.</p>'
        )
    places = embedding_map.cells(points)
    caption = (
        f'{len(sample.pictures):,} images of the split {run.config.data.eval_split}. Images that '
        'the encoder finds similar lie near each other. What is near counts, not how far apart '
        'groups are, nor where they lie (t-SNE, moved to a grid so that no image hides another).'
    )
    same = embedding_map.same_class_nearest(sample)
    if same is not None:
        caption += f' For {percent(same)} of them, the most similar other one has the same class.'
    image = markup.image(embedding_map.draw(sample, places), 'webp', f'Map of images. {caption}')
    return (
        f'{heading}<figure><div class="map" tabindex="0" role="region" aria-label="Map of images">'
        f'{image}</div>{_legend(sample.pictures, predictions.class_names(source))}'
        f'<figcaption>{text(caption)}</figcaption></figure>'
    )


def _legend(pictures: Sequence[Picture], names: Sequence[str]) -> str:
    """The classes by the borders of their images; nothing without labels."""
    labels = [picture.label for picture in pictures]
    marks = embedding_map.marks_of(labels)
    entries = [(mark.color, mark.style, names[label]) for label, mark in marks.items()]
    if entries and set(labels) - marks.keys():
        rest = 'other classes, or none'
        entries.append((embedding_map.OTHER, 'solid', rest))
    items = ''.join(
        f'<li><i style="border:4px {style} {color}"></i>{text(name)}</li>'
        for color, style, name in entries
    )
    return f'<ul class="legend">{items}</ul>' if items else ''
