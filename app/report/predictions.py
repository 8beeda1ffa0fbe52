"""Runs exported modules on images, once: confusion matrix, nearest neighbors, sample for a map.

On a million images it costs as much as on `EVALUATED` and `SEARCHED` of them.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from app.report.runs import Run
from app.run_folder import newest_module
from common.errors import UserError
from data.batches import eval_batches
from data.labels import with_class_order
from data.sources.source import NO_LABEL, Source
from tf2.evaluators.confusion import confusion_counts
from tf2.features import FeaturePass, Features
from tf2.weights import open_weights

QUERIES = 8  # evaluation images whose neighbors are found
NEIGHBORS = 6
EVALUATED = 10_000  # evaluation images that are classified
SEARCHED = 5_000  # training images among which neighbors are searched
MAPPED = 500  # evaluation images on the map
THUMBNAIL = 96  # largest height and width of an image on the page, in pixels


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        counts: [c, c] int64, row: true class, column: predicted class.
        names: of the classes.
        read: number of images that were read, with and without a label.
    """

    counts: np.ndarray
    names: Sequence[str]
    read: int = 0

    @property
    def accuracy(self) -> float:
        """Share of images on the diagonal."""
        return float(np.trace(self.counts) / self.counts.sum())

    def by_class(self) -> list[ClassResult]:
        """The classes that have images, best first; equally good ones in their order."""
        found = []
        for label, row in enumerate(self.counts):
            wrong = row.copy()
            wrong[label] = 0
            other = self.names[wrong.argmax()] if wrong.any() else None
            found.append(ClassResult(self.names[label], int(row.sum()), int(row[label]), other))
        return sorted((c for c in found if c.images), key=lambda c: -c.right / c.images)


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """How well the images of a class were classified.

    Attributes:
        name: of the class.
        images: how many there are.
        right: how many of these were classified correctly.
        taken_for: the class that most of the others were taken for; None if there are none.
    """

    name: str
    images: int
    right: int
    taken_for: str | None


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        pixels: [h, w, 3] uint8.
        label: its class; NO_LABEL if it has none.
    """

    pixels: np.ndarray
    label: int


@dataclasses.dataclass(frozen=True)
class Neighborhood:
    """An evaluation image and its nearest training images, nearest first, with their cosines."""

    query: Picture
    neighbors: Sequence[Picture]
    similarities: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Sample:
    """The first evaluation images.

    Attributes:
        pictures: n of them.
        embeddings: [n, d] float32.
    """

    pictures: Sequence[Picture]
    embeddings: np.ndarray


@dataclasses.dataclass(frozen=True)
class Study:
    """What the module of a run makes of its data.

    Attributes:
        confusion: None if it has no classifier, or no image a label.
        neighborhoods: at most QUERIES, in the order of their classes.
        sample: at most MAPPED.
    """

    confusion: Confusion | None
    neighborhoods: Sequence[Neighborhood]
    sample: Sample


def load_module(run: Run) -> Callable[[Any], Any] | None:
    """The newest module that a run exported, images -> endpoints; None if there is none.

    Only its weights are read: its graph is code, and the folder may come from elsewhere.
    """
    path = newest_module(run.planned.folder)
    if path is None:
        return None
    weights = open_weights(path)
    model = weights.build()
    weights.load_into(model, head_layers=-1)
    return tf.function(lambda images: model(images, training=False), autograph=False)


def source_of(run: Run, source: Source) -> Source:
    """`source` with its classes in the order of the run's."""
    names = run.values.get('class_names')
    if not names or source.class_names is None:
        return source
    return with_class_order(source, names, f'--model_dir={run.planned.folder}')


def class_names(source: Source) -> list[str]:
    """Names of the classes by label; numbers if they have no names."""
    return list(source.class_names or map(str, range(source.num_classes or 0)))


def evaluation_batches(run: Run, source: Source) -> tf.data.Dataset:
    """The batches that the run was evaluated on."""
    evaluation, data = run.config.evaluation, run.config.data
    batches = eval_batches(
        source, data, split=data.eval_split, batch_size=evaluation.eval_batch_size
    )
    return batches.take(evaluation.eval_steps) if evaluation.eval_steps else batches


def study(run: Run, source: Source) -> Study | None:
    """Runs the module of a run once over some evaluation images and some training images.

    These are the first EVALUATED images that the run was evaluated on, and the first SEARCHED
    training images; sources are in mixed order. The embeddings and small pictures of MAPPED of the
    former are in memory at a time, and the embeddings of a batch.

    Args:
        run: whose module.
        source: the data set, with its classes in the order of the run's.

    Returns:
        None if `why_no_study` gives a reason.
    """
    if why_no_study(run, source):
        return None
    module = load_module(run)
    look, data = FeaturePass(module), run.config.data
    sample, confusion = _evaluated(look, evaluation_batches(run, source), source)
    chosen = choose_queries([picture.label for picture in sample.pictures], source.num_classes)
    batch_size = run.config.evaluation.eval_batch_size
    train = eval_batches(source, data, split=data.train_split, batch_size=batch_size)
    found = _searched(look, train, sample.embeddings[chosen])
    neighborhoods = [
        Neighborhood(sample.pictures[row], pictures, cosines)
        for row, (pictures, cosines) in zip(chosen, found)
    ]
    return Study(confusion, neighborhoods, sample)


def why_no_study(run: Run, source: Source) -> str | None:
    """Why nothing can be said about the images, as a sentence; None if something can."""
    if newest_module(run.planned.folder) is None:
        return f'{run.planned.title} exported no network.'
    split = run.config.data.eval_split
    if not examples_in(source, split):
        return f'There are no images in {split!r} to look at; --eval_split names another split.'
    return None


def examples_in(source: Source, split: str) -> int:
    """The number of examples of a split; 0 if there is no such split.

    A run that is not evaluated need not have an evaluation split.
    """
    try:
        return source.num_examples(split)
    except UserError:
        return 0


def _evaluated(
    look: FeaturePass, batches: Iterable[Any], source: Source
) -> tuple[Sample, Confusion | None]:
    """The sample, and the confusion matrix of all that is read."""
    classes = source.num_classes or 0
    counts, pictures, embeddings, read = np.zeros([classes] * 2, np.int64), [], [], 0
    for part, images in _features(look, batches, EVALUATED):
        kept = max(0, MAPPED - len(pictures))
        embeddings.append(part.embeddings[:kept])
        pictures += pictures_of(images[:kept], part.labels[:kept])
        read += len(part)
        if classes and part.logits is not None:
            labeled = part.at(part.labels >= 0)
            counts += confusion_counts(labeled.logits, labeled.labels)
    confusion = Confusion(counts, class_names(source), read) if counts.any() else None
    return Sample(pictures, np.concatenate(embeddings)), confusion


def _features(
    look: FeaturePass, batches: Iterable[Any], most: int
) -> Iterator[tuple[Features, np.ndarray]]:
    """Features and images of the first `most` rows, batch by batch, without padding."""
    for batch in batches:
        part, images = look.of_batch(batch), batch['views'][0].numpy()[batch['mask'].numpy()]
        yield part.at(slice(most)), images[:most]
        most -= len(part)
        if most <= 0:
            return


def choose_queries(labels: Sequence[int], num_classes: int | None) -> list[int]:
    """The first images of each class, QUERIES in total if there are enough.

    Args:
        labels: of the images.
        num_classes: None if the data set has no labels.

    Returns:
        At most QUERIES row numbers, by class.
    """
    of_each = -(-QUERIES // (num_classes or 1))
    chosen: list[int] = []
    taken: collections.Counter[int] = collections.Counter()
    for row, label in enumerate(labels):
        if len(chosen) < QUERIES and (label == NO_LABEL or taken[label] < of_each):
            taken[label] += 1
            chosen.append(row)
    return sorted(chosen, key=lambda row: labels[row])


def _searched(
    look: FeaturePass, batches: Iterable[Any], queries: np.ndarray
) -> list[tuple[list[Picture], list[float]]]:
    """Pictures and cosines of the nearest images of each query, [m, d], nearest first.

    Between batches, only images that are among the nearest of a query so far are kept.
    """
    pictures: list[Picture] = []
    embeddings = np.zeros([0, queries.shape[1]], np.float32)
    for part, images in _features(look, batches, SEARCHED):
        before, embeddings = len(pictures), np.concatenate([embeddings, part.embeddings])
        rows = np.unique(nearest(embeddings, queries, NEIGHBORS)[0])
        new = rows[rows >= before] - before
        pictures = [pictures[row] for row in rows[rows < before]]
        pictures += pictures_of(images[new], part.labels[new])
        embeddings = embeddings[rows]
    found, cosines = nearest(embeddings, queries, NEIGHBORS)
    return [
        ([pictures[row] for row in rows], values.tolist()) for rows, values in zip(found, cosines)
    ]


def nearest(searched: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `searched` with the highest cosine similarity to each query.

    Args:
        searched: [n, d] float.
        queries: [m, d] float.
        count: number of neighbors; at most n are found.

    Returns:
        Row numbers [m, k] and similarities [m, k], highest first; ties in row order.
    """

    def unit(rows: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.maximum(lengths, np.finfo(np.float32).tiny)

    cosines = unit(queries) @ unit(searched).T  # [m, n]
    found = np.argsort(-cosines, axis=1, kind='stable')[:, :count]
    return found, np.take_along_axis(cosines, found, axis=1)


def pictures_of(images: np.ndarray, labels: np.ndarray) -> list[Picture]:
    """Images [n, h, w, 3] float in [0, 1] and their labels [n] as small pictures."""
    return [Picture(*pair) for pair in zip(thumbnails(images), labels.tolist())]


def thumbnails(images: np.ndarray) -> np.ndarray:
    """[b, h, w, 3] float in [0, 1] -> [b, h', w', 3] uint8, h' and w' at most THUMBNAIL."""
    height, width = images.shape[1:3]
    factor = THUMBNAIL / max(height, width)
    if factor < 1:
        size = [round(height * factor), round(width * factor)]
        images = tf.image.resize(images, size, 'area').numpy()
    return np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)


def same_class(query: Picture, neighbor: Picture) -> bool | None:
    """Whether two pictures have the same class; None if one of them has no label."""
    if NO_LABEL in (query.label, neighbor.label):
        return None
    return query.label == neighbor.label
