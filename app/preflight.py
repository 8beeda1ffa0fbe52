"""Checks paths and names on the command line without TensorFlow, whose import takes seconds.

Only what is clearly missing is refused here. What exists is checked when it is opened.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.config.schema import Config, to_values, with_values
from common.errors import UserError, printable
from common.file_names import (
    CHECKPOINT_LIST,
    DATA_FILE,
    DETAILS_FILE,
    FLAGS_FILE,
    MODULES,
    MOMENTUM_MODULES,
    REPORT_FILE,
    RESULT_FILE,
)
from data.config import OWN_IMAGES
from data.names import check_name, folders_of
from tf2.config import WEIGHTS

# The file systems that TensorFlow supports without a plugin, besides local paths.
SCHEMES = ('gs', 'file')
_OF_WEIGHTS = ('http', 'https')  # resolved by tensorflow-hub
_PATH_FLAGS = {
    'model_dir': (),
    'data_dir': (),
    'checkpoint': _OF_WEIGHTS,
    'teacher': _OF_WEIGHTS,
    'output': (),
    'query': (),
    'embeddings': (),
}
# Files that a run rewrites repeatedly.
WRITTEN = (FLAGS_FILE, CHECKPOINT_LIST, RESULT_FILE, DETAILS_FILE, DATA_FILE, REPORT_FILE)


def check_schemes(given: Mapping[str, Any]) -> None:
    """Raises UserError if a path in the flags `given` is on an unsupported file system."""
    for flag, place in _places(given):
        scheme, found, _ = place.partition('://')
        known = (*SCHEMES, *_PATH_FLAGS[flag])
        if found and scheme not in known:
            listed = ', '.join(f'{name}://' for name in known)
            raise UserError(
                f'--{flag} must be a path of this machine or begin with {listed}; found '
                f'{place!r}. Other file systems need a plugin of TensorFlow, which this '
                'program does not load: mount it, or copy what is there.'
            )


def remote_paths(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flag and path, for each path in `given` that is read over a network."""
    return [(flag, place) for flag, place in _places(given) if place.startswith('gs://')]


def _places(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Flag and path, for each path in `given`; `data_dir` may name several."""
    for flag in _PATH_FLAGS:
        value = given.get(flag)
        places = folders_of(value) if flag == 'data_dir' else [value or '']
        yield from ((flag, place) for place in places)


def check_paths(config: Config) -> None:
    """Raises UserError if there are no weights, or no data set, where `config` names them."""
    learning = config.learning
    _check_needs(config)
    if config.run.does.several:  # stages read each other; a given one is refused later
        learning = dataclasses.replace(learning, checkpoint=None)
    # A resumed run needs its own checkpoints only.
    trains = config.run.does.follows_run
    begun = trains and config.output.model_dir and _may_hold_checkpoints(config.output.model_dir)
    named = {'checkpoint': None if begun else learning.checkpoint, 'teacher': learning.teacher}
    for flag, path in named.items():
        if path and _is_missing(path):
            raise UserError(
                f'--{flag}={os.path.expanduser(path)} should be {WEIGHTS}; found nothing there. '
                'Check the path.'
            )
    if config.data.dataset and config.run.does.needs_data:
        check_name(config.data.dataset, config.data.data_dir)
    if config.data.dataset in OWN_IMAGES and config.run.does.needs_data:
        _check_images(config.data.data_dir)
    _check_apart(config.output.model_dir, config.data.data_dir)


def _check_needs(config: Config) -> None:
    """Raises UserError if a flag is missing, or `--output` has no extension that is known."""
    does, mode, values = config.run.does, config.run.mode, to_values(config)
    if not all(values[name] for name in does.needs):
        needed = ' and '.join(f'--{name}' for name in does.needs)
        found = ' and '.join(str(values[name]) for name in does.needs)
        raise UserError(f'--mode={mode} needs {needed}; found {found}.')
    for name in ('query', 'embeddings'):
        path = values[name]
        if path and '://' not in path and not os.path.isfile(os.path.expanduser(path)):
            raise UserError(
                f'--{name}={printable(path)} must be a file; found none there. Check the path.'
            )
    output = config.inference.output
    if output and os.path.splitext(output)[1].lower() not in does.formats:
        raise UserError(
            f'--output must be a file that ends in {", ".join(does.formats)}; found {output!r}. '
            f'Unset it is {does.output}.'
        )


def _check_images(data_dir: str | None) -> None:
    """Raises UserError if there is nothing at a local path where images should be."""
    for place in folders_of(data_dir):
        if '://' not in place and not os.path.exists(place) and not glob.has_magic(place):
            raise UserError(
                f'--data_dir={printable(place)} must be a folder of images, a list of files, or '
                'TFRecord files; found nothing there. Check the path.'
            )


def _check_apart(model_dir: str | None, data_dir: str | None) -> None:
    """Raises UserError if a new run would write into a folder of images."""
    if not model_dir or '://' in model_dir:
        return
    folder = os.path.realpath(os.path.expanduser(model_dir))
    begun = os.path.exists(os.path.join(folder, FLAGS_FILE))
    places = [os.path.realpath(place) for place in folders_of(data_dir) if '://' not in place]
    for data in places:
        if os.path.commonpath([folder, data]) == data and not begun:
            raise UserError(
                f'--model_dir must be outside of --data_dir, {data}, where its files would be '
                f'taken for data; found {folder}. Choose another --model_dir.'
            )


def check_characters(given: Mapping[str, Any]) -> None:
    """Raises UserError for paths with characters that TensorFlow or one-line messages can't take.

    Args:
        given: the flags that were given.
    """
    for flag in ('model_dir', 'checkpoint', 'teacher', 'eval_name', 'output', 'embeddings'):
        for character in given.get(flag) or '':
            # Control characters; bytes that are no UTF-8; ends of lines and paragraphs.
            if unicodedata.category(character) in ('Cc', 'Cs', 'Zl', 'Zp'):
                raise UserError(
                    f'--{flag} must be a path in UTF-8 without control characters; found '
                    f'{character!a} in {given[flag]!a}. Rename what it names.'
                )


def _may_hold_checkpoints(folder: str) -> bool:
    if '://' in folder:
        return True
    try:
        names = os.listdir(os.path.expanduser(folder))
    except OSError:
        return False
    return any(name.startswith('ckpt-') for name in names)


def _is_missing(path: str) -> bool:
    """Whether no local file or folder has a name that begins with `path`."""
    if '://' in path:
        return False
    folder, start = os.path.split(os.path.expanduser(path).rstrip('/'))
    try:
        return not any(name.startswith(start) for name in os.listdir(folder or '.'))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # opening it will raise the right error


def with_model_dir(config: Config) -> Config:
    """`config` with the path of its model folder expanded.

    Raises:
        UserError: if it isn't a folder that can be made and written to.
    """
    model_dir = os.path.expanduser(config.output.model_dir)
    if not model_dir:
        raise UserError(
            f'--model_dir must be a folder; found {config.output.model_dir!r}. Give a name, or '
            'leave it out.'
        )
    momentum = MOMENTUM_MODULES if config.learning.export_momentum_encoder else ''
    below = (MODULES, momentum, config.evaluation.eval_name or '')
    check_writable(model_dir, folders=below, files=WRITTEN)
    return with_values(config, model_dir=model_dir)


def check_writable(model_dir: str, *, folders: Iterable[str] = (), files: Iterable[str]) -> None:
    """Raises UserError if a run can't write its files and folders in `model_dir`.

    Args:
        model_dir: a folder, which need not exist.
        folders: names of folders in it.
        files: names of files in it.
    """
    if '://' in model_dir:
        return
    if os.path.lexists(model_dir) and not os.path.isdir(model_dir):
        raise UserError(f'--model_dir must be a folder; {model_dir} is a file.')
    for folder in ('', *folders):
        _check_folder(model_dir, os.path.join(model_dir, folder))
    for name in files:
        if os.path.isdir(os.path.join(model_dir, name)):
            raise UserError(
                f'--model_dir={model_dir} cannot be written: {name} in it must be a file, but is '
                'a folder. Move it away, or choose another --model_dir.'
            )


def _check_folder(model_dir: str, folder: str) -> None:
    existing = os.path.abspath(folder)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f'--model_dir={model_dir} cannot be made: {existing} is a file.')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f'--model_dir={model_dir} cannot be written: {existing} is not writable.')
