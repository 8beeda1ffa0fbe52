"""Output that nobody takes any more ends no run: a closed pipe or terminal, a full disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Lasting:
    """A text stream that goes to nowhere once it can't be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._attempt('write', text) or len(text)

    def flush(self) -> None:
        self._attempt('flush')

    def _attempt(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._stream, method)(*arguments)
        except BlockingIOError:
            return None  # a pipe that is full just now
        except (OSError, ValueError):  # Python's own word for a closed stream is ValueError
            self._drop()
            return None

    def _drop(self) -> None:
        """From now on to nowhere, with what waits in buffers and what libraries write."""
        with open(os.devnull, 'w') as nowhere:
            try:
                number = self._stream.fileno()
                os.dup2(nowhere.fileno(), number)
            except (OSError, ValueError):
                self._stream, number = open(os.devnull, 'w'), None  # noqa: SIM115 - to the end
        if number == 1:
            with contextlib.suppress(OSError):
                os.write(2, b'stdout takes no more output; the program continues without it.\n')

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Within it printing never fails, to stdout and stderr."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    streams = [_Lasting(_prepared(stream)) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def _open_standard_files() -> None:
    """Opens what was closed at the start; else a file of the run's would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _prepared(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed at the start
        return open(os.devnull, 'w')
    if hasattr(stream, 'reconfigure'):
        stream.reconfigure(errors='backslashreplace')  # what a terminal has no character for
    return stream
