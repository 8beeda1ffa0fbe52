"""Image files, or records, that can't be read or decoded: listed with their reasons, and replaced.

A batch keeps its rows: in training, such a file is replaced by the next one of its class that can
be decoded. This depends on nothing but the files, so it is the same after a restart and on any
number of workers. In evaluation its row is masked.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line, printable
from data.image_files import UNREADABLE, decode_file, why_undecodable
from data.images import check_size
from data.sources.files import NO_CLASS, Files

# A gray pixel as a PGM file: what a masked row holds.
BLANK = b'P5 1 1 255\n\x80'
_LISTED = 3  # files, in a message


class SkippedFiles:
    """Finds out which files can't be decoded, and what stands in for them.

    Its methods may be called from several threads.

    Args:
        name: of the data set, for messages.
        count: split → number of its files.
        read: path → contents. Raises OSError or one of TensorFlow's if they can't be read.
        others: split, path of one of its files → the other ones' paths in the order in which they
            may replace it, each with whether it is of the same class.
        max_pixels: of an image; 0 for no limit.
        max_fraction: largest share of a split's files that may be skipped; above 0, one may be.
    """

    def __init__(
        self,
        name: str,
        *,
        count: Callable[[str], int],
        read: Callable[[bytes], bytes],
        others: Callable[[str, bytes], Iterator[tuple[bytes, bool]]],
        max_pixels: int,
        max_fraction: float,
    ) -> None:
        self._name = name
        self._count, self._contents, self._others = count, read, others

        def decode(content: tf.Tensor) -> tf.Tensor:
            return decode_file(check_size(content, max_pixels, 'it'), max_pixels)

        # As a graph, so that all failures are TensorFlow's.
        signature = [tf.TensorSpec([], tf.string)]
        self._decode = tf.function(decode, input_signature=signature, autograph=False)
        self._max_pixels = max_pixels
        self._max_fraction = max_fraction
        self._lock = threading.RLock()
        self._found: dict[str, dict[bytes, str]] = {}
        self._in_place_of: dict[tuple[str, bytes], tuple[bytes, bool]] = {}
        self._listed: dict[str, str] = {}
        self._changed: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._listed)

    def listing(self) -> str:
        """A line for each file: its path as far as it can be printed, a tab, the reason."""
        with self._lock:
            return ''.join(f'{path}\t{self._listed[path]}\n' for path in sorted(self._listed))

    def add_listed(self, listing: str) -> None:
        """Adds the files of another `listing`, of which only names are known."""
        with self._lock:
            for line in listing.splitlines():
                path, _, reason = line.partition('\t')
                self._listed.setdefault(path, reason)

    def on_change(self, action: Callable[[], None]) -> None:
        """Has `action` called, in any thread, after a file was added."""
        self._changed = action

    def replace(self, split: str, paths: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Contents for rows whose files could not be decoded.

        Args:
            split: split that is read.
            paths: of the files.

        Returns:
            Contents [n], bytes, of the next file of the same class that can be decoded, or of any
            class where there is none, and whether its class is the same, [n] bool.

        Raises:
            UserError: if too many files can't be decoded.
        """
        with self._lock:
            rows = [self._replacement(split, path) for path in paths]
        contents, same = zip(*rows)
        return np.array(contents, object), np.array(same)

    def blank(self, split: str, paths: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """As `replace`, for rows to be masked: a gray pixel where a file can't be decoded."""
        with self._lock:
            contents = [self._read(split, path) for path in paths]
        found = [BLANK if content is None else content for content in contents]
        return np.array(found, object), np.array([content is not None for content in contents])

    def _replacement(self, split: str, path: bytes) -> tuple[bytes, bool]:
        content = self._read(split, path)
        if content is not None:
            return content, True
        known = self._in_place_of.get((split, path))
        others = self._others(split, path)
        for other, is_same in itertools.chain([known] if known else [], others):
            content = self._read(split, other)
            if content is not None:
                self._in_place_of[split, path] = other, is_same
                return content, is_same
        raise UserError(
            f'Images must be whole image files; none of {self._name} can be decoded. '
            f'{self._examples(split)}'
        )

    def _read(self, split: str, path: bytes) -> bytes | None:
        """The contents of a file; None if it can't be decoded, which is noted.

        Raises:
            UserError: if too many files can't be decoded; at each of them, as the group of images
                that was read first need not be the first one of the data set.
        """
        found = self._found.setdefault(split, {})
        if path in found:
            self._check_count(split)
            return None
        content = b''
        try:
            content = self._contents(path)
            self._decode(tf.constant(content))
        except (OSError, tf.errors.OpError, UnicodeDecodeError) as error:
            if isinstance(error, tf.errors.ResourceExhaustedError):
                raise
            found[path] = self._reason(content, error)
            self._listed[printable(os.fsdecode(path))] = found[path]
            self._changed()
            self._check_count(split)
            return None
        return content

    def _reason(self, content: bytes, error: Exception) -> str:
        if not content and not isinstance(error, tf.errors.InvalidArgumentError):
            return f'{UNREADABLE} ({one_line(error, 100)})'
        reason = why_undecodable(content, self._max_pixels)
        return reason or f'it is damaged ({one_line(error, 100)})'

    def _check_count(self, split: str) -> None:
        found, count = self._found[split], self._count(split)
        allowed = max(1, int(self._max_fraction * count)) if self._max_fraction else 0
        if len(found) > allowed:
            raise UserError(
                f'At most {allowed} of the {count} images of split {split!r} may be unreadable '
                f'(--max_bad_fraction={self._max_fraction:g}); found {len(found)}. '
                f'{self._examples(split)} Restore or remove them (--mode=check lists all), or '
                'raise the limit.'
            )

    def _examples(self, split: str) -> str:
        found = list(self._found[split].items())[:_LISTED]
        files = [f'{printable(os.fsdecode(path))} ({reason})' for path, reason in found]
        return f'Among them: {", ".join(files)}.'


def others_in_listing(files: Files, path: bytes) -> Iterator[tuple[bytes, bool]]:
    """The others of `files`: those of the same class first, each time from `path` on and round.

    Yields:
        Path, and whether the class is the same.
    """
    position = files.find(path)
    label = files.labels[position]
    # Without classes all files are of one.
    has_class = label != NO_CLASS
    for same in (True, False):
        for other in itertools.chain(range(position + 1, len(files)), range(position)):
            if (files.labels[other] == label) == same:
                yield files.take(slice(other, other + 1)).paths()[0], same or not has_class
