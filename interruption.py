"""SIGTERM and SIGINT: a step in progress is finished and saved; a second signal stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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

    @contextlib.contextmanager
    def handling(self) -> Iterator[Stop]:
        """Within it signals are handled; to be entered in the main thread."""
        before = [signal.getsignal(number) for number in SIGNALS]
        self.listen()
        try:
            yield self
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals, again where TensorFlow took SIGTERM when it connected workers."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self.number = number
        if not self._deferred:
            raise Interrupted(number)
        # Not through print, which may be what the signal interrupted.
        os.write(2, b'\nFinishing the step and writing a checkpoint; a second signal stops now.\n')

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
