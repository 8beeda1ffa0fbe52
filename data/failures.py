"""Turns failures to read images into one-line errors, where the user can fix the cause."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from common.errors import UserError, line_within, printable, text_of
from data.image_files import NOT_AN_IMAGE
from data.sources.source import Source

_GONE = (tf.errors.NotFoundError, tf.errors.PermissionDeniedError)
_NOT_AN_IMAGE = re.compile(rf'{NOT_AN_IMAGE}(.*?)\. Traceback')
_ELSEWHERE = re.compile(r'callback pyfunc_\d+ is not found')
_UNDECODABLE = re.compile(r'Invalid (PNG|JPEG|GIF|BMP)|Unknown image file format|Input is empty')


@contextlib.contextmanager
def as_user_errors(source: Source) -> Iterator[None]:
    """Turns failures to read `source` that the user can fix into a UserError."""
    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        line = explain(error, source)
        if line is None:
            raise
        raise UserError(line) from error


def explain(error: tf.errors.OpError | UnicodeDecodeError, source: Source) -> str | None:
    """One line about what is wrong with the images.

    Args:
        error: raised by a step that reads batches; see `errors.text_of` for the second kind.
        source: where the images come from.

    Returns:
        Expected, found, what to do; None if the images are not the cause.
    """
    line = line_within(error)
    if line is not None:
        return line
    words = said(error)
    disguised = isinstance(error, UnicodeDecodeError)
    if isinstance(error, _GONE) or (disguised and 'No such file' in words):
        return f'The images should stay where they are, but one can no longer be read: {words}.'
    reason = _NOT_AN_IMAGE.search(words)
    if reason or (isinstance(error, tf.errors.InvalidArgumentError) and _UNDECODABLE.search(words)):
        return (
            f'Images must be whole image files; one of {source.name} cannot be decoded '
            f'({reason[1] if reason else words}). Restore it, or remove it from the data set.'
        )
    if _ELSEWHERE.search(words):
        return (
            'With --tf_data_service images must be PNG or JPEG files; found another format in '
            f'{source.name}, which only this process decodes. Convert it, or leave the flag out.'
        )
    place = re.search(r'corrupted record at (\d+)', words)
    if isinstance(error, tf.errors.DataLossError) and place:
        file = source.corrupt_file(int(place[1]))
        return (
            f'{printable(file) if file else f"Each file of {source.name}"} must hold whole '
            f'records; found a {place[0]}. Restore the file, or prepare the data set again.'
        )
    return None


def said(error: BaseException) -> str:
    """An error's message without the graph locations that TensorFlow adds to it."""
    places = r'\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\].*'
    message = re.sub(places, ' ', text_of(error), flags=re.DOTALL)
    return printable(' '.join(message.split()))[:300]
