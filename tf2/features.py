"""One pass over images: embeddings, logits, ranks of labels, labels and positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Batch = Mapping[str, Any]
EMBEDDING, LOGITS = 'final_avg_pool', 'logits_sup'  # endpoints of a model
RANK = 'rank'  # `label_rank` of the logits


@dataclasses.dataclass(frozen=True)
class Features:
    """A model's outputs for some examples, one row each.

    Attributes:
        embeddings: [n, d] float32; None if they weren't kept.
        logits: [n, c] float32; None if there is no classifier, or they weren't kept.
        rank: [n] int32, how many classes have a higher logit than the label, see `label_rank`;
            None if it wasn't kept.
        labels: [n] int32, -1 = none.
        index: [n] int64, position in the split; -1 if the batches have no 'index'.
    """

    embeddings: np.ndarray | None
    logits: np.ndarray | None
    rank: np.ndarray | None
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Any) -> Features:
        """Selects `rows`, given as a slice, indices or a mask."""
        return Features(*(None if column is None else column[rows] for column in self.columns()))

    def columns(self) -> tuple[np.ndarray | None, ...]:
        """The values of the attributes, in their order."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def label_rank(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """How many classes are ahead of the label: 0 if it has the highest logit.

    Equal logits rank by class number, lowest first, as in `tf.math.top_k`. (In `tf.math.in_top_k`
    every tied class counts, so a constant classifier would always be right.)

    Args:
        logits: [b, c], any float type.
        labels: [b] integers.

    Returns:
        [b] int32; the largest integer where the label is outside [0, c), or a logit is NaN.
    """
    logits = tf.cast(logits, tf.float32)
    classes = tf.range(tf.shape(logits)[1], dtype=labels.dtype)  # [c]
    is_label = classes == labels[:, None]  # [b, c]
    # Masked, not multiplied, since 0 * inf would be NaN.
    own = tf.reduce_sum(tf.where(is_label, logits, 0.0), axis=1, keepdims=True)  # [b, 1]
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))  # [b, c]
    rank = tf.math.count_nonzero(ahead, axis=1, dtype=tf.int32)  # [b]
    valid = tf.reduce_any(is_label, axis=1) & ~tf.reduce_any(tf.math.is_nan(logits), axis=1)
    return tf.where(valid, rank, tf.int32.max)


class RowPass:
    """Runs a function over batches; create it within the strategy's scope.

    Args:
        function: batch, whose 'views' start with images [b, h, w, 3] -> {name: [b, ...]}, of a
            type that all strategies can gather: float32, int32 or int64.
    """

    def __init__(self, function: Callable[[Batch], Mapping[str, tf.Tensor]]) -> None:
        self._function = function
        self._strategy = tf.distribute.get_strategy()
        self._run = tf.function(self._run_replicas, reduce_retracing=True, autograph=False)

    def rows(self, batch: Batch) -> dict[str, np.ndarray]:
        """The rows of a batch from all replicas, without padding.

        Args:
            batch: 'views', 'label' [b], optionally 'mask' and 'index' [b], and what else the
                function reads.

        Returns:
            The results of the function, 'label' and 'index'.
        """
        found = {name: rows.numpy() for name, rows in self._run(batch).items()}
        shown = found.pop('mask') > 0
        return {name: rows[shown] for name, rows in found.items()}

    def _run_replicas(self, batch: Batch) -> dict[str, tf.Tensor]:
        rows = self._strategy.run(self._of_replica, args=(batch,))
        return {name: self._strategy.gather(part, axis=0) for name, part in rows.items()}

    def _of_replica(self, batch: Batch) -> dict[str, tf.Tensor]:
        found, labels = self._function(batch), batch['label']
        # Not all strategies can gather booleans.
        mask = tf.cast(batch.get('mask', tf.ones_like(labels)), tf.int32)
        index = batch.get('index', tf.fill(tf.shape(labels), tf.constant(-1, tf.int64)))
        return {**found, 'label': labels, 'index': index, 'mask': mask}


class FeaturePass:
    """Runs a model over batches; create it within the strategy's scope.

    Args:
        model: images [b, h, w, 3] -> endpoints, in inference mode.
        kept: which of `EMBEDDING`, `LOGITS` and `RANK` are kept, if the model has them. It may
            still change until the first batch.
    """

    def __init__(
        self,
        model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
        kept: Collection[str] = (EMBEDDING, LOGITS),
    ) -> None:
        self._model, self._kept = model, kept
        self._pass = RowPass(self._rows)

    def of_batch(self, batch: Batch) -> Features:
        """The rows of a batch from all replicas, without padding.

        Args:
            batch: 'views', of which only the first is used, [b, h, w, 3]; 'label' [b]; optionally
                'mask' and 'index' [b].
        """
        found = self._pass.rows(batch)
        return Features(*map(found.get, (EMBEDDING, LOGITS, RANK, 'label', 'index')))

    def collect(
        self,
        batches: Iterable[Batch],
        *,
        limit: int | None = None,
        labeled: bool = False,
    ) -> Features:
        """The first `limit` rows of `batches`; counts only labeled ones if `labeled`."""
        parts, count = [], 0
        for batch in batches:
            part = self.of_batch(batch)
            parts.append(part.at(part.labels >= 0) if labeled else part)
            count += len(parts[-1])
            if limit is not None and count >= limit:
                break
        return concatenated(parts).at(slice(limit))

    def _rows(self, batch: Batch) -> dict[str, tf.Tensor]:
        endpoints = self._model(batch['views'][0])
        found = {
            name: tf.cast(endpoints[name], tf.float32)
            for name in (EMBEDDING, LOGITS)
            if name in self._kept and name in endpoints
        }
        if RANK in self._kept:
            found[RANK] = label_rank(endpoints[LOGITS], batch['label'])
        return found


def concatenated(parts: Sequence[Features]) -> Features:
    """Concatenates `parts`."""
    if not parts:
        empty = np.zeros([0], np.int32)
        return Features(np.zeros([0, 1], np.float32), None, empty, empty, empty.astype(np.int64))
    columns = zip(*(part.columns() for part in parts))
    return Features(*(None if column[0] is None else np.concatenate(column) for column in columns))
