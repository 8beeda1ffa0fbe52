"""A list of image files: text with a path a line, CSV with a header, or JSON lines."""

from __future__ import annotations

import collections
import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line, printable
from data.config import DataConfig
from data.names import folders_of
from data.sources.files import NO_CLASS, Files, Group, files_of
from data.sources.image_folder import asked_by, check_no_keys, source_of_images
from data.sources.layout import TRAIN, Asked, Images, describe_classes, with_evaluation
from data.sources.source import Source

_JSON, _TABLE = ('.jsonl', '.ndjson', '.json'), ('.csv', '.tsv')
# Names of columns and keys, in any case.
_PATH, _LABEL, _SPLIT = ('path', 'file', 'filename'), ('label', 'class'), ('split',)
_FORMATS = (
    'a path a line, maybe with a tab and a label behind it; CSV with a header path,label,split; or '
    'JSON lines with "path", "label" and "split" (label and split may be missing)'
)
# Fewer files of a folder are looked for one by one.
_LISTED_FROM = 20

# Path as it is written, label or '', split or ''.
_Row = tuple[str, str, str]


def open_file_list(config: DataConfig) -> Source:
    """Opens the image files that the file `config.data_dir` lists.

    Relative paths start at the folder of the list.

    Args:
        config: `data_dir`, `train_split`, `eval_split` and `holdout_fraction` are read.

    Raises:
        UserError: if it cannot be read, or most of its files are not there.
    """
    check_no_keys(config, 'image_list', 'second column of the list')
    places = folders_of(config.data_dir)
    if len(places) != 1:
        raise UserError(
            '--data_dir must be one list of files, or folders; found '
            f'{printable(config.data_dir or "nothing")}. Join the lists.'
        )
    return source_of_images('image_list', read_list(places[0], asked_by(config)), config)


def read_list(path: str, asked: Asked) -> Images:
    """Reads a list and looks whether its files are there.

    Args:
        path: of the list.
        asked: the splits that must be there.

    Raises:
        UserError: as `open_file_list`.
    """
    try:
        names = _sorted_in(_rows(path))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f'--data_dir={printable(path)} must be a folder, or a list that can be read: '
            f'{_FORMATS}; found otherwise ({printable(one_line(error))}). Check the path.'
        ) from error
    total = sum(map(len, names.values()))
    if not total:
        raise UserError(
            f'--data_dir={printable(path)} must list images: {_FORMATS}; found an empty list.'
        )
    missing = _leave_missing_out(names, os.path.dirname(path))
    if 2 * len(missing) >= total:
        raise UserError(
            f'--data_dir={printable(path)} must list files that are there, by paths relative to '
            f'its folder or absolute ones ({_FORMATS}); of {total:,} files {len(missing):,} are '
            f'missing, such as '
            f'{_first(missing)}. Mend the paths.'
        )
    return _images(path, names, asked, missing)


def _images(
    path: str, names: Mapping[tuple[str, str, str], list[str]], asked: Asked, missing: list[str]
) -> Images:
    classes = _in_order({label for (_, _, label), group in names.items() if label and group})
    splits = _files(names, classes, os.path.dirname(path))
    labels = np.concatenate([files.labels for files in splits.values()])
    counts = np.bincount(labels - NO_CLASS, minlength=len(classes) + 1)
    found, told = with_evaluation(splits, asked)
    parts = [
        f'a list of {len(labels):,} images',
        *(describe_classes(classes, counts[1:], int(counts[0])) or ['without classes']),
        *told,
    ]
    if missing:
        are = 'file is' if len(missing) == 1 else 'files are'
        parts.append(f'{len(missing):,} {are} missing and left out, such as {_first(missing)}')
    return Images(found, classes, f'{printable(path)}: {"; ".join(parts)}')


def _first(missing: Sequence[str]) -> str:
    return printable(missing[0][:100])


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Classes by number: numbers by their values, else in alphabetical order."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))


def _sorted_in(rows: Iterable[_Row]) -> dict[tuple[str, str, str], list[str]]:
    """(split, folder, label) → names of files; the order of the list doesn't matter."""
    names = collections.defaultdict(list)
    for path, label, split in rows:
        folder, name = os.path.split(path)
        names[split or TRAIN, folder, label].append(name)
    return {key: sorted(names[key]) for key in sorted(names)}


def _files(
    names: Mapping[tuple[str, str, str], list[str]], classes: Sequence[str], base: str
) -> dict[str, Files]:
    number = {name: label for label, name in enumerate(classes)}
    groups: dict[str, list[Group]] = {}
    for (split, folder, label), group in names.items():
        place, joined = _place(base, folder), '/'.join(group)
        groups.setdefault(split, []).append(
            Group(place, folder, joined, number.get(label, NO_CLASS))
        )
    return {
        split: files_of(parts).shuffled(os.fsencode(split))
        for split, parts in groups.items()
        if any(part.names for part in parts)
    }


def _place(base: str, folder: str) -> str:
    return folder if '://' in folder else os.path.join(base, os.path.expanduser(folder))


def _leave_missing_out(names: dict[tuple[str, str, str], list[str]], base: str) -> list[str]:
    """Takes the files out of `names` that are not there; returns their paths, as they are listed.

    A folder of many files is listed once: a question a file takes long over a network.
    """
    by_folder = collections.defaultdict(list)
    for key in names:
        by_folder[key[1]].append(key)
    missing = []
    for folder, keys in by_folder.items():
        is_there = _finder(_place(base, folder), sum(len(names[key]) for key in keys))
        for key in keys:
            gone = {name for name in names[key] if not is_there(name)}
            if gone:
                missing += [os.path.join(folder, n) for n in names[key] if n in gone]
                names[key] = [name for name in names[key] if name not in gone]
    return missing


def _finder(place: str, count: int) -> Callable[[str], bool]:
    """Tells whether a file is in the folder `place`, of which `count` are looked for."""
    if '://' not in place and count < _LISTED_FROM:
        return lambda name: os.path.isfile(os.path.join(place, name))
    try:
        there = set(tf.io.gfile.listdir(place) if '://' in place else os.listdir(place))
    except (OSError, ValueError, tf.errors.OpError):  # so are its files, which is told
        there = set()
    return there.__contains__


def _rows(path: str) -> Iterator[_Row]:
    ending = os.path.splitext(path)[1].lower()
    with _opened(path) as lines:
        if ending in _JSON:
            yield from _json_rows(path, lines)
        elif ending in _TABLE:
            yield from _table_rows(path, lines, '\t' if ending == '.tsv' else '')
        else:
            yield from _text_rows(lines)


def _opened(path: str) -> io.TextIOBase:
    """The list's text; bytes that are no UTF-8 are kept as in names of files."""
    settings = {'encoding': 'utf-8-sig', 'errors': 'surrogateescape', 'newline': ''}
    if '://' not in path:
        return open(path, **settings)
    with tf.io.gfile.GFile(path, 'rb') as file:
        return io.TextIOWrapper(io.BytesIO(file.read()), **settings)


def _text_rows(lines: Iterable[str]) -> Iterator[_Row]:
    for line in lines:
        path, _, label = line.rstrip('\r\n').partition('\t')
        if path:
            yield path, label.strip(), ''


def _table_rows(path: str, lines: io.TextIOBase, delimiter: str) -> Iterator[_Row]:
    header = lines.readline()
    delimiter = delimiter or (';' if ';' in header and ',' not in header else ',')
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    columns = [
        next((number for number, name in enumerate(names) if name in known), None)
        for known in (_PATH, _LABEL, _SPLIT)
    ]
    if columns[0] is None:
        raise UserError(
            f'{printable(path)} must begin with a header that names a column {" or ".join(_PATH)}; '
            f'found {printable(header.strip())!r}. Add it: path,label.'
        )
    for row in csv.reader(lines, delimiter=delimiter):
        found = [row[n] if n is not None and n < len(row) else '' for n in columns]
        if found[0]:
            yield found[0], found[1].strip(), found[2].strip()


def _json_rows(path: str, lines: Iterable[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            where, label, split = (_value(row, names) for names in (_PATH, _LABEL, _SPLIT))
            if not where:
                raise ValueError(f'it has no {" or ".join(_PATH)}')
        except (ValueError, AttributeError) as error:
            raise UserError(
                f'Line {number} of {printable(path)} must be JSON such as {{"path": "a.jpg", '
                f'"label": "cat"}}; found {printable(line.strip()[:80])} '
                f'({printable(one_line(error))}). Mend it.'
            ) from error
        yield where, label, split


def _value(row: Any, names: Sequence[str]) -> str:
    """The value of the first of `names` that `row` has, '' for none; AttributeError for no row."""
    found = next((v for k, v in row.items() if k.lower() in names and v is not None), '')
    if not isinstance(found, (str, int)):
        raise ValueError(f'{names[0]} is {found!r}')
    return str(found)
