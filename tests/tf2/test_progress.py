"""The progress of a run: lines in a log, a bar in a terminal or notebook."""

from __future__ import annotations

import io
import re

import pytest

from tf2 import progress
from tf2.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, as its only entry."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


@pytest.mark.parametrize(
    ('seconds', 'words'),
    [
        (0, '00:00'),
        (90, '01:30'),
        (100_000, '27:46:40'),
        (1e6, '12 days'),
        (1e9, '11,574 days'),
        (1e30, 'over 100 years'),
        (float('inf'), 'over 100 years'),
    ],
)
def test_every_time_fits_the_line(seconds: float, words: str) -> None:
    assert progress.time_left(seconds) == words


def test_absurd_times_fit_the_bar_and_the_log(clock: list[float]) -> None:
    for stream in (Terminal(), io.StringIO()):
        shown = Progress(0, 10**15, 2, (), stream)
        for step in (1, 2, 10**15):
            clock[0] += 1000
            if shown._bar is not None:
                shown._bar.start_t -= 1000
            shown.update(step, {})
            if shown._bar is not None:
                shown._bar.refresh()
        shown.close()
        text = stream.getvalue().replace('\r', '\n')
        assert 'over 100 years left' in text or not stream.isatty()
        assert max(map(len, text.splitlines())) < 110


def test_a_log_gets_a_plain_line_now_and_then(clock: list[float]) -> None:
    log = io.StringIO()
    shown = Progress(0, 100, 32, ('contrast_loss', 'contrast_acc'), log)
    for step in range(1, 101):
        clock[0] += 1
        shown.update(step, {'contrast_loss': 4.0, 'contrast_acc': 0.25, 'unasked': 1.0})
    shown.close()
    lines = log.getvalue().splitlines()
    assert [int(re.match(r'step (\d+)/100: ', line)[1]) for line in lines] == [*range(10, 101, 10)]
    figures = 'contrast_loss 4.000, contrast_acc 0.250, 32 images/s'
    assert lines[0] == f'step 10/100: {figures}, 01:30 left'
    assert lines[-1] == f'step 100/100: {figures}, 00:00 left'
    assert '\r' not in log.getvalue()


def test_the_last_step_has_its_line_however_fast_it_came(clock: list[float]) -> None:
    log = io.StringIO()
    shown = Progress(0, 2, 32, ('loss',), log)
    shown.update(1, {'loss': 2.0})
    assert log.getvalue() == ''
    shown.update(2, {'loss': 1.0})
    assert log.getvalue().startswith('step 2/2: loss 1.000')


def test_the_rate_leaves_out_the_first_call_which_traces(clock: list[float]) -> None:
    log = io.StringIO()
    shown = Progress(50, 90, 10, (), log)
    clock[0] += 60
    shown.update(60, {})
    # Nothing can be said yet of the time left.
    assert log.getvalue() == 'step 60/90: \n'
    clock[0] += 10
    shown.update(80, {})
    assert log.getvalue().splitlines()[1] == 'step 80/90: 20 images/s, 00:05 left'


def test_a_terminal_gets_a_bar(clock: list[float]) -> None:
    terminal = Terminal()
    shown = Progress(3, 8, 16, ('contrast_loss',), terminal)
    for step in (4, 8):
        clock[0] += 2
        shown.update(step, {'contrast_loss': 1.5})
    shown.close()
    last = terminal.getvalue().rstrip('\n').split('\r')[-1]
    assert re.search(r'step 100%\|.*\| 8/8 \[.* left, contrast_loss 1\.500, 32 images/s', last)
    assert ' 3/8 ' in terminal.getvalue()


def test_a_notebook_gets_a_bar_without_widgets(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stdout, because it shows stderr as errors, and with all metrics, however narrow it is."""
    cell = type('OutStream', (io.StringIO,), {'__module__': 'ipykernel.iostream'})()
    monkeypatch.setattr(progress.sys, 'stdout', cell)
    shown = Progress(0, 8, 16, ('contrast_loss', 'supervised_loss', 'supervised_acc'))
    clock[0] += 2
    shown.update(8, dict.fromkeys(('contrast_loss', 'supervised_loss', 'supervised_acc'), 1.5))
    shown.close()
    last = cell.getvalue().rstrip('\n').split('\r')[-1]
    assert re.search(r'^step 100%\|.*\| 8/8 \[.*, supervised_acc 1\.500\]$', last.rstrip())
