"""The page about a data set: `check.html`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from app.check.findings import FEW, LONG, PROBLEM, TINY, Checked, groups_of
from app.report import markup
from app.report.markup import text
from data.duplicates import FARTHEST, OF_CONTRAST
from data.inspection import LOOK

PAGE, NUMBERS = 'check.html', 'check.json'
THUMBNAIL = 120  # largest height and width of a picture, in pixels
_GROUPS, _OF_A_GROUP = 24, 6  # of duplicates
_CLASSES, _OF_A_CLASS, _WITHOUT_CLASS = 40, 6, 24  # samples
_ROWS = 200  # of a table
_KINDS = {PROBLEM: 'Mend:', 'advice': 'Look at:'}


def shown_images(checked: Checked) -> list[int]:
    """The images of which the page has pictures."""
    groups = groups_of(checked)[:_GROUPS]
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
        _damaged(described),
        _copies(checked, described, draw),
        _classes(described),
        _formats(described),
        _shapes(described),
        _samples(checked, draw),
        _commands(commands),
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
    cells = ''.join(f'<li><b>{count:,}</b>{text(words)}</li>' for count, words in tiles)
    return f'<ul class="tiles">{cells}</ul>'


def _findings(notes: Sequence[Mapping[str, str]]) -> str:
    if not notes:
        lines = (
            '<li><b>Good:</b>Every file can be decoded, no image is there twice, and no class '
            'stands out.</li>'
        )
    else:
        lines = ''.join(
            f'<li class="{note["kind"]}"><b>{_KINDS[note["kind"]]}</b>{text(note["text"])} '
            f'<a href="#{note["part"]}">Show</a></li>\n'
            for note in notes
        )
    return f'<h2>What to look at</h2>\n<ul class="findings">{lines}</ul>'


def _damaged(described: Mapping[str, Any]) -> str:
    rows = described['damaged_files']
    if not rows:
        return ''
    lines = [
        markup.row(row['file'], [row['reason'], *_place(row, described)]) for row in rows[:_ROWS]
    ]
    columns = ['File', 'Why it cannot be used', *_place_columns(described)]
    return (
        '<h2 id="damaged">Files that cannot be decoded</h2>\n'
        f'<div class="left">{markup.table("Damaged files", columns, lines)}</div>'
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


def _copies(checked: Checked, described: Mapping[str, Any], draw: _Drawing) -> str:
    rows = described['copies']
    if not rows:
        return ''
    lines = [
        markup.row(
            f'{row["split"]} in {row["also_in"]}'
            if row['split'] != row['also_in']
            else f'{row["split"]}, more than once',
            [f'{row["same_file"]:,}', f'{row["looks_the_same"]:,}'],
        )
        for row in rows
    ]
    columns = ('Images of a split', 'As the same file', 'As one that looks the same')
    groups = groups_of(checked)[:_GROUPS]
    shown = ''.join(_group(checked, group, draw) for group in groups)
    total = described['duplicate_groups_in_all']
    return (
        '<h2 id="copies">Images that are there more than once</h2>\n'
        f'{markup.table("Copies by split", columns, lines)}\n'
        f'<p class="quiet">Images look the same if they differ by no more than {FARTHEST:g} of 255 '
        f'and {100 * OF_CONTRAST:g}% of their contrast once they are reduced to {LOOK} × {LOOK} '
        'pixels (root mean square). So copies in another size, format or quality are found, but '
        'neither crops nor mirror images, and a picture may look the same by chance.</p>\n'
        f'<h3>{len(groups):,} of {total:,} groups</h3>\n'
        '<p class="quiet">First those that are in several splits, then those in several classes, '
        f'then the largest.</p>\n{shown}{_more(total - len(groups))}'
    )


def _group(checked: Checked, group: Sequence[int], draw: _Drawing) -> str:
    images = group[:_OF_A_GROUP]
    content = checked.duplicates.content[np.searchsorted(checked.usable, group)]
    same = len(set(content.tolist())) == 1
    what = 'the same file' if same else 'they look the same'
    captions = [
        f'<b>{text(checked.splits[checked.split[image]])}</b> {text(name)}'
        for image, name in zip(images, checked.names(images))
    ]
    more = f', {len(images)} of them shown' if len(group) > len(images) else ''
    return f'<p>{len(group):,} images, {what}{more}:</p>\n{draw.gallery(images, captions)}\n'


def _classes(described: Mapping[str, Any]) -> str:
    rows = described['classes']
    splits = [row['name'] for row in described['splits']]
    totals = [sum(row['images'].values()) for row in rows]
    most = max([*totals, 1])
    lines = []
    for row, total in list(zip(rows, totals))[:_ROWS]:
        name = 'without a class' if row['name'] is None else row['name']
        counts = [f'{row["images"][split]:,}' for split in splits]
        cells = ''.join(f'<td>{cell}</td>' for cell in (f'{total:,}', *counts))
        lines.append(f'<tr><th scope="row">{text(name)}</th>{_bar(total, most)}{cells}</tr>\n')
    title = 'Classes and splits' if _has_classes(described) else 'Splits'
    columns = ['Class', '', 'Usable', *(f'in {split}' for split in splits)]
    few = f'<p class="quiet">A class needs {FEW} images at the very least.</p>'
    return (
        f'<h2 id="classes">{title}</h2>\n'
        f'<div class="classes">{markup.table(title, columns, lines)}</div>'
        f'{_more(len(rows) - _ROWS)}{few if _has_classes(described) else ""}'
    )


def _bar(count: int, most: int) -> str:
    """A cell with a bar; the number beside it says the same."""
    return f'<td class="fill"><i style="width:{100 * count / most:.1f}%"></i></td>'


def _bars(label: str, counts: Mapping[str, int]) -> str:
    most = max([*counts.values(), 1])
    lines = ''.join(
        f'<tr><th scope="row">{text(name)}</th>{_bar(count, most)}<td>{count:,}</td></tr>\n'
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
        f'Half of the images are wider than {median["width"]:,} and higher than '
        f'{median["height"]:,} pixels. The smallest one, {small["file"]}, has {small["width"]:,} × '
        f'{small["height"]:,}, the largest one, {large["file"]}, {large["width"]:,} × '
        f'{large["height"]:,}.'
    )
    parts = [
        _bars('Format, by contents', formats),
        _bars('Shorter side', sides),
        _bars('Shape', sizes['shape']),
        _bars('Most frequent sizes, width × height', often),
    ]
    return (
        f'<h2 id="formats">Formats and sizes</h2>\n<p>{text(words)}</p>\n'
        f'<div class="pair">{"".join(parts)}</div>'
    )


def _without_empty_ends(counts: Mapping[str, int]) -> dict[str, int]:
    there = np.flatnonzero(list(counts.values()))
    return dict(list(counts.items())[there[0] : there[-1] + 1])


def _shapes(described: Mapping[str, Any]) -> str:
    parts = []
    for key, title in (
        ('odd_shapes', f'{LONG} times as long as wide, or smaller than {TINY} pixels'),
        ('single_color', 'Of a single color'),
    ):
        rows, total = described[key], described[f'{key}_in_all']
        if rows:
            columns = ['File', 'Width × height', *_place_columns(described)]
            lines = [
                markup.row(
                    row['file'],
                    [f'{row["width"]:,} × {row["height"]:,}', *_place(row, described)],
                )
                for row in rows[:_ROWS]
            ]
            table = markup.table(title, columns, lines)
            parts.append(f'<h3>{title}</h3>\n<div class="left">{table}</div>{_more(total - _ROWS)}')
    return '<h2 id="shapes">Odd images</h2>\n' + '\n'.join(parts) if parts else ''


def _samples(checked: Checked, draw: _Drawing) -> str:
    chosen = samples(checked)
    shown = []
    for name, images in chosen:
        title = 'Without a class' if name is None else name
        captions = (f'{checked.width[image]:,} × {checked.height[image]:,}' for image in images)
        shown.append(f'<h3>{text(title)}</h3>\n{draw.gallery(images, captions)}')
    some = len([name for name, _ in chosen if name is not None]) < len(checked.classes)
    what = 'Some images of some of the classes.' if some else 'Some images of each class.'
    if not checked.classes:
        what = 'Some of the images.'
    return (
        f'<h2 id="samples">Samples</h2>\n<p class="quiet">{what} They are turned upright, and '
        f'transparent parts are white, as in training.</p>\n<div class="samples">{"".join(shown)}'
        '</div>'
    )


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    parts = [f'<h3>{text(title)}</h3>\n<pre>{text(command)}</pre>' for title, command in commands]
    return '<h2>How to go on</h2>\n' + '\n'.join(parts)
