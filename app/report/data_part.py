"""The data of a run as it understood them: layout, splits, classes, and skipped files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from app.report import markup
from app.report.markup import text
from app.report.predictions import examples_in
from app.report.runs import Run
from common.file_names import SKIPPED_FILE
from data.sources.source import Source
from tf2 import records
from tf2.files import names_in

_CLASSES, _SKIPPED = 200, 20  # rows that are shown at most
_LISTS = re.compile(r'skipped_files(_.+)?\.txt')  # one for each worker


def data_part(run: Run, source: Source) -> str:
    """The part of the page, as HTML."""
    lines = run.data['lines'] if run.data else [_counted(run, source)]
    size = run.config.data.image_size
    lines = [*lines, f'The network sees each image at {size} × {size} pixels.']
    said = '\n'.join(f'<p>{text(line)}</p>' for line in lines)
    return f'<h2>Data</h2>\n{said}\n{_classes(run)}\n{_skipped(run)}'


def _counted(run: Run, source: Source) -> str:
    data = run.config.data
    classes = f'{source.num_classes} classes' if source.num_classes else 'no labels'
    train, test = (examples_in(source, split) for split in (data.train_split, data.eval_split))
    return (
        f'{classes}; {train:,} training images ({data.train_split}) and {test:,} for evaluation '
        f'({data.eval_split}).'
    )


def _classes(run: Run) -> str:
    """The number of images of each class."""
    described = run.data or {}
    train, evaluation = (described.get(split) or [] for split in ('train', 'eval'))
    if not any(train) and not any(evaluation):
        return ''
    counts = list(itertools.zip_longest(train, evaluation, fillvalue=0))
    names = described.get('class_names') or [f'class {label}' for label in range(len(counts))]
    most = max(map(max, counts))
    lines = [
        f'<tr><th scope="row">{text(name)}</th>{markup.bar(max(pair), most)}'
        f'<td>{pair[0]:,}</td><td>{pair[1]:,}</td></tr>\n'
        for name, pair in zip(names[:_CLASSES], counts)
    ]
    columns = ('Class', '', 'Training', 'Evaluation')
    more = len(counts) - len(lines)
    rest = f'<p class="quiet">{more:,} more classes are not shown.</p>' if more > 0 else ''
    return (
        '<h3>Labels by class</h3>\n'
        f'<div class="classes">{markup.long_table("Labels by class", columns, lines)}</div>{rest}'
    )


def _skipped(run: Run) -> str:
    """The files that could not be decoded, with reasons; nothing if there are none."""
    found = skipped_files(run.planned.folder)
    if not found:
        return ''
    lines = [markup.row(name, [reason]) for name, reason in found[:_SKIPPED]]
    more = len(found) - len(lines)
    rest = (
        f'<p class="quiet">{more:,} more are in {text(SKIPPED_FILE)} in the folder of the run.</p>'
        if more
        else ''
    )
    table = markup.table('Skipped files', ('File', 'Why it was skipped'), lines)
    return f'<h3>{len(found):,} skipped files</h3>\n<div class="left">{table}</div>{rest}'


def skipped_files(folder: str) -> Sequence[tuple[str, str]]:
    """Name and reason of each file that a worker skipped, by name."""
    found: dict[str, str] = {}
    for name in names_in(folder):
        if _LISTS.fullmatch(name):
            listing = records.read_text(f'{folder}/{name}', 'Restore it, or remove it.') or ''
            found |= dict(line.split('\t', 1) for line in listing.splitlines() if '\t' in line)
    return sorted(found.items())
