"""Checkpoints: written during training, restored on resuming, loaded for evaluation."""

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

_FILE_ERRORS = (tf.errors.DataLossError, tf.errors.OutOfRangeError, tf.errors.NotFoundError)
_DATA = r'\.data-\d{5}-of-(\d{5})'
_FINAL = rf'(?:\.index|{_DATA})'  # suffixes of a checkpoint's files
_SCRATCH = rf'(?:_temp|{_FINAL}\.tempstate\d+)'  # suffixes of temporary ones


class DamagedError(UserError):
    """A checkpoint whose files can be read, but are truncated or changed."""


class _Record(tf.train.experimental.PythonState):
    """A JSON object that a checkpoint holds besides its variables."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def serialize(self) -> str:
        return json.dumps(self.values)

    def deserialize(self, string_value: bytes) -> None:
        self.values.clear()
        self.values.update(json.loads(string_value))


class Checkpoints:
    """The checkpoints `ckpt-N` of a training run, N the number of updates.

    With several workers, all of them have to save. Only the chief's checkpoints are kept; the
    others write to a temporary folder.

    Args:
        model_dir: folder of the checkpoints.
        model: built.
        method: saved for the state that it has besides the model's.
        optimizer: built, so that its variables exist.
        keep: how many of the newest to keep; 0 keeps all.

    Attributes:
        record: name -> JSON value, saved with every checkpoint and restored by `resume`. Stays
            empty if the checkpoint is from a release that had no record.
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
        # Creates the counter, which `tf.train.Checkpoint.restore` looks for in each file.
        for checkpoint in (self._checkpoint, self._without_record):
            checkpoint.save_counter.assign(0)

    @property
    def latest(self) -> str | None:
        """Path prefix of the newest checkpoint; None before the first."""
        return next(reversed(checkpoints_in(self._folder)), None)

    def resume(self) -> str | None:
        """Restores all of the newest undamaged checkpoint.

        Damaged ones are reported and renamed.

        Returns:
            Its path; None if there is no checkpoint.

        Raises:
            UserError: if all are damaged, or one can't be read at the moment or doesn't fit.
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
        """Reports and renames damaged checkpoints; removes unfinished and surplus ones."""
        for path, error in damaged.items():
            print(f'Resuming from the previous checkpoint: {error}', flush=True)
            distribution.wait_for_all(tf.distribute.get_strategy())  # until all have read it
            if self._writes:
                with writing(self._folder):
                    kept = ', '.join(_set_aside(path))
                print(f'The damaged files are kept as {kept}.', flush=True)
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
            # A process can be killed after it finished a checkpoint, before it tidied up.
            for path in checkpoints_in(self._folder):
                for file in _files_of(path, _SCRATCH):
                    remove_if_there(file)

    def _list_kept(self) -> list[str]:
        """Writes the file `checkpoint` for other programs; returns the checkpoints to remove."""
        found = checkpoints_in(self._folder)
        kept = found[-self._keep :] if self._keep else found
        # Names, not paths: the folder may be moved.
        names = [path.rsplit('/', 1)[-1] for path in kept]
        lines = [f'model_checkpoint_path: "{names[-1]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
        write_text(os.path.join(self._folder, CHECKPOINT_LIST), '\n'.join(lines) + '\n')
        return found[: len(found) - len(kept)]

    def save(self, step: int) -> str:
        """Writes a checkpoint and returns its path.

        Raises:
            UserError: if it can't be written. Earlier checkpoints are unaffected.
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
    """Path prefixes of checkpoints with files but without an index."""
    pattern = re.compile(rf'({CHECKPOINT}-\d+)(?:{_FINAL}|{_SCRATCH})')
    names = (pattern.fullmatch(name) for name in names_in(folder))
    prefixes = {os.path.join(folder, name[1]) for name in names if name}
    return sorted(prefixes - set(checkpoints_in(folder)))


def _files_of(path: str, pattern: str) -> list[str]:
    """Paths of the files that are named `path` followed by `pattern`."""
    # Not by a glob: the folder's own name may contain special characters.
    folder, base = os.path.split(path)
    names = names_in(folder or '.')
    return [os.path.join(folder, n) for n in names if re.fullmatch(re.escape(base) + pattern, n)]


def _remove(path: str) -> None:
    """Removes the files of checkpoint `path`, first its index, which makes it one."""
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
    """Raises UserError if a finished checkpoint has lost its index, and so looks unfinished."""
    if not tf.io.gfile.isdir(folder):
        return
    listed = _listed_in(folder)
    for path in _unfinished(folder):
        data = _files_of(path, _DATA)
        if data and os.path.basename(path) in listed:
            raise UserError(
                f'{path}.index should exist, because {os.path.basename(data[0])} is of a finished '
                'checkpoint; found no such file. Restore it, or move the data file away to resume '
                'from the previous checkpoint.'
            )


def _listed_in(folder: str) -> set[str]:
    """Names in the file `checkpoint`, of checkpoints that were finished when it was written."""
    path = os.path.join(folder, CHECKPOINT_LIST)
    if not tf.io.gfile.exists(path):
        return set()
    with tf.io.gfile.GFile(path, 'rb') as file:
        text = file.read().decode(errors='replace')  # it may be truncated or edited
    return set(re.findall(rf'all_model_checkpoint_paths: "({CHECKPOINT}-\d+)"', text))


def load_model(path: str, model: SimCLRModel) -> int:
    """Loads the weights of the built `model` from a checkpoint.

    Args:
        path: prefix of a checkpoint, such as '.../ckpt-100'.
        model: of the same architecture.

    Returns:
        The number of updates the weights have had.

    Raises:
        UserError: if the checkpoint is of another architecture.
    """
    # Everything else in the checkpoint stays unread, but no variable of the model may be missing.
    _restore(tf.train.Checkpoint(model=model), path).expect_partial()
    return step_of(path)


def recorded_in(path: str) -> dict[str, Any] | None:
    """`Checkpoints.record` of the checkpoint `path`; None if it is from an older release.

    Raises:
        DamagedError: if the checkpoint can't be read.
    """
    with _reading(path), plain_path(path) as plain:
        reader = tf.train.load_checkpoint(plain)
        return json.loads(reader.get_tensor(RECORD_KEY)) if reader.has_tensor(RECORD_KEY) else None


def _restore(checkpoint: tf.train.Checkpoint, path: str) -> Any:
    """Restores every variable of `checkpoint` from `path`; raises UserError if one is missing."""
    with _reading(path), plain_path(path) as plain:
        return checkpoint.read(plain).assert_existing_objects_matched()


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns TensorFlow's errors on reading checkpoint `path` into a UserError."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise UserError(
            f'{path} must hold the model, method and optimizer that the flags describe, but '
            'does not. Choose another --model_dir, or the flags it was made with. Cause: '
            f'{one_line(error)}'
        ) from error
    except (tf.errors.OpError, IndexError, OSError) as error:
        obstacle = _obstacle(path)
        if obstacle:
            raise UserError(
                f"{path} should be a readable checkpoint, but can't be read at the moment: "
                f'{obstacle}. Fix that, then run the same command.'
            ) from error
        # TensorFlow raises general types of errors for most kinds of damage.
        if not (type(error) in (tf.errors.OpError, IndexError) or isinstance(error, _FILE_ERRORS)):
            raise
        raise DamagedError(
            f'{path} should be a whole checkpoint, but is damaged. Remove its files, or choose '
            f'another --model_dir. Cause: {one_line(error)}'
        ) from error


def _obstacle(path: str) -> str | None:
    """Why the files of checkpoint `path` can't be read in full; None if they can."""
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
