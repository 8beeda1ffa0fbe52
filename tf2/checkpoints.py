"""Checkpoints: written while training, restored when a run goes on, loaded for evaluation."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from common.errors import UserError, one_line
from common.file_names import CHECKPOINT, CHECKPOINT_LIST
from tf2 import distribution
from tf2.files import (
    checkpoints_in,
    names_in,
    plain_path,
    remove_if_there,
    step_of,
    write_text,
    writing,
)
from tf2.methods.base import Method
from tf2.models.encoder import SimCLRModel
from tf2.weights.record import RECORD_KEY

_OF_FILES = (tf.errors.DataLossError, tf.errors.OutOfRangeError, tf.errors.NotFoundError)
_DATA = r'\.data-\d{5}-of-(\d{5})'
_WHOLE = rf'(?:\.index|{_DATA})'  # what follows the prefix in the names of a checkpoint's files
_SCRATCH = rf'(?:_temp|{_WHOLE}\.tempstate\d+)'  # and in those of what it is written from


class DamagedError(UserError):
    """A checkpoint whose files were read to their ends, and were cut off or changed."""


class _Record(tf.train.experimental.PythonState):
    """What a checkpoint says in words, a JSON object, beside its variables."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def serialize(self) -> str:
        return json.dumps(self.values)

    def deserialize(self, string_value: bytes) -> None:
        self.values.clear()
        self.values.update(json.loads(string_value))


class Checkpoints:
    """The checkpoints `ckpt-N` of a training run, N the number of updates.

    Under a strategy over several workers, which all have to save, those of the first one count;
    what the others write goes to a folder of their own that is soon gone.

    Args:
        model_dir: folder they are in.
        model: built model.
        method: whatever state it has besides the model's.
        optimizer: built, so that its variables exist.
        keep: how many of the newest to keep; 0 keeps all.

    Attributes:
        record: saved with every checkpoint and restored by `resume`: values that JSON takes, by
            name. Empty where the checkpoint is of a release that had none.
    """

    def __init__(
        self,
        model_dir: str,
        model: SimCLRModel,
        method: Method,
        optimizer: tf.keras.optimizers.Optimizer,
        keep: int,
    ) -> None:
        self._folder, self._keep = model_dir, keep
        self._writes = distribution.is_chief(tf.distribute.get_strategy())
        parts = {'model': model, 'objective': method, 'optimizer': optimizer}
        record = _Record()
        self.record = record.values
        self._checkpoint = tf.train.Checkpoint(**parts, record=record)
        self._without_record = tf.train.Checkpoint(**parts)
        # Made when it is first asked for; tf.train.Checkpoint.restore looks for it in each file.
        for checkpoint in (self._checkpoint, self._without_record):
            checkpoint.save_counter.assign(0)

    @property
    def latest(self) -> str | None:
        """Path prefix of the newest checkpoint, None before the first."""
        return next(reversed(checkpoints_in(self._folder)), None)

    def resume(self) -> str | None:
        """Restores the newest checkpoint that can be, all of it; None where there is none.

        Damaged ones are named and get other names. One that can't be read just now, or doesn't
        fit, ends the search.

        Returns:
            Its path.

        Raises:
            UserError: if there are some, but none that can be restored.
        """
        _check_indexes(self._folder)
        damaged: dict[str, DamagedError] = {}
        for path in reversed(checkpoints_in(self._folder)):
            try:
                has_record = recorded_in(path) is not None
                _restore(self._checkpoint if has_record else self._without_record, path)
            except DamagedError as error:
                damaged[path] = error
            else:
                self._tidy(damaged)
                return path
        if damaged:
            raise next(iter(damaged.values()))
        if self._writes and tf.io.gfile.isdir(self._folder):
            self._remove_unfinished()
        return None

    def _tidy(self, damaged: Mapping[str, DamagedError]) -> None:
        """Says what was damaged and sets it aside; removes what was not finished."""
        for path, error in damaged.items():
            print(f'The checkpoint before is taken: {error}', flush=True)
            distribution.wait_for_all(tf.distribute.get_strategy())  # each of them has read it
            if self._writes:
                with writing(self._folder):
                    kept = ', '.join(_set_aside(path))
                print(f'What is damaged is kept as {kept}.', flush=True)
        if not self._writes:
            return
        with writing(self._folder):
            for old in self._list_kept():
                _remove(old)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        with writing(self._folder):
            for path in _unfinished(self._folder):
                _remove(path)
            # A checkpoint is whole a moment before what it was written from is gone.
            for path in checkpoints_in(self._folder):
                for file in _files_of(path, _SCRATCH):
                    remove_if_there(file)

    def _list_kept(self) -> list[str]:
        """Writes the file `checkpoint`, by which others find the newest one; returns the rest."""
        found = checkpoints_in(self._folder)
        kept = found[-self._keep :] if self._keep else found
        # Names, not paths: a folder may be moved.
        names = [path.rsplit('/', 1)[-1] for path in kept]
        lines = [f'model_checkpoint_path: "{names[-1]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
        write_text(os.path.join(self._folder, CHECKPOINT_LIST), '\n'.join(lines) + '\n')
        return found[: len(found) - len(kept)]

    def save(self, step: int) -> str:
        """Writes a checkpoint and returns its path.

        Raises:
            UserError: if the folder doesn't take it. The ones before are as they were.
        """
        path = os.path.join(self._folder, f'{CHECKPOINT}-{step}')
        if not self._writes:
            with tempfile.TemporaryDirectory() as scratch:
                self._checkpoint.write(os.path.join(scratch, CHECKPOINT))
            return path
        with writing(self._folder):
            try:
                self._checkpoint.write(path)
            except BaseException:
                _remove(path)
                raise
            for old in self._list_kept():
                _remove(old)
        return path


def _unfinished(folder: str) -> list[str]:
    """Path prefixes of which there are files, but no index."""
    pattern = re.compile(rf'({CHECKPOINT}-\d+)(?:{_WHOLE}|{_SCRATCH})')
    names = (pattern.fullmatch(name) for name in names_in(folder))
    prefixes = {os.path.join(folder, name[1]) for name in names if name}
    return sorted(prefixes - set(checkpoints_in(folder)))


def _files_of(path: str, pattern: str) -> list[str]:
    """Paths of the files of checkpoint `path` that go on with `pattern`, those of no other."""
    # Not by a glob, to which a folder's own name may be a pattern that others match.
    folder, base = os.path.split(path)
    names = names_in(folder or '.')
    return [os.path.join(folder, n) for n in names if re.fullmatch(re.escape(base) + pattern, n)]


def _remove(path: str) -> None:
    """Removes the files of checkpoint `path`, its index first: without it there is none."""
    for file in [f'{path}.index', *_files_of(path, _DATA), *_files_of(path, _SCRATCH)]:
        remove_if_there(file)


def _set_aside(path: str) -> list[str]:
    """Renames the files of checkpoint `path`, its index first; returns their new names."""
    files = [f'{path}.index', *_files_of(path, _DATA)]
    endings = (f'.damaged-{number}' for number in itertools.count(1))
    free = next(e for e in endings if not any(tf.io.gfile.exists(f'{f}{e}') for f in files))
    for file in files:
        tf.io.gfile.rename(file, f'{file}{free}')
    return [os.path.basename(f'{file}{free}') for file in files]


def _check_indexes(folder: str) -> None:
    """Raises UserError where a whole checkpoint has lost its index: it looks unfinished then."""
    if not tf.io.gfile.isdir(folder):
        return
    listed = _listed_in(folder)
    for path in _unfinished(folder):
        data = _files_of(path, _DATA)
        if data and os.path.basename(path) in listed:
            raise UserError(
                f'{path}.index should be there, beside {os.path.basename(data[0])} of a checkpoint '
                'that was whole; found no such file. Bring it back, or move the data away to go on '
                'from the checkpoint before.'
            )


def _listed_in(folder: str) -> set[str]:
    """Names in the file `checkpoint`, which were whole when it was written."""
    path = os.path.join(folder, CHECKPOINT_LIST)
    if not tf.io.gfile.exists(path):
        return set()
    with tf.io.gfile.GFile(path, 'rb') as file:
        text = file.read().decode(errors='replace')  # by a program that was killed, or by hand
    return set(re.findall(rf'all_model_checkpoint_paths: "({CHECKPOINT}-\d+)"', text))


def load_model(path: str, model: SimCLRModel) -> int:
    """Loads the weights of the built `model` from a checkpoint, and nothing else.

    Args:
        path: prefix of a checkpoint, such as '.../ckpt-100'.
        model: of the same architecture.

    Returns:
        The number of updates the weights have had.

    Raises:
        UserError: if the checkpoint is of another architecture.
    """
    # The optimizer's part stays unread; every variable of the model has to be there.
    _restore(tf.train.Checkpoint(model=model), path).expect_partial()
    return step_of(path)


def recorded_in(path: str) -> dict[str, Any] | None:
    """`Checkpoints.record` of the checkpoint `path`; None where it is of an older release.

    Raises:
        DamagedError: if the checkpoint can't be read.
    """
    with _reading(path), plain_path(path) as plain:
        reader = tf.train.load_checkpoint(plain)
        return json.loads(reader.get_tensor(RECORD_KEY)) if reader.has_tensor(RECORD_KEY) else None


def _restore(checkpoint: tf.train.Checkpoint, path: str) -> Any:
    """Restores every variable of `checkpoint` from `path`, or raises UserError."""
    with _reading(path), plain_path(path) as plain:
        return checkpoint.read(plain).assert_existing_objects_matched()


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns what TensorFlow raises when it reads checkpoint `path` into a UserError."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise UserError(
            f'{path} must hold the model, method and optimizer that the flags describe, but '
            'does not. Choose another --model_dir, or the flags it was made with. Cause: '
            f'{one_line(error)}'
        ) from error
    except (tf.errors.OpError, IndexError, OSError) as error:
        hindrance = _hindrance(path)
        if hindrance:
            raise UserError(
                f"{path} should be a checkpoint that can be read, but can't be just now: "
                f'{hindrance}. Fix that, then run the same command.'
            ) from error
        # TensorFlow has no type of its own for most of what a damaged file does to its reader.
        if not (type(error) in (tf.errors.OpError, IndexError) or isinstance(error, _OF_FILES)):
            raise
        raise DamagedError(
            f'{path} should be a whole checkpoint, but is damaged. Remove its files, or choose '
            f'another --model_dir. Cause: {one_line(error)}'
        ) from error


def _hindrance(path: str) -> str | None:
    """Why the files of checkpoint `path` can't be read to their ends; None where they can."""
    try:
        data = _files_of(path, _DATA)
        wanted = int(data[0].rsplit('-', 1)[1]) if data else 1
        if len(data) < wanted:
            return f'{wanted - len(data)} of {wanted} data files missing'
        for name in (f'{path}.index', *data):
            with tf.io.gfile.GFile(name, 'rb') as file:
                while file.read(1 << 20):
                    pass
    except (OSError, tf.errors.OpError) as error:
        return one_line(error)
    return None
