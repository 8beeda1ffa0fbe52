"""One process at a time in a folder: who is alive is refused, who is gone is followed."""

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


def test_a_lock_is_gone_at_the_end_and_so_is_a_folder_that_nothing_came_into(
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / 'a' / 'run'
    for error in (None, UserError('x'), KeyboardInterrupt()):
        with contextlib.suppress(UserError, KeyboardInterrupt), lock.held(str(folder)):
            assert lock.holder(str(folder)).pid == os.getpid()
            refused(folder)  # a second one in this process, too
            if error:
                raise error
        assert not folder.exists()
    with lock.held(str(folder)):
        (folder / 'file').write_text('')
    assert [path.name for path in folder.iterdir()] == ['file']
    assert lock.holder(str(folder)) is None


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_runs_is_refused_and_one_that_is_gone_taken_over_from(
    number: signal.Signals, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Alive, stopped for a while, killed: at once, since the kernel knows."""
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
def test_a_lock_that_says_nothing_is_no_obstacle(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / lock.FILE).write_bytes(content.encode('latin-1'))
    assert lock.holder(str(tmp_path)) is None
    with lock.held(str(tmp_path)):
        refused(tmp_path)


def left_by(host: str) -> str:
    return json.dumps({'host': host, 'pid': 1, 'since': 'then', 'beats': 3})


def test_another_machine_counts_as_gone_when_its_heart_stands_still(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lock, 'SECONDS_TO_WATCH', 0.1)
    (tmp_path / lock.FILE).write_text(left_by('elsewhere'))
    assert lock.holder(str(tmp_path)) is None
    with lock.held(str(tmp_path)):
        assert 'Taking over' in capsys.readouterr().out


@pytest.mark.parametrize('locks', [True, False], ids=['locks', 'no locks'])
def test_another_machine_whose_heart_beats_is_refused(
    locks: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its lock doesn't show here, or the file system knows none."""
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


def test_a_lock_that_another_machine_took_over_is_left_to_it(tmp_path: pathlib.Path) -> None:
    with lock.held(str(tmp_path)):
        (tmp_path / lock.FILE).write_text(left_by('elsewhere'))
    assert json.loads((tmp_path / lock.FILE).read_text())['host'] == 'elsewhere'


def test_a_folder_that_refuses_a_lock_costs_one_line(tmp_path: pathlib.Path) -> None:
    """A link in its place is not followed; a file is in the way; an object store has none."""
    (tmp_path / lock.FILE).symlink_to(tmp_path / 'mine')
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path, tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match='must be writable') as error:
            lock.held(str(folder)).__enter__()
        assert '\n' not in str(error.value)
    assert not (tmp_path / 'mine').exists()
    with lock.held('gs://bucket/run'):
        pass
