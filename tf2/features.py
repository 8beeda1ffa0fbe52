"""One pass over images: embeddings, logits, labels and positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

EMBEDDING, LOGITS = 'final_avg_pool', 'logits_sup'  # endpoints of a model


@dataclasses.dataclass(frozen=True)
class Features:
    """A model's outputs for some examples, one row each.

    Attributes:
        embeddings: [n, d] float32.
        logits: [n, c] float32; None without a classifier.
        labels: [n] int32, -1 = none.
        index: [n] int64, position in the split; -1 if the batches have no 'index'.
    """

    embeddings: np.ndarray
    logits: np.ndarray | None
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Any) -> Features:
        """Selects `rows`, given as a slice, indices or a mask."""
        logits = None if self.logits is None else self.logits[rows]
        return Features(self.embeddings[rows], logits, self.labels[rows], self.index[rows])


class RowPass:
    """Runs a function over batches; create it within the strategy's scope.

    Args:
        function: images [b, h, w, 3] -> {name: [b, ...]}, of a type that all strategies can gather:
            float32, int32 or int64.
    """

    def __init__(self, function: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]) -> None:
        self._function = function
        self._strategy = tf.distribute.get_strategy()
        self._run = tf.function(self._run_replicas, reduce_retracing=True, autograph=False)

    def rows(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The rows of a batch from all replicas, without padding.

        Args:
            batch: 'views', of which only the first is used, [b, h, w, 3]; 'label' [b]; optionally
                'mask' and 'index' [b].

        Returns:
            The results of the function, 'label' and 'index'.
        """
        found = {name: rows.numpy() for name, rows in self._run(batch).items()}
        shown = found.pop('mask') > 0
        return {name: rows[shown] for name, rows in found.items()}

    def _run_replicas(self, batch: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        rows = self._strategy.run(self._of_replica, args=(batch,))
        return {name: self._strategy.gather(part, axis=0) for name, part in rows.items()}

    def _of_replica(self, batch: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        found, labels = self._function(batch['views'][0]), batch['label']
        # Not all strategies can gather booleans.
        mask = tf.cast(batch.get('mask', tf.ones_like(labels)), tf.int32)
        index = batch.get('index', tf.fill(tf.shape(labels), tf.constant(-1, tf.int64)))
        return {**found, 'label': labels, 'index': index, 'mask': mask}


class FeaturePass:
    """Runs a model over batches; create it within the strategy's scope.

    Args:
        model: images [b, h, w, 3] -> endpoints, in inference mode; `EMBEDDING` and, if there is a
            classifier, `LOGITS` are kept.
    """

    def __init__(self, model: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]) -> None:
        self._model = model
        self._pass = RowPass(self._kept)

    def of_batch(self, batch: Mapping[str, Any]) -> Features:
        """The rows of a batch from all replicas, without padding.

        Args:
            batch: 'views', of which only the first is used, [b, h, w, 3]; 'label' [b]; optionally
                'mask' and 'index' [b].
        """
        found = self._pass.rows(batch)
        return Features(found[EMBEDDING], found.get(LOGITS), found['label'], found['index'])

    def collect(
        self,
        batches: Iterable[Mapping[str, Any]],
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

    def _kept(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        endpoints = self._model(images)
        return {
            name: tf.cast(endpoints[name], tf.float32)
            for name in (EMBEDDING, LOGITS)
            if name in endpoints
        }


def concatenated(parts: Sequence[Features]) -> Features:
    """Concatenates `parts`."""
    if not parts:
        empty = np.zeros([0], np.int32)
        return Features(np.zeros([0, 1], np.float32), None, empty, empty.astype(np.int64))
    columns = [[getattr(part, f.name) for part in parts] for f in dataclasses.fields(Features)]
    return Features(*(None if column[0] is None else np.concatenate(column) for column in columns))
