"""What every data set looks like from the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from data.worker import Worker

NO_LABEL = -1


def no_share(split: str, worker: Worker) -> None:
    """The `share` of a data set that is read as a whole."""
    del split, worker


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set whose images are still as they were stored.

    Attributes:
        name: what the user called it.
        num_classes: number of classes; None if the data set has no labels.
        class_names: names by label; None if there are no labels or they have no names.
        num_examples: split → number of examples. A split may be a slice or a sum in TFDS's
            notation, such as 'train[:10%]'. Raises UserError if there is no such split.
        examples: split → finite dataset of {'image': what `decode` takes, mostly a scalar string
            of encoded bytes; 'label': scalar int32, NO_LABEL if there is none}, always in the same
            order. Raises UserError if there is no such split.
        decode: image as stored → decoded image, [h, w] or [h, w, c] of any real dtype.
        share: split, worker → the worker's own part of the files: a finite dataset of (position
            in the order of `examples`, scalar int64; example), always in the same order. The
            workers' shares hold every example once; their sizes are those of `Worker.part`. None
            if the split has fewer files than there are workers, for all of them alike.
    """

    name: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    num_examples: Callable[[str], int]
    examples: Callable[[str], tf.data.Dataset]
    decode: Callable[[tf.Tensor], tf.Tensor]
    share: Callable[[str, Worker], tf.data.Dataset | None] = no_share
