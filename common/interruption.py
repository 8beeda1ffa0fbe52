"""Signals that stop a run: a step in progress is finished and saved; a second one stops at once.

SIGHUP, of a terminal that is closed, and SIGUSR1, SLURM's warning before the time limit, may come
more than once for one cause. They count as a first signal only.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

WARNINGS = (signal.SIGHUP, signal.SIGUSR1)
TOLD = b'\nFinishing the step and saving; a second signal stops now.\n'
SIGNALS = (signal.SIGTERM, signal.SIGINT, *WARNINGS)


class Interrupted(BaseException):
    """The program was told to stop.

    No `Exception`, so that nothing that handles errors takes it for one.

    Args:
        number: of the signal; the exit status is 128 more.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Whether a signal has come.

    It is raised as `Interrupted` where the program happens to be, or, while that is deferred, when
    the deferral ends.

    Attributes:
        number: of the signal that came, None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False
        self._numbers = SIGNALS

    @contextlib.contextmanager
    def handling(self) -> Iterator[Stop]:
        """Within it signals are handled; to be entered in the main thread."""
        before = [signal.getsignal(number) for number in SIGNALS]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: to outlive its terminal
            self._numbers = tuple(number for number in SIGNALS if number != signal.SIGHUP)
        self.listen()
        try:
            yield self
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals, again where TensorFlow took SIGTERM when it connected workers."""
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for each in self._numbers:
            signal.signal(each, signal.SIG_IGN if each in WARNINGS else signal.SIG_DFL)
        self.number = number
        if not self._deferred:
            raise Interrupted(number)
        # Not through print, which may be what the signal interrupted.
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, TOLD)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal is only noted in `number`, and raised at the end."""
        with self._switched(True):
            yield
        self.check()

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Within it, inside of `deferred`, a signal is raised at once."""
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
