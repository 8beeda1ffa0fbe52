"""The error that a user can fix, and text made fit to print on one line."""

from __future__ import annotations

import codecs
import os
import re
import shlex
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix. The message is one line: expected, found, what to do.

    `run.py` prints it without a traceback and exits with status 2.
    """


# A TensorFlow graph can't raise a UserError. It fails with an error that contains the pieces of the
# line between these marks; `line_within` joins them.
LINE_BEGINS, LINE_ENDS = 'The user can fix this:', 'End of what the user can fix.'


def line_within(error: BaseException) -> str | None:
    """The line for the user in an error that a graph raised; None if there is none."""
    # TensorFlow prints the operands of an assertion as [text] [text] [3 4], escaped.
    pieces = rf'\[{LINE_BEGINS}\] \[(.*?)\] \[{LINE_ENDS}\]'
    match = re.search(pieces, text_of(error), re.DOTALL)
    if match is None:
        return None
    escaped = match[1].replace('] [', '')
    return printable(
        os.fsdecode(codecs.escape_decode(escaped.encode('utf-8', 'surrogateescape'))[0])
    )


def line_for_graph(line: str) -> str:
    """A message of an exception, in which `line_within` finds `line`.

    For what a graph calls: TensorFlow makes an error of its own of the exception.
    """
    escaped = codecs.escape_encode(os.fsencode(line))[0].decode('ascii')
    return f'[{LINE_BEGINS}] [{escaped}] [{LINE_ENDS}]'


def text_of(error: BaseException) -> str:
    """An error's message.

    If the message names a file whose name is not UTF-8, TensorFlow raises a UnicodeDecodeError that
    contains the message instead of its own error.
    """
    contains = isinstance(error, UnicodeDecodeError) and isinstance(error.object, bytes)
    return os.fsdecode(error.object) if contains else str(error)


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """An error's message as part of a line: without line breaks or final period, cut to `limit`.

    The locations in graph and code that TensorFlow lists before its message are left out.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if not line.startswith(('Graph exec', 'Detected', 'File'))]
    words = ' '.join(' '.join(said).split()).rstrip('.') or type(error).__name__
    return words if len(words) <= limit else f'{words[: limit - 3]}...'


def printable(name: str) -> str:
    """The name of a file, folder or class, fit to be printed within a line.

    Args:
        name: as `os` returns it, with surrogates for bytes that are not UTF-8.

    Returns:
        The name, with such bytes and unprintable characters escaped.
    """
    return ''.join(char if char.isprintable() else _escaped(char) for char in name)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte that is not UTF-8
        return f'\\x{code - 0xDC00:02x}'
    return char.encode('unicode_escape').decode() if code < 0x80 else f'\\u{code:04x}'


def command_line(arguments: Iterable[str]) -> str:
    """`arguments` quoted for a shell, on one line."""
    return ' '.join(map(_quoted, arguments))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    escaped = printable(re.sub(r"([\\'])", r'\\\1', word))
    return f"$'{escaped}'"
