"""What every data set looks like from the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

NO_LABEL = -1


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
    """

    name: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    num_examples: Callable[[str], int]
    examples: Callable[[str], tf.data.Dataset]
    decode: Callable[[tf.Tensor], tf.Tensor]


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's message without line breaks, cut to `limit` characters."""
    words = ' '.join(str(error).split()) or type(error).__name__
    return words if len(words) <= limit else words[: limit - 3] + '...'
