"""Atomic writes and other file operations, on any file system TensorFlow knows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator

import tensorflow as tf

from common.errors import UserError, one_line
from common.file_names import CHECKPOINT
from tf2.out_of_memory import is_out_of_memory

PATTERN = re.compile(r'[\[\\]')  # a path with one of these, as a glob, doesn't match itself
PARTIAL = re.compile(r'.+\.[0-9a-f]{32}\.partial')


def write_text(path: str, text: str) -> None:
    """Writes `text` to `path` atomically: readers see the old file or the new one."""
    with _replacing(path) as partial, tf.io.gfile.GFile(partial, 'w') as file:
        file.write(text)


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[str]:
    """A local path, whose file becomes `path` atomically at the end of the context.

    Until then, readers see the old file.
    """
    with _replacing(path) as partial:
        if '://' not in path:
            yield partial
            return
        with tempfile.TemporaryDirectory() as folder:
            yield f'{folder}/file'
            tf.io.gfile.copy(f'{folder}/file', partial)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    partial = f'{path}.{uuid.uuid4().hex}.partial'
    try:
        yield partial
        tf.io.gfile.rename(partial, path, overwrite=True)
    except BaseException:
        remove_if_there(partial)
        raise


def remove_if_there(path: str) -> None:
    """Removes a file, a link, or a folder with its contents; doesn't follow links."""
    if '://' in path:
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)
        elif tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)  # TensorFlow's would follow links
    elif os.path.lexists(path):
        os.remove(path)


def names_in(folder: str) -> list[str]:
    """Sorted names of the files and folders in `folder`."""
    # Object stores add a slash to the names of folders.
    return sorted(name.rstrip('/') for name in tf.io.gfile.listdir(folder))


@contextlib.contextmanager
def plain_path(path: str) -> Iterator[str]:
    """A path from which TensorFlow can read the checkpoint or SavedModel `path`.

    TensorFlow's readers treat paths as globs, so they find nothing in a folder such as 'run[1]'.
    For such a path this is a temporary folder of links.

    Args:
        path: prefix of a checkpoint, or folder of a SavedModel.
    """
    if '://' in path or not PATTERN.search(path):
        yield path
        return
    folder, base = os.path.split(os.path.abspath(path))
    with tempfile.TemporaryDirectory() as links:
        for name in os.listdir(folder):
            if name == base or name.startswith(f'{base}.'):
                os.symlink(f'{folder}/{name}', f'{links}/link{name.removeprefix(base)}')
        yield f'{links}/link'


def clear_leftovers(folder: str) -> None:
    """Removes the unfinished files of killed processes from `folder`, which need not exist."""
    if not tf.io.gfile.isdir(folder):
        return
    for name in names_in(folder):
        if is_partial(name):
            remove_if_there(f'{folder}/{name}')


def is_partial(name: str) -> bool:
    """Whether `name` is that of an unfinished file."""
    return bool(PARTIAL.fullmatch(name))


@contextlib.contextmanager
def writing(folder: str) -> Iterator[None]:
    """Turns errors on writing to `folder` into a UserError.

    Raises:
        UserError: if a file can't be written; names the folder and the cause.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        # The values to write come from devices and other workers, where errors have other causes.
        if 'Collective ops' in str(error) or is_out_of_memory(error):
            raise
        raise UserError(
            f'{folder} must be writable; found otherwise ({one_line(error)}). What was written '
            'before is whole. Make room or give access, then run the same command to resume.'
        ) from error


def checkpoints_in(folder: str) -> list[str]:
    """Path prefixes of the finished checkpoints in `folder`, oldest first.

    Empty if there is no folder. A checkpoint is finished once its index, written last, exists.
    """
    if not tf.io.gfile.isdir(folder):
        return []
    matches = (re.fullmatch(rf'({CHECKPOINT}-\d+)\.index', name) for name in names_in(folder))
    return sorted((os.path.join(folder, match[1]) for match in matches if match), key=step_of)


def step_of(path: str) -> int:
    """Number of updates of checkpoint `path`, from its name."""
    return int(re.fullmatch(rf'{CHECKPOINT}-(\d+)', path.rsplit('/', 1)[-1]).group(1))
