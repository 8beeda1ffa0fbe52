"""The interface of a data set to the input pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from data.worker import Worker

if TYPE_CHECKING:
    from data.sources.skipped_files import SkippedFiles

NO_LABEL = -1
# Of a larger split, labels or files are read up to about this size only, which takes seconds.
BYTES_SAMPLED = 2**30
HELD_BYTES = 2 << 30  # limit for the encoded examples in a shuffle buffer or a cached subset


def no_share(split: str, worker: Worker) -> None:
    """The `share` of a data set that is read as a whole."""
    del split, worker


def unknown_size(split: str) -> None:
    """The `bytes_per_example` of a data set for which it is unknown."""
    del split


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set, with images as they are stored.

    Attributes:
        name: what the user called it.
        num_classes: number of classes; None if the data set has no labels.
        class_names: names by label; None if there are no labels or they have no names.
        num_examples: split → number of examples. A split may be a slice or a sum in TFDS's
            notation, such as 'train[:10%]'. Raises UserError if there is no such split.
        examples: split → finite dataset of {'image': what `read` takes, or `decode` if there is no
            `read`; 'label': scalar int32, NO_LABEL if there is none; any other features}, always
            in the same order. 'index', scalar int64, is the position in the split if that is not
            the one in this dataset; 'path', scalar string, what `skipped` and messages call an
            image that is not read from a file of its own. Raises UserError if there is no such
            split.
        decode: image as stored → decoded image, [h, w] or [h, w, c] of any real dtype.
        share: split, worker → the worker's own part of the files: a finite dataset of (position
            in the order of `examples`, scalar int64; example), always in the same order. The
            workers' shares hold every example once; their sizes are those of `Worker.part`. None
            if the split has fewer files than there are workers, for all of them alike.
        labels: split → its labels without the images: arrays [n] of integers, one after the other
            in the order of `examples`. None where only `examples` tells them.
        label_bytes: split → how much has to be read for `labels`.
        identify: split, positions in the order of `examples` → what a person finds each example
            by: its file, or a slice of the split that holds nothing else. None: nothing is known.
        label_hint: where there are no labels, what in the data set might be some; may be empty.
        read: path of a file, scalar string → its contents, scalar string. None where `examples`
            holds the contents. Reading comes after the shuffle, whose buffer holds paths then.
        image_range: of decoded images that are floating-point numbers, a key of
            `data.images.RANGES`; None for integers.
        corrupt_file: place in bytes, at which a record is corrupt → the file; None if it cannot be
            told.
        bytes_per_example: split → mean size of what `examples` holds; None if it is not known.
        splits: names of all splits, each once; empty if nothing tells.
        in_listing_order: makes the same data set, with each split in the order in which its files
            are listed, not a mixed one; None if there is no other order.
        skipped: the files or records that could not be decoded so far. None for a source whose
            examples can't be read again by name.
        summary: what was understood of the user's own files, a line without a full stop; may be
            empty.
    """

    name: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    num_examples: Callable[[str], int]
    examples: Callable[[str], tf.data.Dataset]
    decode: Callable[[tf.Tensor], tf.Tensor]
    share: Callable[[str, Worker], tf.data.Dataset | None] = no_share
    labels: Callable[[str], Iterator[np.ndarray]] | None = None
    label_bytes: Callable[[str], int] = lambda split: 0
    identify: Callable[[str, Sequence[int]], list[str]] | None = None
    label_hint: str = ''
    read: Callable[[tf.Tensor], tf.Tensor] | None = None
    image_range: str | None = None
    corrupt_file: Callable[[int], str | None] = lambda place: None
    bytes_per_example: Callable[[str], float | None] = unknown_size
    splits: Sequence[str] = ()
    in_listing_order: Callable[[], Source] | None = None
    skipped: SkippedFiles | None = None
    summary: str = ''

    def read_into(self, example: dict[str, Any]) -> dict[str, Any]:
        """`example` with its file's contents as 'image', and the path as 'path' for messages.

        Without `read`, and if it has been read before, it is returned as it is.
        """
        if self.read is None or 'path' in example:
            return example
        path = example['image']
        return {**example, 'image': self.read(path), 'path': path}

    def with_contents(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """`dataset`, of (..., example) or of examples, with paths replaced by contents."""
        if self.read is None:
            return dataset

        def read(*parts: Any) -> Any:
            *others, example = parts
            return (*others, self.read_into(example)) if others else self.read_into(example)

        plain = tf.autograph.experimental.do_not_convert(read)
        return dataset.map(plain, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
