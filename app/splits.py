"""Batches for evaluators: of whole splits, or of samples while a run pretrains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from app.assembly import views_of
from app.experiment import Experiment
from common.interruption import Stop
from common.views import CONTRAST, View
from data.batches import eval_batches
from data.sources.source import Source
from data.worker import Worker
from tf2 import distribution
from tf2.evaluators.base import MOST_ROWS

SAMPLE = 2048  # images of each split, rounded up to whole batches


class GivenUpError(Exception):
    """A signal arrived while a sample was evaluated."""


class Splits:
    """Batches for evaluators. Images are in a fixed order, in which classes are mixed.

    Args:
        experiment: what is run.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._stop: Stop | None = None

    @contextlib.contextmanager
    def sampling(self, stop: Stop) -> Iterator[None]:
        """Limits both splits to their first `SAMPLE` images within the context.

        Args:
            stop: after a signal, a pass raises `GivenUpError`.
        """
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None

    @property
    def _sampling(self) -> bool:
        return self._stop is not None

    def evaluated(self) -> Iterable[Any]:
        """A pass over the evaluation split."""
        config, source = self._experiment.config, self._experiment.data.evaluated
        most = config.evaluation.eval_steps * config.evaluation.eval_batch_size
        most = min(most or SAMPLE, SAMPLE) if self._sampling else most
        return self._batches(source, config.data.eval_split, self._plain_views(), most)

    def trained(self) -> Iterable[Any]:
        """A pass over the training split, in evaluation views."""
        config, source = self._experiment.config, self._experiment.source
        # There must be at least as many as neighbors are asked for.
        most = max(SAMPLE, config.evaluation.knn_neighbors) if self._sampling else 0
        return self._batches(source, config.data.train_split, self._plain_views(), most)

    def pairs(self) -> Iterable[Any]:
        """A pass over the first images of the evaluation split, in two augmented views each.

        These are the method's first two views, or SimCLR's if the method has only one.
        """
        config, seen = self._experiment.config, self._experiment.config.learning.views
        views = seen[:2] if len(seen) > 1 else CONTRAST
        source, seed = self._experiment.data.evaluated, config.train.seed
        return self._batches(source, config.data.eval_split, views, MOST_ROWS, seed=seed)

    def _plain_views(self) -> tuple[View, ...]:
        return views_of(self._experiment.config, self._experiment.teacher, evaluates=True)

    def _batches(
        self,
        source: Source,
        split: str,
        views: Sequence[View],
        most: int,
        *,
        seed: int | None = None,
    ) -> Iterable[Any]:
        """Batches of the first `most` images, rounded up to whole batches; of all images for 0."""
        config = self._experiment.config
        size = config.evaluation.eval_batch_size

        def share(worker: int, workers: int) -> tf.data.Dataset:
            whole = eval_batches(
                source,
                config.data,
                split=split,
                batch_size=size,
                views=views,
                worker=Worker(worker, workers),
                seed=seed,
            )
            return whole.take(-(-most // size)) if most else whole

        return self._until_signal(distribution.distribute(self._experiment.strategy, share))

    def _until_signal(self, batches: Iterable[Any]) -> Iterable[Any]:
        # With several workers, one that stops would leave the others waiting.
        if self._stop is None or distribution.spans_workers(self._experiment.strategy):
            return batches
        return _until(self._stop, batches)


def _until(stop: Stop, batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        if stop.number is not None:
            raise GivenUpError
        yield batch
