"""Files that appear whole or not at all, on any file system TensorFlow knows."""

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

PATTERN = re.compile(r'[\[\\]')  # what makes a path a pattern that doesn't match itself
PARTIAL = re.compile(r'.+\.[0-9a-f]{32}\.partial')


def write_text(path: str, text: str) -> None:
    """Writes `text` to `path`; whoever reads meanwhile sees the old file or the new one."""
    with _replacing(path) as partial, tf.io.gfile.GFile(partial, 'w') as file:
        file.write(text)


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[str]:
    """A path of this machine; what is written there becomes the file `path` at the end.

    Whoever reads meanwhile sees the old file or the new one.
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
    """Removes a file, a link, or a folder with all that is in it; what links lead to stays."""
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
    """Names of the files and folders in `folder`, in order."""
    # Object stores add a slash to the names of folders.
    return sorted(name.rstrip('/') for name in tf.io.gfile.listdir(folder))


@contextlib.contextmanager
def plain_path(path: str) -> Iterator[str]:
    """A path by which TensorFlow can read the checkpoint or SavedModel `path`.

    Its readers take the path for a pattern, and so don't find what is below a folder such as
    'run[1]'. There it is a path of links that last as long as the context.

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
    """Removes what a killed `write_text` or `written_whole` left in `folder`, if there is one."""
    if not tf.io.gfile.isdir(folder):
        return
    for name in names_in(folder):
        if is_partial(name):
            remove_if_there(f'{folder}/{name}')


def is_partial(name: str) -> bool:
    """Whether a file of this name is one whose writing was not finished."""
    return bool(PARTIAL.fullmatch(name))


@contextlib.contextmanager
def writing(folder: str) -> Iterator[None]:
    """Within it a file that can't be written is a UserError.

    Raises:
        UserError: names the folder and the cause.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        # What is to be written comes from all workers, and one may be gone, or from the device.
        if 'Collective ops' in str(error) or is_out_of_memory(error):
            raise
        raise UserError(
            f'{folder} must be writable; found otherwise ({one_line(error)}). What was written '
            'before is whole. Make room or give access, then run the same command to resume.'
        ) from error


def checkpoints_in(folder: str) -> list[str]:
    """Path prefixes of the checkpoints in `folder`, oldest first; none where there is no folder.

    The index of each was written last, so that those without are not finished.
    """
    if not tf.io.gfile.isdir(folder):
        return []
    matches = (re.fullmatch(rf'({CHECKPOINT}-\d+)\.index', name) for name in names_in(folder))
    return sorted((os.path.join(folder, match[1]) for match in matches if match), key=step_of)


def step_of(path: str) -> int:
    """Number of updates of checkpoint `path`, from its name."""
    return int(re.fullmatch(rf'{CHECKPOINT}-(\d+)', path.rsplit('/', 1)[-1]).group(1))
