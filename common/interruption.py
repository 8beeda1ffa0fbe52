"""Signals that stop a run: the step in progress is finished and saved; a second one stops at once.

SIGHUP, sent when a terminal closes, and SIGUSR1, SLURM's warning before the time limit, may be sent
more than once for one cause, so they never count as a second signal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

WARNINGS = (signal.SIGHUP, signal.SIGUSR1)
TOLD = b'\nFinishing the step and saving; a second signal stops now.\n'
SECONDS_TO_REPEAT = 0.01
SIGNALS = (signal.SIGTERM, signal.SIGINT, *WARNINGS)


class Interrupted(BaseException):
    """A signal told the program to stop.

    Not an `Exception`, so that no error handling catches it.

    Args:
        number: of the signal; the exit status is 128 more.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Whether a signal has come.

    A signal raises `Interrupted` at once or, while that is deferred, at the end of the deferral.

    Args:
        ends_process: whether a second Ctrl-C ends the process, as a second SIGTERM does. Otherwise
            it has the effect that it had before: Python raises KeyboardInterrupt.

    Attributes:
        number: of the signal that came; None before.
    """

    def __init__(self, *, ends_process: bool = True) -> None:
        self.number: int | None = None
        self._deferred = False
        self._numbers: tuple[signal.Signals, ...] = ()  # none outside of `handling`
        self._second = dict.fromkeys(WARNINGS, signal.SIG_IGN)
        self._ends_process = ends_process

    @contextlib.contextmanager
    def handling(self) -> Iterator[Stop]:
        """Handles signals within the context; in the main thread, the only one that gets them."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        in_main = threading.current_thread() is threading.main_thread()
        # Python can't put back a handler that it doesn't know.
        known = [number for number in SIGNALS if before[number] is not None and in_main]
        # Under nohup the program is to outlive its terminal.
        ignored = {signal.SIGHUP} if before[signal.SIGHUP] == signal.SIG_IGN else set()
        self._numbers = tuple(number for number in known if number not in ignored)
        if not self._ends_process:
            self._second[signal.SIGINT] = before[signal.SIGINT]
        hook = sys.unraisablehook
        sys.unraisablehook = functools.partial(self._ignored, otherwise=hook)
        self.listen()
        try:
            yield self
        finally:
            sys.unraisablehook = hook
            for number in known:
                signal.signal(number, before[number])

    def listen(self) -> None:
        """Installs the handlers; to be repeated after TensorFlow has connected workers.

        Outside of `handling`, which restores those before, it does nothing.
        """
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for each in self._numbers:
            signal.signal(each, self._second.get(each, signal.SIG_DFL))
        self.number = number
        if not self._deferred:
            raise Interrupted(number)
        # Not with print, because the signal may have interrupted a print.
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, TOLD)

    def _ignored(self, ignored: sys.UnraisableHookArgs, otherwise: Callable[[Any], object]) -> None:
        """Gets the exceptions that Python ignores: those raised in destructors and callbacks."""
        error = ignored.exc_value
        if not isinstance(error, Interrupted):
            otherwise(ignored)
            return
        # The signal comes once more, when the destructor has probably ended.
        self.number = None
        self.listen()
        threading.Timer(SECONDS_TO_REPEAT, signal.raise_signal, [error.number]).start()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers signals to the end of the context; until then they only set `number`."""
        with self._switched(True):
            yield
        self.check()

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Lets signals raise at once again, for a context within `deferred`."""
        with self._switched(False):
            self.check()
            yield

    @contextlib.contextmanager
    def _switched(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before

    def check(self) -> None:
        """Raises `Interrupted` if a signal came."""
        if self.number is not None:
            raise Interrupted(self.number)
