"""Inputs and base class of the evaluators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import tensorflow as tf

Batch = Mapping[str, Any]
Result = tuple[str, float]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Model and data of one evaluation, made within the scope of the distribution strategy.

    A batch holds 'views', a tuple whose first entry is [b, h, w, 3] float32 in [0, 1], 'label',
    [b] int32 with -1 for none, and if need be 'mask', [b], 0 where the row only fills the batch.

    Attributes:
        batches: starts a pass over the evaluation split, in evaluation views.
        num_classes: classes in the data set.
        predict: images [b, h, w, 3] -> logits [b, num_classes], in inference mode; None without
            a classifier.
        teach: images [b, h, w, 3] -> logits [b, num_classes] of a teacher, fed the last view of a
            batch; None without one.
        embed: images [b, h, w, 3] -> features [b, d], in inference mode.
        train_batches: starts a pass over the training split, in evaluation views.
        neighbors: nearest neighbours that vote; 0 turns that evaluation off.
        neighbor_examples: training examples among which neighbours are searched.
    """

    batches: Callable[[], Iterable[Batch]]
    num_classes: int
    predict: Callable[[tf.Tensor], tf.Tensor] | None = None
    teach: Callable[[tf.Tensor], tf.Tensor] | None = None
    embed: Callable[[tf.Tensor], tf.Tensor] | None = None
    train_batches: Callable[[], Iterable[Batch]] | None = None
    neighbors: int = 0
    neighbor_examples: int = 20000


class Evaluator(Protocol):
    """One measurement of a model."""

    def __init__(self, inputs: Inputs) -> None:
        """Keeps `inputs`."""

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether `inputs` hold what this measurement needs, and ask for it."""

    def run(self) -> list[Result]:
        """Measures over the whole split; (name, value) pairs for the results file."""


def labelled(batch: Batch) -> tf.Tensor:
    """Which rows of `batch` count, [b] bool: those that have a label and aren't padding."""
    has_label = batch['label'] >= 0
    return has_label & tf.cast(batch['mask'], tf.bool) if 'mask' in batch else has_label
