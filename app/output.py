"""Keeps a run alive when its output can't be written: a closed pipe or terminal, a full disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Lasting:
    """A text stream that goes to /dev/null once writing to it fails."""

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
            return None  # the pipe is full at the moment
        except (OSError, ValueError):  # Python raises ValueError for a closed stream
            self._drop()
            return None

    def _drop(self) -> None:
        """Redirects the stream to /dev/null, with its buffer and what libraries write to it."""
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
    """Makes printing to stdout and stderr never fail within the context."""
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
    """Opens file descriptors 0 to 2 if they are closed; else files of the run would get them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor


def _prepared(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed at the start
        return open(os.devnull, 'w')
    if hasattr(stream, 'reconfigure'):
        stream.reconfigure(errors='backslashreplace')  # for characters the terminal lacks
    return stream
