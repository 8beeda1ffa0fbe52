"""The page about a data set: `check.html`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from app.check.findings import LONG, PROBLEM, TINY, Checked, different_files, groups_of
from app.report import markup
from app.report.markup import text
from data.duplicates import FARTHEST, OF_CONTRAST
from data.inspection import LOOK

PAGE, NUMBERS = 'check.html', 'check.json'
THUMBNAIL = 120  # largest height and width of a picture, in pixels
_GROUPS, _OF_A_GROUP = 24, 6  # of duplicates
_CLASSES, _OF_A_CLASS, _WITHOUT_CLASS = 40, 6, 24  # samples
_ROWS = 200  # of a table
_UNFOLDED_GROUPS, _UNFOLDED_CLASSES = 6, 10  # what follows is folded away
_KINDS = {PROBLEM: 'Fix:', 'advice': 'Note:'}
_PARTS = {
    'damaged': 'Damaged files',
    'duplicates': 'Duplicates',
    'classes': 'Classes',
    'odd': 'Odd images',
}


def shown_images(checked: Checked) -> list[int]:
    """The images of which the page has pictures."""
    groups, _ = groups_of(checked, _GROUPS)
    chosen = [image for group in groups for image in group[:_OF_A_GROUP]]
    chosen += [image for _, images in samples(checked) for image in images]
    return sorted(set(chosen))


def samples(checked: Checked) -> list[tuple[str | None, list[int]]]:
    """Images of each class, or of some classes where there are many; None stands for no class."""
    usable, label = checked.usable, checked.label[checked.usable]
    every = max(1, -(-len(checked.classes) // _CLASSES))
    found = [
        (checked.classes[c], usable[label == c][:_OF_A_CLASS].tolist())
        for c in range(0, len(checked.classes), every)
    ]
    found.append((None, usable[label < 0][:_WITHOUT_CLASS].tolist()))
    return [(name, images) for name, images in found if images]


def make_page(
    checked: Checked,
    described: Mapping[str, Any],
    pictures: Mapping[int, np.ndarray],
    commands: Sequence[tuple[str, str]],
) -> str:
    """The whole page.

    Args:
        checked: what was found.
        described: the same, as in `check.json`.
        pictures: image → [h, w, 3] uint8, of `shown_images`; some may be missing.
        commands: what to do next: title, command line.
    """
    draw = _Drawing(checked, pictures)
    body = [
        f'<h1>What is in {text(described["data"])}</h1>',
        f'<p class="quiet">{text(described["summary"])}.</p>' if described['summary'] else '',
        _tiles(described),
        _findings(described['notes']),
        _classes(described),
        _formats(described),
        _samples(checked, draw),
        _damaged(described),
        _duplicates(checked, described, draw),
        _odd(described),
        markup.commands('How to go on', commands),
    ]
    return markup.document(f'What is in {described["data"]}', filter(None, body))


class _Drawing:
    """Pictures with captions."""

    def __init__(self, checked: Checked, pictures: Mapping[int, np.ndarray]) -> None:
        self._checked, self._pictures = checked, pictures

    def gallery(self, images: Sequence[int], captions: Iterable[str]) -> str:
        """Pictures of `images`, each with a caption, which is HTML."""
        cells = [
            f'<li>{self._picture(image, name)}{caption}</li>'
            for image, name, caption in zip(images, self._checked.names(images), captions)
        ]
        return f'<ul class="gallery">{"".join(cells)}</ul>'

    def _picture(self, image: int, name: str) -> str:
        if image not in self._pictures:
            return '<div class="none">no longer there</div>'
        return markup.picture(self._pictures[image], name)


def _tiles(described: Mapping[str, Any]) -> str:
    named = [row for row in described['classes'] if row['name'] is not None]
    tiles = [
        (described['images'], 'images'),
        (described['usable'], 'can be used'),
        (described['damaged'], 'damaged'),
        (len(named), 'class' if len(named) == 1 else 'classes'),
        *((row['images'], f'in {row["name"]}') for row in described['splits']),
    ]
    return markup.tiles([(f'{count:,}', words) for count, words in tiles])


def _findings(notes: Sequence[Mapping[str, str]]) -> str:
    if not notes:
        lines = (
            '<li><b>Good:</b>Every file can be decoded, there are no duplicates, and no class '
            'stands out.</li>'
        )
    else:
        lines = ''.join(
            f'<li class="{note["kind"]}"><b>{_KINDS[note["kind"]]}</b>{text(note["text"])} '
            f'<a href="#{note["part"]}">{_PARTS[note["part"]]}</a></li>\n'
            for note in notes
        )
    return f'<h2>Findings</h2>\n<ul class="findings">{lines}</ul>'


def _damaged(described: Mapping[str, Any]) -> str:
    rows = described['damaged_files']
    if not rows:
        return ''
    lines = [
        markup.row(row['file'], [row['reason'], *_place(row, described)]) for row in rows[:_ROWS]
    ]
    columns = ['File', 'Why it cannot be used', *_place_columns(described)]
    return (
        f'<h2 id="damaged">{_PARTS["damaged"]}</h2>\n'
        f'<div class="left">{markup.long_table("Damaged files", columns, lines)}</div>'
        f'{_more(len(rows) - _ROWS)}'
    )


def _place_columns(described: Mapping[str, Any]) -> list[str]:
    return ['Split', 'Class'] if _has_classes(described) else ['Split']


def _place(row: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    return [row['split'], *([row['class'] or '–'] if _has_classes(described) else [])]


def _has_classes(described: Mapping[str, Any]) -> bool:
    return any(row['name'] is not None for row in described['classes'])


def _more(count: int) -> str:
    return f'<p class="quiet">{count:,} more are in {NUMBERS}.</p>' if count > 0 else ''


def _duplicates(checked: Checked, described: Mapping[str, Any], draw: _Drawing) -> str:
    rows = described['duplicates']
    if not rows:
        return ''
    lines = [
        markup.row(
            f'{row["split"]}, also in {row["also_in"]}'
            if row['split'] != row['also_in']
            else f'{row["split"]}, more than once',
            [f'{row["exact"]:,}', f'{row["near"]:,}'],
        )
        for row in rows
    ]
    columns = ('Images', 'Exact', 'Near')
    found, total = groups_of(checked, _GROUPS)
    listed = len(described['duplicate_groups'])
    shown = [_group(checked, group, draw) for group in found]
    rest = shown[_UNFOLDED_GROUPS:]
    return (
        f'<h2 id="duplicates">{_PARTS["duplicates"]}</h2>\n'
        '<p>Exact duplicates are the same file again. Near duplicates look the same, but may '
        'differ in size, format or quality.</p>\n'
        f'{markup.table("Duplicates by split", columns, lines)}\n'
        f'<p class="quiet">Images look the same if, reduced to {LOOK} × {LOOK} pixels, they differ '
        f'by at most {FARTHEST:g} of 255 and {100 * OF_CONTRAST:g}% of their contrast (root mean '
        'square). Crops and mirror images are not found; different pictures with little in them '
        'may look the same by chance.</p>\n'
        f'<h3>{total:,} {"group" if total == 1 else "groups"} of duplicates</h3>\n'
        '<p class="quiet">First those across splits, then those across classes, then the largest.'
        f'</p>\n{"".join(shown[:_UNFOLDED_GROUPS])}'
        f'{markup.folded(f"{len(rest):,} more groups", "".join(rest))}{_more(listed - len(found))}'
    )


def _group(checked: Checked, group: Sequence[int], draw: _Drawing) -> str:
    images, members = group[:_OF_A_GROUP], np.asarray(group)
    kind = 'exact' if different_files(checked, group) == 1 else 'near'
    splits = [text(checked.splits[split]) for split in np.unique(checked.split[members])]
    several = len({checked.class_of(image) for image in group} - {None}) > 1
    where = f'in {" and ".join(splits)}{", in several classes" if several else ""}'
    more = f'; {len(images)} of them:' if len(group) > len(images) else ':'
    captions = [
        f'<b>{text(_described_place(checked, image, several))}</b> {text(name)}'
        for image, name in zip(images, checked.names(images))
    ]
    return (
        f'<p>{len(group):,} {kind} duplicates {where}{more}</p>\n{draw.gallery(images, captions)}\n'
    )


def _described_place(checked: Checked, image: int, with_class: bool) -> str:
    split, name = checked.splits[checked.split[image]], checked.class_of(image)
    return f'{split}, {name}' if with_class and name is not None else split


def _classes(described: Mapping[str, Any]) -> str:
    rows = described['classes']
    if not _has_classes(described):
        return _bars_of_splits(described)
    splits = [row['name'] for row in described['splits']]
    totals = [sum(row['images'].values()) for row in rows]
    most = max([*totals, 1])
    lines = []
    for row, total in list(zip(rows, totals))[:_ROWS]:
        name = 'without a class' if row['name'] is None else row['name']
        counts = [f'{row["images"][split]:,}' for split in splits]
        cells = ''.join(f'<td>{cell}</td>' for cell in (f'{total:,}', *counts))
        lines.append(
            f'<tr><th scope="row">{text(name)}</th>{markup.bar(total, most)}{cells}</tr>\n'
        )
    title = 'Classes and splits'
    columns = ['Class', '', 'Usable', *(f'in {split}' for split in splits)]
    return (
        f'<h2 id="classes">{title}</h2>\n'
        f'<div class="classes">{markup.long_table(title, columns, lines)}</div>'
        f'{_more(len(rows) - _ROWS)}<p class="quiet">Damaged files are not counted.</p>'
    )


def _bars_of_splits(described: Mapping[str, Any]) -> str:
    counts = {row['name']: row['images'] - row['damaged'] for row in described['splits']}
    return (
        '<h2 id="classes">Splits</h2>\n<p>The images have no classes. That suits pretraining; '
        'evaluation and fine-tuning need some.</p>\n'
        f'<div class="pair">{_bars("Usable images", counts)}</div>'
    )


def _bars(label: str, counts: Mapping[str, int]) -> str:
    most = max([*counts.values(), 1])
    lines = ''.join(
        f'<tr><th scope="row">{text(name)}</th>{markup.bar(count, most)}<td>{count:,}</td></tr>\n'
        for name, count in counts.items()
    )
    return (
        f'<div><h3>{text(label)}</h3>\n<table class="bars"><tbody>\n{lines}</tbody></table></div>'
    )


def _formats(described: Mapping[str, Any]) -> str:
    sizes = described['sizes']
    if not sizes:
        return ''
    formats = {row['format']: row['images'] for row in described['formats']}
    sides = _without_empty_ends(sizes['shorter_side'])
    often = {f'{row["width"]} × {row["height"]}': row['images'] for row in sizes['often']}
    median, small, large = (sizes[key] for key in ('median', 'smallest', 'largest'))
    words = (
        f'The median width is {median["width"]:,} pixels, the median height {median["height"]:,}. '
        f'The smallest image is {small["file"]} ({small["width"]:,} × {small["height"]:,}), the '
        f'largest {large["file"]} ({large["width"]:,} × {large["height"]:,}).'
    )
    parts = [
        _bars('Format, by contents', formats),
        _bars('Shorter side', sides),
        _bars('Shape', sizes['shape']),
        _bars('Most frequent sizes, width × height', often),
    ]
    return (
        f'<h2>Formats and sizes</h2>\n<p>{text(words)}</p>\n'
        f'<div class="pair">{"".join(parts)}</div>'
    )


def _without_empty_ends(counts: Mapping[str, int]) -> dict[str, int]:
    there = np.flatnonzero(list(counts.values()))
    return dict(list(counts.items())[there[0] : there[-1] + 1])


def _odd(described: Mapping[str, Any]) -> str:
    parts = []
    for key, title in (
        ('odd_shapes', f'{LONG} times as long as wide, or smaller than {TINY} pixels'),
        ('single_color', 'Of a single color'),
        ('misnamed', 'Of another format than the extension says'),
    ):
        rows = described[key]
        if rows:
            columns = ['File', 'Format', 'Width × height', *_place_columns(described)]
            lines = [_odd_row(row, described) for row in rows[:_ROWS]]
            table = markup.long_table(title, columns, lines)
            parts.append(
                f'<h3>{title}</h3>\n<div class="left">{table}</div>{_more(len(rows) - _ROWS)}'
            )
    return f'<h2 id="odd">{_PARTS["odd"]}</h2>\n' + '\n'.join(parts) if parts else ''


def _odd_row(row: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    size = f'{row["width"]:,} × {row["height"]:,}'
    return markup.row(row['file'], [row['format'], size, *_place(row, described)])


def _samples(checked: Checked, draw: _Drawing) -> str:
    chosen = samples(checked)
    shown = []
    for name, images in chosen:
        title = f'<h3>{text("Without a class" if name is None else name)}</h3>\n'
        captions = (f'{checked.width[image]:,} × {checked.height[image]:,}' for image in images)
        shown.append(f'{title if checked.classes else ""}{draw.gallery(images, captions)}')
    some = len([name for name, _ in chosen if name is not None]) < len(checked.classes)
    what = 'Some images of some of the classes.' if some else 'Some images of each class.'
    if not checked.classes:
        what = 'Some of the images.'
    rest = shown[_UNFOLDED_CLASSES:]
    return (
        f'<h2>Samples</h2>\n<p class="quiet">{what} As in training, they are upright, and '
        'transparent parts are white.</p>\n'
        f'<div class="samples">{"".join(shown[:_UNFOLDED_CLASSES])}'
        f'{markup.folded(f"{len(rest):,} more classes", "".join(rest))}</div>'
    )
