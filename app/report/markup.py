"""HTML of pages: one file each, without script, that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from common.errors import printable

STYLE = pathlib.Path(__file__).with_name('style.css')
# Whatever a name of a file or a class holds: nothing is loaded or run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
UNFOLDED = 20  # rows of a long table; what follows is folded away
LOSSLESS = 64  # pixels; a larger image is shown as JPEG, which is far smaller and looks the same


def document(title: str, body: Iterable[str]) -> str:
    """The whole page.

    Args:
        title: as plain text.
        body: parts of it, as HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{text(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n'
        '<main>\n' + '\n'.join(body) + '\n</main>\n</body>\n</html>\n'
    )


def text(name: str) -> str:
    """Any text, such as the name of a file, as HTML: nothing in it is markup."""
    return html.escape(printable(name))


def table(label: str, columns: Sequence[str], rows: Iterable[str]) -> str:
    """A table that can be scrolled where it is too wide.

    Args:
        label: what it holds, for those who can't see it.
        columns: their headings, as plain text; none, if the rows speak for themselves.
        rows: as HTML, see `row`.
    """
    heading = ''.join(f'<th scope="col">{text(name)}</th>' for name in columns)
    head = f'<thead><tr>{heading}</tr></thead>\n' if heading else ''
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">\n'
        f'<table>\n{head}<tbody>\n{"".join(rows)}</tbody>\n</table>\n'
        '</div>'
    )


def row(title: str, cells: Iterable[str]) -> str:
    """A row of a table, of plain text."""
    others = ''.join(f'<td>{text(cell)}</td>' for cell in cells)
    return f'<tr><th scope="row">{text(title)}</th>{others}</tr>\n'


def long_table(label: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    """A table, its first UNFOLDED rows unfolded; see `table`."""
    first, rest = rows[:UNFOLDED], rows[UNFOLDED:]
    more = table(f'More of: {label}', columns, rest) if rest else ''
    return table(label, columns, first) + folded(f'{len(rest):,} more rows', more)


def folded(title: str, content: str) -> str:
    """HTML that opens at a click on `title`; nothing if there is no content."""
    return f'\n<details><summary>{text(title)}</summary>\n{content}</details>' if content else ''


def bar(count: int, most: int) -> str:
    """A cell with a bar, as long as the cell if `count` is `most`; a number beside it says it."""
    shown = f'<i style="width:{100 * count / most:.1f}%"></i>' if count else ''
    return f'<td class="fill">{shown}</td>'


def tiles(shown: Iterable[tuple[str, str]]) -> str:
    """Figures, each with words for it, of plain text."""
    cells = ''.join(f'<li><b>{text(figure)}</b>{text(words)}</li>' for figure, words in shown)
    return f'<ul class="tiles">{cells}</ul>'


def commands(heading: str, listed: Iterable[tuple[str, str]]) -> str:
    """Commands to copy, each with a title, of plain text."""
    parts = []
    for title, command in listed:
        lines = '\n'.join(map(text, command.split('\n')))
        parts.append(f'<h3>{text(title)}</h3>\n<pre>{lines}</pre>')
    return f'<h2>{text(heading)}</h2>\n' + '\n'.join(parts)


def image(content: bytes, kind: str, alt: str) -> str:
    """An image file as a part of the page.

    Args:
        content: of the file.
        kind: its type, such as 'png'.
        alt: what it shows, as plain text.
    """
    encoded = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{text(alt)}">'


def picture(pixels: tf.Tensor | np.ndarray, alt: str) -> str:
    """[h, w, 3] uint8 as an image on the page."""
    if pixels.shape[0] <= LOSSLESS:
        return image(tf.io.encode_png(pixels).numpy(), 'png', alt)
    return image(tf.io.encode_jpeg(pixels, quality=90).numpy(), 'jpeg', alt)
