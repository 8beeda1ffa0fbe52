"""`--mode=check`: reads every image once, tells what was found, and writes it down."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from app.check import page
from app.check.findings import Checked, describe
from app.config.schema import Config
from app.modes import Outcome
from app.preflight import check_writable
from common.errors import UserError, command_line, printable
from common.interruption import Stop
from data.duplicates import find_duplicates
from data.inspection import Inspection, holds_files, inspect, thumbnails
from data.sources import open_source
from data.sources.source import NO_LABEL, Source
from tf2.files import write_text, writing
from tf2.progress import Progress

_DAMAGED_SHOWN = 5
_OWN = ('mode', 'model_dir')  # flags that training doesn't share
_SPLITS = ('train_split', 'eval_split')


def check(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Reads all images of a data set; writes `check.html` and `check.json` to the model folder.

    Args:
        config: all settings; those of the data are read.
        given: the flags that were given.
        stop: raises `Interrupted` at a signal, at which nothing is left half written.

    Raises:
        UserError: if there is no image that can be used, or the results can't be written.
    """
    del stop
    model_dir = os.path.expanduser(config.output.model_dir)
    check_writable(model_dir, files=(page.PAGE, page.NUMBERS))
    source = open_source(config.data)
    if source.summary:
        print(f'{source.summary}.')
    checked = read_all(source, config, given)
    described = describe(checked)
    for line in summarize(described):
        print(line)
    commands = _commands(given)
    pictures = _pictures(checked, source, config)
    path = os.path.join(model_dir, page.PAGE)
    with writing(model_dir):
        tf.io.gfile.makedirs(model_dir)
        numbers = json.dumps(described, indent=1)
        write_text(os.path.join(model_dir, page.NUMBERS), f'{numbers}\n')
        write_text(path, page.make_page(checked, described, pictures, commands))
    print(f'Report: {path}, and as JSON {page.NUMBERS} beside it.')
    if not described['usable']:
        raise UserError(
            f'{printable(source.name)} must hold images that can be decoded; found none among '
            f'{described["images"]:,} files. {path} says why.'
        )
    for title, command in commands[:-1]:
        print(f'{title}: {command}')
    return Outcome(model_dir, described, path)


def read_all(source: Source, config: Config, given: Mapping[str, Any]) -> Checked:
    """Reads the splits of `source` that were asked for, or all.

    Raises:
        UserError: if its images are no files, or what holds them can't be read.
    """
    data = config.data
    chosen = [getattr(data, name) for name in _SPLITS if name in given]
    splits = dict.fromkeys(chosen or source.splits or (data.train_split, data.eval_split))
    if not holds_files(source, next(iter(splits))):
        raise UserError(
            f'--mode=check reads image files; found {source.name}, which stores pixels. Check the '
            'files that it was made from.'
        )
    with _progress(sum(map(source.num_examples, splits))) as advance:
        parts = [inspect(source, data, split, advance) for split in splits]
    return _joined(config.data.own_images or source.name, source, parts)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` images were read; yields what is told how many more there are."""
    read = 0

    def advance(more: int) -> None:
        nonlocal read
        read += more
        progress.update(read, {})

    with contextlib.closing(Progress(0, total, 1, (), noun='image')) as progress:
        yield advance


def _joined(name: str, source: Source, parts: list[Inspection]) -> Checked:
    before = np.cumsum([0, *map(len, parts)])
    split = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    label = np.concatenate([part.labels for part in parts])
    wrong = (label < NO_LABEL) | (label >= (source.num_classes or 0))
    label[wrong] = NO_LABEL
    usable = np.concatenate([part.usable for part in parts])
    reasons = {
        int(start) + position: reason
        for start, part in zip(before, parts)
        for position, reason in sorted(part.reasons.items())
    }
    return Checked(
        name=name,
        summary=source.summary,
        classes=source.class_names or tuple(map(str, range(source.num_classes or 0))),
        splits=[part.split for part in parts],
        split=split,
        position=np.concatenate([np.arange(len(part)) for part in parts]),
        label=label,
        wrong_labels=int(wrong.sum()),
        height=np.concatenate([part.heights for part in parts]),
        width=np.concatenate([part.widths for part in parts]),
        size=np.concatenate([part.sizes for part in parts]),
        format=np.concatenate([part.formats for part in parts]),
        reasons=reasons,
        duplicates=find_duplicates(
            np.concatenate([part.contents for part in parts])[usable],
            np.concatenate([part.looks for part in parts])[usable],
            split[usable],
            label[usable],
            len(parts),
        ),
        identify=source.identify or _by_position,
    )


def _by_position(split: str, positions: list[int]) -> list[str]:
    return [f'{split}[{position}:{position + 1}]' for position in positions]


def _pictures(checked: Checked, source: Source, config: Config) -> dict[int, np.ndarray]:
    """Image → small picture."""
    wanted = np.array(page.shown_images(checked), np.int64)
    found = {}
    for number, split in enumerate(checked.splits):
        its = wanted[checked.split[wanted] == number]
        images = dict(zip(checked.position[its].tolist(), its.tolist()))
        for position, picture in thumbnails(
            source, config.data, split, list(images), page.THUMBNAIL
        ):
            found[images[position]] = picture
    return found


def summarize(described: Mapping[str, Any]) -> list[str]:
    """What was found, in a few lines."""
    total, usable = described['images'], described['usable']
    formats = ', '.join(f'{row["format"]} {row["images"]:,}' for row in described['formats'])
    lines = [f'{usable:,} of {total:,} images can be used{f": {formats}" if formats else ""}.']
    for note in described['notes']:
        lines.append(f'- {note["text"]}')
        if note['part'] == 'damaged':
            lines += _damaged_lines(described['damaged_files'])
    return lines if described['notes'] else [*lines, 'No problems were found.']


def _damaged_lines(damaged: Sequence[Mapping[str, str]]) -> list[str]:
    shown = damaged[:_DAMAGED_SHOWN]
    lines = [f'  {printable(row["file"])}: {row["reason"]}' for row in shown]
    more = len(damaged) - len(shown)
    return [*lines, f'  and {more:,} more'] if more else lines


def _commands(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Title and command line of what to do next."""
    data = [f'--{name}={value}' for name, value in given.items() if name not in _OWN]
    train = ['python', 'run.py', '--mode=train_then_eval', *data, '--model_dir=RUN']
    small = [*train[:3], '--preset=own_images_small', *train[3:]]
    again = ['python', 'run.py', '--mode=check', *data]
    commands = {
        'Train': train,
        'Train a small network, without a GPU': small,
        'Check again, once files were removed or restored': again,
    }
    return [
        (title, command_line(command))
        for title, command in commands.items()
        if command is not small or 'dataset' not in given  # the preset is for folders
    ]
