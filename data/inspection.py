"""Reads every image of a split once: which can be decoded, what size they are, what they look like.

An image is decoded as in training, so that it can be used here if, and only if, it can be used
there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data.batches import decode_stored
from data.config import DataConfig
from data.failures import as_user_errors, said
from data.image_files import BEGINNING, UNREADABLE, format_of, why_undecodable
from data.sources.source import NO_LABEL, Source

LOOK = 8  # height and width of the small images that are compared
_ROWS_AT_ONCE = 32
_NO_SIZE = 0  # of files that can't be decoded
_BUCKETS = 2**63 - 1
_KEYS = ((1, 2), (3, 4))  # of two hashes of 63 bits

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found out about the n images of a split, in the source's order.

    Attributes:
        split: its name.
        labels: [n] int32, as the source has them; NO_LABEL for none.
        heights: [n] int32, pixels, upright; 0 where the image can't be decoded.
        widths: [n] int32.
        sizes: [n] int64, bytes of the file.
        formats: [n] names, '' where the image can't be decoded.
        contents: [n, 2] int64, a hash of the file's bytes.
        looks: [n, LOOK * LOOK * 3] uint8, the image reduced to LOOK x LOOK pixels.
        reasons: position → why it can't be decoded, as the end of a sentence.
    """

    split: str
    labels: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    sizes: np.ndarray
    formats: np.ndarray
    contents: np.ndarray
    looks: np.ndarray
    reasons: dict[int, str]

    @property
    def usable(self) -> np.ndarray:
        """[n] bool, whether each image can be decoded."""
        return self.heights != _NO_SIZE

    def __len__(self) -> int:
        return len(self.heights)


def holds_files(source: Source, split: str) -> bool:
    """Whether the images of `source` are stored as the contents of image files."""
    return source.examples(split).element_spec['image'].dtype == tf.string


def inspect(
    source: Source, config: DataConfig, split: str, advance: Callable[[int], None]
) -> Inspection:
    """Reads and decodes all images of a split, on all cores.

    Args:
        source: whose images are stored as image files.
        config: `max_pixels` is read.
        split: its name.
        advance: called with the number of images that were read since.

    Raises:
        UserError: if there is no such split, or what holds the images can't be read.
    """
    found = _empty(split, source.num_examples(split))
    measure = functools.partial(_measure, source, config)
    with as_user_errors(source):
        for rows in _rows(source, measure, split):
            _fill(found, rows)
            advance(len(rows['index']))
        again = tf.function(measure, autograph=False)
        for position, example in look_again(source, split, np.flatnonzero(~found.usable)):
            try:
                row = again(tf.constant(position, tf.int64), example)
                _fill(found, {key: part.numpy()[np.newaxis] for key, part in row.items()})
            except (tf.errors.ResourceExhaustedError, tf.errors.CancelledError):
                raise
            except (tf.errors.OpError, UnicodeDecodeError) as error:
                found.reasons[position] = _reason(source, example, config.max_pixels, error)
    return found


def look_again(
    source: Source, split: str, positions: Sequence[int]
) -> Iterator[tuple[int, dict[str, tf.Tensor]]]:
    """Yields (position, example) at `positions`; files are not read yet.

    Args:
        source: where they come from.
        split: its name.
        positions: in any order; examples come in the source's.
    """
    wanted = tf.constant(np.sort(np.asarray(positions, np.int64)))
    if not len(wanted):
        return

    def is_wanted(position: tf.Tensor, _: Any) -> tf.Tensor:
        place = tf.minimum(tf.searchsorted(wanted, position[tf.newaxis])[0], len(wanted) - 1)
        return wanted[place] == position

    plain = tf.autograph.experimental.do_not_convert(is_wanted)
    # What comes after the last one need not be read.
    numbered = source.examples(split).enumerate().take(int(wanted[-1]) + 1)
    for position, example in numbered.filter(plain):
        yield int(position), example


def thumbnails(
    source: Source, config: DataConfig, split: str, positions: Sequence[int], most: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields position and small image, [h, w, 3] uint8, of images that `inspect` could decode.

    Args:
        source: where they come from.
        config: `max_pixels` is read.
        split: its name.
        positions: in any order; images come in the source's. Those that can't be read any more
            are missing.
        most: height and width of an image at most, in pixels.
    """

    @functools.partial(tf.function, autograph=False)
    def small(example: dict[str, tf.Tensor]) -> tf.Tensor:
        image = decode_stored(source, _contents(source, example), config, 'one')
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        factor = tf.minimum(1.0, most / tf.reduce_max(size))
        return _reduced(image, tf.maximum(1, tf.cast(tf.round(size * factor), tf.int32)))

    for position, example in look_again(source, split, positions):
        # It was there a moment ago; of a name that is not UTF-8, the second is raised.
        with contextlib.suppress(tf.errors.OpError, UnicodeDecodeError):
            yield position, small(example).numpy()


def _empty(split: str, count: int) -> Inspection:
    return Inspection(
        split,
        labels=np.full([count], NO_LABEL, np.int32),
        heights=np.full([count], _NO_SIZE, np.int32),
        widths=np.full([count], _NO_SIZE, np.int32),
        sizes=np.zeros([count], np.int64),
        formats=np.full([count], '', 'U8'),
        contents=np.zeros([count, len(_KEYS)], np.int64),
        looks=np.zeros([count, LOOK * LOOK * 3], np.uint8),
        reasons={},
    )


def _rows(source: Source, measure: Callable[..., Row], split: str) -> Iterator[Row]:
    """What `measure` says of each example, in batches and in any order.

    Where it fails, the height is 0. Other failures, such as a corrupt TFRecord file, are raised.
    """

    def attempt(position: tf.Tensor, example: Any) -> tf.data.Dataset:
        one = tf.data.Dataset.from_tensors((position, example)).map(measure).ignore_errors()
        blank = {key: tf.zeros(part.shape, part.dtype) for key, part in one.element_spec.items()}
        known = {'index': position, 'label': example['label']}
        none = tf.data.Dataset.from_tensors({**blank, **known})
        return one.concatenate(none).take(1)

    cores = len(os.sched_getaffinity(0))
    plain = tf.autograph.experimental.do_not_convert(attempt)
    rows = (
        source.examples(split)
        .enumerate()
        .interleave(plain, cycle_length=2 * cores, num_parallel_calls=cores, deterministic=False)
    )
    return rows.batch(_ROWS_AT_ONCE).prefetch(1).as_numpy_iterator()


def _measure(source: Source, config: DataConfig, position: tf.Tensor, example: Any) -> Row:
    """Reads and decodes one example."""
    content = _contents(source, example)
    image = decode_stored(source, content, config, 'one')
    hashes = [tf.strings.to_hash_bucket_strong(content, _BUCKETS, key) for key in _KEYS]
    look = _reduced(image, [LOOK, LOOK])
    return {
        'index': position,
        'label': example['label'],
        'shape': tf.ensure_shape(tf.shape(image)[:2], [2]),
        'size': tf.strings.length(content),
        'beginning': tf.strings.substr(content, 0, BEGINNING),
        'content': tf.stack(hashes),
        'look': tf.reshape(look, [LOOK * LOOK * 3]),
    }


def _reduced(image: tf.Tensor, size: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """`image`, as `decode_stored` returns it → [*size, 3] uint8, means of areas."""
    white = 1.0 if image.dtype.is_floating else min(image.dtype.max, 65535)
    means = tf.image.resize(image, size, tf.image.ResizeMethod.AREA)
    return tf.cast(tf.round(means * (255 / white)), tf.uint8)


def _contents(source: Source, example: dict[str, tf.Tensor]) -> tf.Tensor:
    return source.read(example['image']) if source.read else example['image']


def _fill(found: Inspection, rows: Row) -> None:
    index = rows['index']
    found.labels[index] = rows['label']
    found.heights[index], found.widths[index] = rows['shape'][:, 0], rows['shape'][:, 1]
    found.sizes[index], found.contents[index] = rows['size'], rows['content']
    found.formats[index] = [format_of(begin) if begin else '' for begin in rows['beginning']]
    found.looks[index] = rows['look']


def _reason(source: Source, example: Any, max_pixels: int, failure: Exception) -> str:
    try:
        content = _contents(source, example).numpy()
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        return f'{UNREADABLE} ({said(error)})'
    return why_undecodable(content, max_pixels) or f'it is damaged ({said(failure)})'
