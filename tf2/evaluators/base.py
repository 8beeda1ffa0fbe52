"""Inputs and base class of the evaluators."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from common.errors import UserError
from tf2.features import EMBEDDING, LOGITS, RANK, Batch, FeaturePass, Features

# Name and value: a number, or nested lists or dictionaries, such as a matrix as a list of rows.
Result = tuple[str, float | list | dict]

# Bounds statistics whose cost grows faster than linearly with the number of rows.
MOST_ROWS = 2048


class TooFewError(UserError):
    """There are too few examples, or too few with a label, for an evaluator."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Model and data of an evaluation; create it within the strategy's scope.

    A batch holds 'views', a tuple whose first entry is [b, h, w, 3] float32 in [0, 1], 'label',
    [b] int32, -1 = none, and optionally 'mask', [b], 0 in rows that only pad the batch.

    Attributes:
        batches: starts a pass over the evaluation views of the evaluation split.
        num_classes: classes of the data set; 0 if the evaluation split has no labels.
        predict: images [b, h, w, 3] -> logits [b, num_classes], in inference mode; None without
            a classifier.
        teach: images [b, h, w, 3] -> logits [b, num_classes] of a teacher, fed the last view of a
            batch; None without one.
        embed: images [b, h, w, 3] -> features [b, d], in inference mode.
        endpoints: images [b, h, w, 3] -> features and logits by their names in `tf2.features`, so
            that the model runs once for both; default: calls `embed` and `predict`.
        train_batches: starts a pass over the evaluation views of the training split; None if it
            has no labels.
        pairs: starts a pass over images of the evaluation split whose first two 'views' are
            augmented; None if there are none.
        class_names: class names by label; None if unknown.
        neighbors: number of nearest neighbors that vote; 0 turns their evaluation off.
        neighbor_examples: training examples among which neighbors are searched.
    """

    batches: Callable[[], Iterable[Batch]]
    num_classes: int
    predict: Callable[[tf.Tensor], tf.Tensor] | None = None
    teach: Callable[[tf.Tensor], tf.Tensor] | None = None
    embed: Callable[[tf.Tensor], tf.Tensor] | None = None
    endpoints: Callable[[tf.Tensor], Mapping[str, tf.Tensor]] | None = None
    train_batches: Callable[[], Iterable[Batch]] | None = None
    pairs: Callable[[], Iterable[Batch]] | None = None
    class_names: Sequence[str] | None = None
    neighbors: int = 0
    neighbor_examples: int = 20000

    @functools.cached_property
    def samples(self) -> Samples:
        """The features of both splits, shared by all evaluators of these inputs."""
        return Samples(self)


class Evaluator(Protocol):
    """One measurement of a model."""

    def __init__(self, inputs: Inputs) -> None:
        """Stores `inputs`, and announces to `inputs.samples` what it will read."""

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether `inputs` have what this measurement needs, and ask for it."""

    def run(self) -> list[Result]:
        """Measures over the whole split; returns (name, value) pairs, 'eval/…'."""


class RowStatistic:
    """A number computed from the features of the evaluation split, of `MOST_ROWS` rows at most.

    Subclasses set `name` and `compute`.

    Args:
        inputs: `samples` is used.

    Attributes:
        name: of the result.
        compute: embeddings [n, d] -> the number.
    """

    name: str
    compute: Callable[[np.ndarray], float]

    def __init__(self, inputs: Inputs) -> None:
        self._samples = inputs.samples
        self._samples.expect(EMBEDDING)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there are features."""
        return inputs.embed is not None

    def run(self) -> list[Result]:
        """(`name`, value).

        Raises:
            TooFewError: if `compute` needs more rows.
        """
        return [(self.name, self.compute(some_rows(self._samples.evaluation().embeddings)))]


class Samples:
    """Features of the evaluation and the training split, computed once for all evaluators.

    Evaluators announce what they will read, so that one pass suffices for all of them. Create it
    within the strategy's scope.

    Args:
        inputs: model and batches.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._rows: set[str] = set()
        self._train_limit = 0
        self._kept: dict[str, Features] | None = None
        self.feature_pass = FeaturePass(self._model, self._rows)

    def expect(self, *rows: str, train: int = 0) -> None:
        """Announces which rows, `EMBEDDING`, `LOGITS` or `RANK`, will be read.

        Args:
            *rows: their names.
            train: of how many training examples too.
        """
        self._rows.update(rows)
        self._train_limit = max(self._train_limit, train)

    def evaluation(self, *, labeled: bool = False) -> Features:
        """The rows of the evaluation split; only labeled ones if `labeled`."""
        found = self._once('evaluation', lambda: self.feature_pass.collect(self._inputs.batches()))
        return found.at(found.labels >= 0) if labeled else found

    def train(self, limit: int) -> Features:
        """The first `limit` labeled rows of the training split, or fewer."""

        def collect() -> Features:
            most = max(limit, self._train_limit)
            return self.feature_pass.collect(self._inputs.train_batches(), limit=most, labeled=True)

        return self._once('train', collect).at(slice(limit))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Caches features in the context, during which the model must not change."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def _once(self, name: str, collect: Callable[[], Features]) -> Features:
        if self._kept is None:
            return collect()
        if name not in self._kept:
            self._kept[name] = collect()
        return self._kept[name]

    def _model(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = self._inputs
        if inputs.endpoints is not None:
            return dict(inputs.endpoints(images))
        needed = self._rows | ({LOGITS} if RANK in self._rows else set())
        functions = {EMBEDDING: inputs.embed, LOGITS: inputs.predict}
        return {name: function(images) for name, function in functions.items() if name in needed}


def run_all(inputs: Inputs, evaluators: Sequence[Evaluator]) -> dict[str, Any]:
    """Runs `evaluators`, which were built with `inputs`.

    Returns:
        Name -> value, see `Result`.

    Raises:
        TooFewError: when an evaluator finds too few examples.
    """
    with inputs.samples.kept():
        return dict(pair for evaluator in evaluators for pair in evaluator.run())


def labeled(batch: Batch) -> tf.Tensor:
    """Which rows of `batch` have a label and aren't padding, [b] bool."""
    has_label = batch['label'] >= 0
    return has_label & tf.cast(batch['mask'], tf.bool) if 'mask' in batch else has_label


def some_rows(array: np.ndarray, most: int = MOST_ROWS) -> np.ndarray:
    """At most `most` rows of `array` [n, ...], a random subset with a fixed seed, in order."""
    if len(array) <= most:
        return array
    return array[np.sort(np.random.default_rng(0).choice(len(array), most, replace=False))]


def unit_rows(array: np.ndarray) -> np.ndarray:
    """L2-normalizes the rows of `array` [n, d], in float64; rows of zeros stay zero."""
    rows = array.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def finite(*arrays: np.ndarray) -> bool:
    """Whether all values are finite; they aren't after a training diverged."""
    return all(np.isfinite(array).all() for array in arrays)
