"""A temporary folder for this process and its libraries, removed at its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator

from common.errors import UserError

PREFIX = 'simclr-'
NEEDED = 4 << 20  # bytes


@contextlib.contextmanager
def own_folder() -> Iterator[str]:
    """Directs temporary files to a new folder within the context, and removes it at the end.

    The folder of a process that was killed is removed by the next one.

    Raises:
        UserError: if no temporary files can be written.
    """
    before, variable = tempfile.tempdir, os.environ.get('TMPDIR')
    folder, lock = _make()
    tempfile.tempdir = os.environ['TMPDIR'] = folder
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ['TMPDIR']
        else:
            os.environ['TMPDIR'] = variable
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make() -> tuple[str, int]:
    """The new folder and its locked descriptor; removes the folders of processes that are gone."""
    place, folder = _place(), None
    try:
        _clear(place)
        folder = tempfile.mkdtemp(prefix=f'.{PREFIX}', dir=place)
        lock = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # without locks, it isn't removed after a kill
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Renamed once it is locked, because another process removes unlocked folders of this name.
        named = os.path.join(place, os.path.basename(folder)[1:])
        os.rename(folder, named)
        folder = named
        _check(folder)
    except (OSError, ValueError) as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f'{place!a} should take {NEEDED >> 20} MB of temporary files, but does not. Make room, '
            f'or set TMPDIR to another folder. Cause: {error}'
        ) from error
    return folder, lock


def _place() -> str:
    """The system's folder for temporary files; if it is full, no other one is chosen."""
    given = tempfile.tempdir or os.environ.get('TMPDIR', '')
    try:
        return os.path.abspath(given) if os.path.isdir(given) else tempfile.gettempdir()
    except FileNotFoundError:
        return '/tmp'  # `_check` will refuse it


def _check(folder: str) -> None:
    if re.search(r'[\[\\\udc80-\udcff]', folder):
        raise ValueError('TensorFlow reads no path with [ or \\, nor one that is not UTF-8')
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(NEEDED))


def _clear(place: str) -> None:
    """Removes folders that killed processes of this user left in `place`."""
    for name in os.listdir(place):
        if not name.startswith(PREFIX):
            continue
        try:
            folder = os.open(os.path.join(place, name), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone, or another user's
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISDIR(os.fstat(folder).st_mode) and os.fstat(folder).st_uid == os.getuid():
                shutil.rmtree(os.path.join(place, name), ignore_errors=True)
        except OSError:
            pass  # in use
        finally:
            os.close(folder)
