"""One process at a time in a folder: the lock of a process is taken over only after its end."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from app import lock
from common.errors import UserError


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, 'SECONDS_TO_TRY', 0.1)


HOLDING = """
import sys, time
from app import lock
with lock.held(sys.argv[1]):
    print('held', flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def other(folder: pathlib.Path) -> Iterator[subprocess.Popen]:
    """A process that holds the lock of `folder`."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDING, str(folder)], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout.readline() == 'held\n'
            yield process
        finally:
            process.kill()


def refused(folder: pathlib.Path) -> str:
    with pytest.raises(UserError, match='one run at a time') as error, lock.held(str(folder)):
        pass
    assert '\n' not in str(error.value)
    return str(error.value)


def test_the_lock_and_an_empty_new_folder_are_removed_at_the_end(
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / 'a' / 'run'
    for error in (None, UserError('x'), KeyboardInterrupt()):
        with contextlib.suppress(UserError, KeyboardInterrupt), lock.held(str(folder)):
            assert lock.holder(str(folder)).pid == os.getpid()
            refused(folder)  # also a second time in this process
            if error:
                raise error
        assert not folder.exists()
    with lock.held(str(folder)):
        (folder / 'file').write_text('')
    assert [path.name for path in folder.iterdir()] == ['file']
    assert lock.holder(str(folder)) is None


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_is_taken_over_only_from_a_process_that_is_gone(
    number: signal.Signals, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """The process runs, is suspended, is killed; the kernel then releases the lock at once."""
    with other(tmp_path) as process:
        assert f'process {process.pid} on' in refused(tmp_path)
        assert lock.holder(str(tmp_path)).pid == process.pid
        process.send_signal(signal.SIGSTOP)
        refused(tmp_path)
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        process.wait(10)
        assert (tmp_path / lock.FILE).exists() and lock.holder(str(tmp_path)) is None
        with lock.held(str(tmp_path)):
            shown = capsys.readouterr().out
            assert f'Taking over {tmp_path} from process {process.pid} on' in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('content', ['', 'x', '[1]', '{"pid": 1, "more": 2}', '\xff\x00'])
def test_an_unreadable_lock_file_is_no_obstacle(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / lock.FILE).write_bytes(content.encode('latin-1'))
    assert lock.holder(str(tmp_path)) is None
    with lock.held(str(tmp_path)):
        refused(tmp_path)


def left_by(host: str) -> str:
    return json.dumps({'host': host, 'pid': 1, 'since': 'then', 'beats': 3})


def test_a_process_on_another_machine_is_gone_if_its_heartbeat_stops(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lock, 'SECONDS_TO_WATCH', 0.1)
    (tmp_path / lock.FILE).write_text(left_by('elsewhere'))
    assert lock.holder(str(tmp_path)) is None
    with lock.held(str(tmp_path)):
        assert 'Taking over' in capsys.readouterr().out


@pytest.mark.parametrize('locks', [True, False], ids=['locks', 'no locks'])
def test_the_lock_of_another_machine_with_a_heartbeat_is_respected(
    locks: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If its lock is invisible here, or the file system has no locks."""
    monkeypatch.setattr(lock, 'SECONDS_BETWEEN_BEATS', 0.05)
    monkeypatch.setattr(lock.fcntl, 'flock', (lambda *_: None) if locks else no_locks)
    with monkeypatch.context() as patch:
        patch.setattr(lock.socket, 'gethostname', lambda: 'elsewhere')
        holding = lock.held(str(tmp_path))
        holding.__enter__()
    try:
        assert 'on elsewhere' in refused(tmp_path)
        assert lock.holder(str(tmp_path)).host == 'elsewhere'
    finally:
        holding.__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def no_locks(*_: object) -> None:
    raise OSError(95, 'Operation not supported')


def test_a_lock_taken_over_by_another_machine_is_not_removed(tmp_path: pathlib.Path) -> None:
    with lock.held(str(tmp_path)):
        (tmp_path / lock.FILE).write_text(left_by('elsewhere'))
    assert json.loads((tmp_path / lock.FILE).read_text())['host'] == 'elsewhere'


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path: pathlib.Path) -> None:
    """A link in its place, a file in place of the folder; object stores have no locks."""
    (tmp_path / lock.FILE).symlink_to(tmp_path / 'mine')
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path, tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match='must be writable') as error:
            lock.held(str(folder)).__enter__()
        assert '\n' not in str(error.value)
    assert not (tmp_path / 'mine').exists()
    with lock.held('gs://bucket/run'):
        pass
