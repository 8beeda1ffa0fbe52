"""The page of a search: one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.inference.pictures import Pictures
from app.report import markup
from app.report.markup import text

if TYPE_CHECKING:
    from app.inference.search import Match


def page_of(query: str, found: Sequence[Match], pictures: Pictures, *, about: str) -> str:
    """The page as text.

    Args:
        query: path of the image that was searched for.
        found: the most similar images, the first one most.
        pictures: shows them.
        about: where similarities come from, in sentences.
    """
    title = f'Images similar to {os.path.basename(query)}'
    items = '\n'.join(_item(rank, match, pictures) for rank, match in enumerate(found, 1))
    body = [
        f'<div class="asked">{_picture(pictures.of_file(query), f"The query: {query}")}',
        f'<div><h1>{text(title)}</h1>\n<p>The query: {text(query)}</p></div></div>',
        f'<p class="quiet">{text(about)}</p>',
        f'<ol class="found">\n{items}\n</ol>',
    ]
    return markup.document(title, body)


def _item(rank: int, match: Match, pictures: Pictures) -> str:
    label = f', {match.class_name}' if match.class_name else ''
    alt = f'{rank}: {match.file}{label}, similarity {match.similarity:.3f}'
    name = f'<b>{text(match.class_name)}</b>' if match.class_name else ''
    return (
        f'<li>{_picture(pictures.of(match.file), alt)}'
        f'<div class="value">{rank}<b>{match.similarity:.3f}</b>'
        f'<span>{text(match.split)}</span></div>'
        f'{name}<div>{text(match.file)}</div></li>'
    )


def _picture(content: bytes | None, alt: str) -> str:
    if content is None:
        return f'<div class="picture" role="img" aria-label="{text(alt)}">not found</div>'
    return f'<div class="picture">{markup.image(content, "jpeg", alt)}</div>'
