"""Lets only one process at a time write to a model folder: it locks a file there.

The kernel releases the lock when the process ends, however it ends. Locks of another machine may be
invisible here, so the holder also writes a heartbeat to the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from common.errors import UserError

FILE = 'run.lock'
SECONDS_BETWEEN_BEATS = 5.0
SECONDS_TO_WATCH = 20.0  # how long to wait for a heartbeat
SECONDS_TO_TRY = 1.0  # how long to retry: `holder` takes the lock for a moment


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as the file says.

    Attributes:
        host: name of its machine.
        pid: its process ID.
        since: local time at which it took the lock.
        beats: a counter that increases while it runs.
    """

    host: str = 'an unknown host'
    pid: int = 0
    since: str = 'an unknown time'
    beats: int = 0

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}, since {self.since}'


@contextlib.contextmanager
def held(folder: str) -> Iterator[None]:
    """Holds the lock of `folder`, which is made if it doesn't exist, within the context.

    The lock of a process that is gone is taken over, with a message. Object stores have no locks:
    nothing is checked there.

    Raises:
        UserError: if another process holds the lock, or `folder` can't be written to.
    """
    if '://' in folder:
        yield
        return
    made = not os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        file, own = _taken(folder)
    except OSError as error:
        raise UserError(
            f'{folder} must be writable; found otherwise ({error}). Make room or give access, '
            'then run the same command.'
        ) from error
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(file, own, ended), daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        _release(folder, file, own, made)


def holder(folder: str) -> Holder | None:
    """The process that holds the lock of `folder`; None if there is none.

    If that may be a process on another machine, this waits for its heartbeat.
    """
    try:
        file = os.open(os.path.join(folder, FILE), os.O_RDONLY)
    except OSError:
        return None
    try:
        free, found = _try_lock(file, fcntl.LOCK_SH), _read(file)
        if free is False:
            return found or Holder()
        return found if found and _may_be_alive(found, free) and _beats(file, found) else None
    finally:
        os.close(file)


def _taken(folder: str) -> tuple[int, Holder]:
    """The lock file of `folder`, open and locked, and its new content, which names this process."""
    path = os.path.join(folder, FILE)
    file, free = _locked(path)
    try:
        before = _read(file)
        if before and free is not False and _may_be_alive(before, free):
            print(f'Watching whether {before} still works in {folder}.', flush=True)
            free = not _beats(file, before)
        if free is False:
            raise UserError(
                f'{folder} must be the folder of one run at a time; found it in use by '
                f'{before or Holder()}. Wait for that or stop it, or choose another --model_dir.'
            )
        if before:
            print(f'Taking over {folder} from {before}, which is gone.', flush=True)
        os.ftruncate(file, 0)
        own = Holder(socket.gethostname(), os.getpid(), time.strftime('%Y-%m-%d %H:%M:%S'))
        _write(file, own)
    except BaseException:
        os.close(file)
        raise
    return file, own


def _locked(path: str) -> tuple[int, bool | None]:
    """The file at `path`, opened or created, and the result of `_try_lock`."""
    ends = time.monotonic() + SECONDS_TO_TRY
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        free = _try_lock(file, fcntl.LOCK_EX)
        if free is not False and _is_at(file, path):
            return file, free
        if free is False and time.monotonic() > ends:
            return file, free
        os.close(file)  # its holder has removed it, or `holder` is reading it
        time.sleep(0.05)


def _try_lock(file: int, kind: int) -> bool | None:
    """Whether `file` could be locked; None if the file system has no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _may_be_alive(found: Holder, free: bool | None) -> bool:
    """Whether `found` may be alive although the lock is free or not supported."""
    return free is None or found.host != socket.gethostname()


def _beats(file: int, found: Holder) -> bool:
    """Whether the heartbeat of `found` continues."""
    ends = time.monotonic() + SECONDS_TO_WATCH
    while time.monotonic() < ends:
        time.sleep(SECONDS_TO_WATCH / 20)
        if _read(file) != found:
            return True
    return False


def _beat(file: int, own: Holder, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_BEATS) and _names(file, own):
        own = dataclasses.replace(own, beats=own.beats + 1)
        with contextlib.suppress(OSError):
            _write(file, own)


def _names(file: int, own: Holder) -> bool:
    """Whether the file still names this process; another machine may have taken over."""
    found = _read(file)
    return found is not None and dataclasses.replace(found, beats=own.beats) == own


def _read(file: int) -> Holder | None:
    """The holder that the file names; None if it can't be parsed."""
    try:
        return Holder(**json.loads(os.pread(file, 4096, 0)))
    except (OSError, ValueError, TypeError):
        return None


def _write(file: int, own: Holder) -> None:
    # Written in place with a fixed length, so that readers never see a partial state.
    text = json.dumps(dataclasses.asdict(own))
    os.pwrite(file, f'{text:<300}\n'.encode(), 0)


def _release(folder: str, file: int, own: Holder, made: bool) -> None:
    """Removes the lock file while it is locked, and the folder if it was made here and is empty."""
    path = os.path.join(folder, FILE)
    with contextlib.suppress(OSError):  # a folder that is gone, or refuses writing
        if _is_at(file, path) and _names(file, own):
            os.remove(path)
        if made:
            os.rmdir(folder)
    os.close(file)
