"""Output that can't be written is dropped; temporary folders are removed."""

from __future__ import annotations

import io
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from app import output, scratch
from common.errors import UserError

TALKING = """
import os, pathlib, sys, time
from app import output
with output.lasting():
    print('first')
    for number in range(3):
        print('more' * 100_000, flush=True)
        print('warning', file=sys.stderr, flush=True)
        os.write(2, b'of a library\\n')
        time.sleep(0.05)
    file = open('result', 'w')
    assert file.fileno() > 2, file.fileno()
    file.write('done')
"""


@pytest.mark.parametrize(
    'shell',
    [
        *('{} | head -1', '{} 2>&1 | true', '{} >&- 2>&-', '{} <&- >&- 2>&-'),
        *('{} > /dev/full', '{} 2> /dev/full', '{} > /dev/full 2>&1'),
    ],
)
def test_a_program_continues_when_its_output_cannot_be_written(
    shell: str, tmp_path: pathlib.Path
) -> None:
    """A closed pipe, a full disk, descriptors that are closed at the start."""
    (tmp_path / 'program.py').write_text(TALKING)
    command = shell.format(f'{sys.executable} program.py')
    done = subprocess.run(
        ['bash', '-o', 'pipefail', '-c', command],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / 'result').read_text() == 'done', done.stderr
    assert done.returncode == 0 and 'Traceback' not in done.stderr
    assert 'Exception ignored' not in done.stderr
    if 'head' in shell:
        assert done.stdout == 'first\n'
        assert 'the program continues without it' in done.stderr


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, 'Input/output error')


class Busy(io.StringIO):
    def write(self, text: str) -> int:
        if text == 'full':
            raise BlockingIOError(11, 'write could not complete without blocking')
        return super().write(text)


@pytest.mark.parametrize('stream', [Broken(), io.StringIO('closed'), None])
def test_a_stream_of_any_kind_may_fail(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(stream, io.StringIO) and stream.getvalue():
        stream.close()
    monkeypatch.setattr(sys, 'stdout', stream)
    with output.lasting():
        print('one', flush=True)
        print('two')
        assert not sys.stdout.isatty()
    assert sys.stdout is stream


def test_output_continues_after_a_pipe_was_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'stdout', Busy())
    with output.lasting():
        for text in ('a', 'full', 'b'):
            print(text, end='')
    assert sys.stdout.getvalue() == 'ab'


def test_characters_that_a_terminal_lacks_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, 'ascii'))
    with output.lasting():
        print('café \udce9')
    assert written.getvalue() == b'caf\\xe9 \\udce9\n'


# --- temporary files


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(tempfile, 'tempdir', None)
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    return tmp_path


@pytest.mark.parametrize('error', [None, UserError('x'), KeyboardInterrupt()])
def test_temporary_files_are_removed_at_the_end(
    error: BaseException | None, place: pathlib.Path
) -> None:
    def leave() -> None:
        with scratch.own_folder() as folder:
            assert os.environ['TMPDIR'] == tempfile.gettempdir() == folder
            tempfile.mkdtemp()
            subprocess.run(
                [sys.executable, '-c', 'import tempfile; tempfile.mkstemp()'], check=True
            )
            assert len(list(pathlib.Path(folder).iterdir())) == 2
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            leave()
    else:
        leave()
    assert not list(place.iterdir()) and os.environ['TMPDIR'] == str(place)
    assert tempfile.tempdir is None


def test_only_folders_of_killed_processes_are_removed(place: pathlib.Path) -> None:
    """Folders of running processes, similar names and links stay."""
    program = (
        'import tempfile, time\n'
        'from app import scratch\n'
        'with scratch.own_folder() as folder:\n'
        '    tempfile.mkstemp()\n    print(folder, flush=True)\n    time.sleep(600)\n'
    )
    (place / 'mine').mkdir()
    (place / 'mine' / 'file').write_text('')
    (place / 'simclr-link').symlink_to(place / 'mine')
    (place / 'simclr-file').write_text('')
    processes = [
        subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        folders = [process.stdout.readline().strip() for process in processes]
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        assert os.path.isdir(folders[0])
        with scratch.own_folder():
            left = [os.path.basename(folders[1]), 'mine', 'simclr-file', 'simclr-link']
            assert [name in os.listdir(place) for name in left] == [True] * 4
            assert not os.path.exists(folders[0]) and os.listdir(place / 'mine') == ['file']
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.mark.parametrize('name', ['a[1]', 'a\\b', 'caf\udce9'])
def test_a_temporary_folder_that_tensorflow_cannot_read_is_refused(
    name: str, place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / name).mkdir()
    monkeypatch.setenv('TMPDIR', str(place / name))
    with pytest.raises(UserError, match='set TMPDIR to another folder') as refused:
        scratch.own_folder().__enter__()
    assert str(refused.value).isascii() and not list((place / name).iterdir())


def test_a_full_temporary_folder_is_refused(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(tempfile, 'TemporaryFile', full)
    with pytest.raises(UserError, match=r'4 MB .* No space left') as refused:
        scratch.own_folder().__enter__()
    assert '\n' not in str(refused.value) and not list(place.iterdir())
