"""Finds and opens the checkpoint that `--checkpoint` names."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from common.errors import UserError, one_line
from common.file_names import CHECKPOINT_LIST
from tf2.config import WEIGHTS
from tf2.files import names_in, plain_path
from tf2.records import newest_in

GRAPH_KEY = '_CHECKPOINTABLE_OBJECT_GRAPH'
ADVICE = 'Copy it again, or choose another --checkpoint.'
URL_SCHEMES = ('http://', 'https://')


def locate(path: str) -> str:
    """The prefix of the checkpoint that `path` names; its files exist.

    Args:
        path: folder with a file `checkpoint`, a folder `variables`, or a single checkpoint; prefix
            of a checkpoint, with or without '.index'; or URL that tensorflow-hub resolves. On any
            file system TensorFlow knows.

    Raises:
        UserError: if there is none, or files are missing.
    """
    with _readable(path):
        place = fetched(path) if path.startswith(URL_SCHEMES) else path
        place = place.rstrip('/')
        prefix = _prefix_in(place) if tf.io.gfile.isdir(place) else _prefix_of(place)
        _check_files(path, prefix)
    return prefix


def fetched(url: str) -> str:
    """Downloads a TF-Hub handle or URL, unless it is cached; returns its folder."""
    import tarfile

    import tensorflow_hub  # takes a second, and only URLs need it

    try:
        return tensorflow_hub.resolve(url)
    except (OSError, ValueError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f'--checkpoint={url} should be a module that tensorflow-hub can fetch; found: '
            f'{one_line(error)}. Check the address, or download the files and give their path.'
        ) from error


def _prefix_in(folder: str) -> str:
    names = names_in(folder)
    if CHECKPOINT_LIST in names:
        return _newest(folder)
    if 'variables' in names:
        return f'{folder}/variables/variables'
    prefixes = [name.removesuffix('.index') for name in names if name.endswith('.index')]
    if len(prefixes) == 1:
        return f'{folder}/{prefixes[0]}'
    if prefixes:
        raise UserError(
            f'--checkpoint={folder} should name one checkpoint; found {_listed(prefixes)}. '
            f'Choose one, such as --checkpoint={folder}/{prefixes[-1]}.'
        )
    found = f'only {_listed(names)}' if names else 'an empty folder'
    raise UserError(f'--checkpoint={folder} should be {WEIGHTS}; found {found}. Give another path.')


def _newest(folder: str) -> str:
    """The prefix that the file `checkpoint` names, even if the folder was moved."""
    named = newest_in(folder, 'Give the prefix of a checkpoint in that folder.')
    moved = f'{folder}/{named.rsplit("/", 1)[-1]}'
    return moved if tf.io.gfile.exists(f'{moved}.index') else named


def _prefix_of(path: str) -> str:
    return re.sub(r'\.(index|data-\d{5}-of-\d{5})$', '', path)


def _check_files(path: str, prefix: str) -> None:
    """Raises UserError unless index and data files of checkpoint `prefix` exist."""
    folder, _, base = prefix.rpartition('/')
    names = names_in(folder or '.') if tf.io.gfile.isdir(folder or '.') else []
    shards = _shards(prefix, names)
    indexed = f'{base}.index' in names
    if indexed and any(len(shards) >= int(shard[2]) for shard in shards):
        return
    wanted = f'{base}.index and {shards[0][2] if shards else "one or more"} data files'
    found = [f'{base}.index'] if indexed else []
    found += [shard[0] for shard in shards]
    if found or path.rstrip('/') != prefix:
        raise UserError(
            f'--checkpoint={path} is an unfinished or incomplete write: expected {wanted} in '
            f'{folder or "."}, found {_listed(found) or "neither"}. {ADVICE}'
        )
    there = 'another kind of file' if tf.io.gfile.exists(path) else 'nothing there'
    raise UserError(f'--checkpoint={path} should be {WEIGHTS}; found {there}. Check the path.')


def _shards(prefix: str, names: list[str]) -> list[re.Match[str]]:
    """Matches the data files of `prefix` in `names`; group 2 is their expected number."""
    base = re.escape(prefix.rpartition('/')[2])
    matches = [re.fullmatch(rf'{base}\.data-(\d{{5}})-of-(\d{{5}})', name) for name in names]
    return [match for match in matches if match]


def _listed(names: list[str]) -> str:
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


@contextlib.contextmanager
def _readable(path: str, *more: type[Exception]) -> Iterator[None]:
    """Turns errors of TensorFlow, and of types `more`, on reading `path` into a UserError."""
    try:
        yield
    except (tf.errors.OpError, *more) as error:
        raise UserError(
            f'--checkpoint={path} should be a whole checkpoint; found it damaged, unfinished or '
            f'out of reach: {one_line(error)}. {ADVICE}'
        ) from error


class CheckpointFile:
    """An open checkpoint.

    Args:
        prefix: what `locate` returned.

    Raises:
        UserError: if it is damaged, here or when values are read.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._links = contextlib.ExitStack()  # kept, because the reader opens data files later
        with _readable(prefix, IndexError):
            self._reader = tf.train.load_checkpoint(self._links.enter_context(plain_path(prefix)))
            shapes = self._reader.get_variable_to_shape_map()
        self.shapes = {key: tuple(shape) for key, shape in shapes.items() if key != GRAPH_KEY}
        self._has_graph = GRAPH_KEY in shapes
        self._check_size()

    def _check_size(self) -> None:
        """Raises UserError if the data files are too short for what the index lists.

        Otherwise a truncated file would be noticed only when its last values are read, which may be
        slots that nobody reads.
        """
        types = self._reader.get_variable_to_dtype_map()
        sizes = {key: types[key].size for key in self.shapes if types[key] != tf.string}
        least = sum(size * math.prod(self.shapes[key]) for key, size in sizes.items())
        folder = self.prefix.rpartition('/')[0] or '.'
        with _readable(self.prefix):
            files = [f'{folder}/{shard[0]}' for shard in _shards(self.prefix, names_in(folder))]
            length = sum(tf.io.gfile.stat(file).length for file in files)
        if length < least:
            raise UserError(
                f'--checkpoint={self.prefix} should be a whole checkpoint with {least} bytes of '
                f'data or more; found it unfinished or cut off, with {length}. {ADVICE}'
            )

    def value(self, key: str) -> np.ndarray:
        """The value of `key`."""
        # TensorFlow's reader raises IndexError if a file ends too early.
        with _readable(self.prefix, IndexError):
            return self._reader.get_tensor(key)

    def graph(self) -> TrackableObjectGraph | None:
        """The object graph; None in TF1 checkpoints."""
        if not self._has_graph:
            return None
        return TrackableObjectGraph.FromString(self.value(GRAPH_KEY))
