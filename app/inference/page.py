"""The page of a search: one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import html
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.inference.pictures import Pictures
from common.errors import printable

if TYPE_CHECKING:
    from app.inference.search import Match

STYLE = pathlib.Path(__file__).with_name('page.css')
# Whatever a name holds: nothing is loaded or run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page_of(query: str, found: Sequence[Match], pictures: Pictures, *, about: str) -> str:
    """The page as text.

    Args:
        query: path of the image that was searched for.
        found: the most similar images, the first one most.
        pictures: shows them.
        about: where similarities come from, a sentence.
    """
    title = f'Images similar to {_escaped(os.path.basename(query))}'
    asked = _picture(pictures.of_file(query), f'The query: {query}')
    items = '\n'.join(_item(rank, match, pictures) for rank, match in enumerate(found, 1))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n<main>\n'
        f'<header>\n{asked}\n<div><h1>Similar images</h1>\n'
        f'<p>The query: {_escaped(query)}</p>\n<p>{_escaped(about)}</p></div>\n</header>\n'
        f'<ol>\n{items}\n</ol>\n</main>\n</body>\n</html>\n'
    )


def _item(rank: int, match: Match, pictures: Pictures) -> str:
    label = f', {match.class_name}' if match.class_name else ''
    alt = f'{rank}: {match.file}{label}, similarity {match.similarity:.3f}'
    name = f'<strong>{_escaped(match.class_name)}</strong>' if match.class_name else ''
    return (
        f'<li>{_picture(pictures.of(match.file), alt)}'
        f'<div class="value"><span>{rank}</span> {match.similarity:.3f} '
        f'<span>{_escaped(match.split)}</span></div>'
        f'{name}<span class="file">{_escaped(match.file)}</span></li>'
    )


def _picture(content: bytes | None, alt: str) -> str:
    if content is None:
        return f'<div class="picture none" role="img" aria-label="{_escaped(alt)}">not found</div>'
    encoded = base64.b64encode(content).decode()
    source = f'data:image/jpeg;base64,{encoded}'
    return f'<div class="picture"><img src="{source}" alt="{_escaped(alt)}"></div>'


def _escaped(text: str) -> str:
    return html.escape(printable(text))
