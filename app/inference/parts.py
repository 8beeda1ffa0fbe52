"""Rows that a pass computes, kept in files of a folder until the pass is over.

Each file covers the examples from one number to another and appears whole. So memory doesn't grow
with the data, and an interrupted pass resumes after the last file.
"""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line
from tf2.files import names_in, remove_if_there, write_text, written_whole

SECONDS_BETWEEN_PARTS = 30.0
BYTES_OF_PART = 128 << 20
RECORD = 'settings.json'
_NAME = re.compile(r'(\d{12})-(\d{12})\.npz')


class Parts:
    """The rows of one pass over some examples.

    Args:
        folder: where the files are.
        settings: what the rows depend on; JSON values.
        writes: whether this process writes; others only look how far the pass has come.

    Raises:
        UserError: if the folder holds rows of a pass with other settings.
    """

    def __init__(self, folder: str, settings: Mapping[str, Any], *, writes: bool = True) -> None:
        self.folder = folder
        self._writes = writes
        self._held: list[Mapping[str, np.ndarray]] = []
        self._bytes, self._since = 0, time.monotonic()
        self._files = self._resume(settings)
        self.examples = self._flushed

    @property
    def _flushed(self) -> int:
        return _range_of(self._files[-1])[1] if self._files else 0

    def _resume(self, settings: Mapping[str, Any]) -> list[str]:
        """Names of the files that cover all examples from the first one on."""
        path = f'{self.folder}/{RECORD}'
        if not tf.io.gfile.exists(path):
            if self._writes:
                remove_if_there(self.folder)
                tf.io.gfile.makedirs(self.folder)
                write_text(path, json.dumps(dict(settings), indent=1, sort_keys=True) + '\n')
            return []
        with tf.io.gfile.GFile(path) as file:
            _check_same(self.folder, json.loads(file.read()), dict(settings))
        files, reached = [], 0
        for name in filter(_NAME.fullmatch, names_in(self.folder)):
            start, stop = _range_of(name)
            if start == reached:
                files.append(name)
                reached = stop
        return files

    def add(self, rows: Mapping[str, np.ndarray], examples: int) -> None:
        """Takes rows of the next `examples` examples; writes them if it is time.

        Args:
            rows: name -> array; the same names each time.
            examples: how many these are; skipped ones have no rows.
        """
        self.examples += examples
        if not self._writes:
            return
        self._held.append(rows)
        self._bytes += sum(array.nbytes for array in rows.values())
        late = time.monotonic() - self._since >= SECONDS_BETWEEN_PARTS
        if late or self._bytes >= BYTES_OF_PART:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are held, if there are any."""
        if self._held:
            name = f'{self._flushed:012d}-{self.examples:012d}.npz'
            joined = {
                key: np.concatenate([rows[key] for rows in self._held]) for key in self._held[0]
            }
            # A file object, because NumPy would add an extension to a path.
            with written_whole(f'{self.folder}/{name}') as path, open(path, 'wb') as file:
                np.savez(file, **joined)
            self._files.append(name)
        self._held, self._bytes, self._since = [], 0, time.monotonic()

    def read(self, keys: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The arrays `keys` of one file after the other; those that are held are not included.

        Raises:
            UserError: if a file can't be read.
        """
        for name in self._files:
            path = f'{self.folder}/{name}'
            try:
                with tf.io.gfile.GFile(path, 'rb') as file, np.load(file) as stored:
                    found = {key: stored[key] for key in keys}
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, tf.errors.OpError) as error:
                raise UserError(
                    f'{path} must hold rows as they were written; it cannot be read '
                    f'({one_line(error)}). Remove {self.folder} and run the command again.'
                ) from error
            yield found

    def remove(self) -> None:
        """Removes the folder."""
        remove_if_there(self.folder)


def _range_of(name: str) -> tuple[int, int]:
    start, stop = map(int, _NAME.fullmatch(name).groups())
    return start, stop


def _check_same(folder: str, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differing = [key for key in asked if found.get(key) != asked[key]]
    if differing:
        recorded = ', '.join(f'{key} {found.get(key)}' for key in differing)
        wanted = ', '.join(f'{key} {asked[key]}' for key in differing)
        raise UserError(
            f'{folder} holds the first rows of an interrupted run with {recorded}; this one has '
            f'{wanted}. Run the same command to resume, or remove that folder to start over.'
        )


def rebatched(parts: Iterator[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, np.ndarray]]:
    """The same rows, `size` at a time but for the last, wherever files begin and end."""
    held: list[dict[str, np.ndarray]] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(next(iter(part.values())))
        if count >= size:
            joined = {key: np.concatenate([rows[key] for rows in held]) for key in part}
            whole = count - count % size
            for start in range(0, whole, size):
                yield {key: array[start : start + size] for key, array in joined.items()}
            held = [{key: array[whole:] for key, array in joined.items()}]
            count -= whole
    if count:
        yield {key: np.concatenate([rows[key] for rows in held]) for key in held[0]}


def folder_of(path: str) -> str:
    """Where the rows of the file `path` are kept until it is written."""
    return f'{path}.unfinished'
