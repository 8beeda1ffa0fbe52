"""Signals: raised at once, or when a deferral ends; the second one is not handled."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from common.interruption import SIGNALS, WARNINGS, Interrupted, Stop


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.1)  # Python calls the handler between two of its instructions


def interrupted(stop: Stop, program: Callable[[], None]) -> Interrupted:
    """The signal that ends `program`."""
    with stop.handling(), pytest.raises(Interrupted) as caught:
        program()
    return caught.value


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_is_raised_at_once(number: signal.Signals) -> None:
    error = interrupted(Stop(), lambda: send(number))
    assert (error.number, str(error)) == (number, number.name)


@pytest.mark.parametrize('number', SIGNALS)
def test_a_deferred_signal_is_raised_at_the_end(
    number: signal.Signals, capfd: pytest.CaptureFixture
) -> None:
    stop, reached = Stop(), []

    def program() -> None:
        with stop.deferred():
            send(number)
            reached.append(stop.number)
        reached.append('behind')

    assert interrupted(stop, program).number == number
    assert reached == [number]
    assert 'a second signal stops now' in capfd.readouterr().err


def test_a_part_of_a_deferral_may_be_interrupted() -> None:
    stop, reached = Stop(), []

    def program() -> None:
        with stop.deferred():
            with stop.allowed():
                reached.append('allowed')
            with stop.allowed():
                send(signal.SIGTERM)
                reached.append('behind')

    interrupted(stop, program)
    assert reached == ['allowed']


def test_a_deferred_signal_is_raised_as_soon_as_allowed() -> None:
    stop, reached = Stop(), []

    def program() -> None:
        with stop.deferred():
            send(signal.SIGTERM)
            reached.append('deferred')
            with stop.allowed():
                reached.append('behind')

    interrupted(stop, program)
    assert reached == ['deferred']


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = Stop()
    with stop.handling():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library might
        stop.listen()
        assert signal.getsignal(signal.SIGTERM) == stop._handle
    assert [signal.getsignal(number) for number in SIGNALS] == before


class Sending:
    def __del__(self) -> None:
        send(signal.SIGTERM)


def lose_a_weak_reference() -> None:
    lost = Stop()
    weakref.finalize(lost, send, signal.SIGTERM)


@pytest.mark.parametrize('place', [Sending, lose_a_weak_reference])
def test_a_signal_is_raised_even_if_python_ignores_it_where_it_comes(
    place: Callable[[], object], capfd: pytest.CaptureFixture
) -> None:
    def program() -> None:
        place()
        time.sleep(10)

    assert interrupted(Stop(), program).number == signal.SIGTERM
    assert capfd.readouterr().err == ''


def test_a_second_interrupt_of_a_process_that_goes_on_is_raised() -> None:
    stop = Stop(ends_process=False)
    with stop.handling(), contextlib.suppress(Interrupted), stop.deferred():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_nothing_is_installed_that_would_not_be_removed() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    Stop().listen()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_other_threads_run_without_handlers() -> None:
    def program() -> list[object]:
        stop = Stop()
        with stop.handling(), stop.deferred():
            stop.listen()
            return [signal.getsignal(number) for number in SIGNALS]

    before = [signal.getsignal(number) for number in SIGNALS]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        assert threads.submit(program).result() == before


WAITING = """
import time
from common.interruption import Stop
stop = Stop()
with stop.handling(), stop.deferred():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


@contextlib.contextmanager
def waiting(**options: object) -> Iterator[subprocess.Popen]:
    """A process that defers signals forever."""
    process = subprocess.Popen(
        [sys.executable, '-c', WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
    with process:
        assert process.stdout.readline() == b'ready\n'
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen) -> None:
    assert process.stderr.readline() == b'\n'
    assert b'a second signal' in process.stderr.readline()
    assert process.poll() is None


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    with waiting() as process:
        process.send_signal(number)
        told(process)
        process.send_signal(number)
        assert process.wait(10) == -number


@pytest.mark.parametrize('number', WARNINGS)
def test_a_repeated_warning_counts_once(number: signal.Signals) -> None:
    """Shell and kernel both send a signal when a terminal closes; SLURM signals every process."""
    with waiting() as process:
        process.send_signal(number)
        told(process)
        for repeated in WARNINGS * 2:
            process.send_signal(repeated)
            time.sleep(0.05)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_a_program_under_nohup_outlives_its_terminal() -> None:
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with waiting(preexec_fn=ignore) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        told(process)  # only for the second signal
