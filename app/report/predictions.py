"""Runs exported modules on images: confusion matrices and nearest neighbors."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from app.report.runs import Run
from app.run_folder import newest_module
from data.batches import eval_batches
from data.labels import with_class_order
from data.sources.source import NO_LABEL, Source
from tf2.features import FeaturePass, Features, concatenated
from tf2.weights import open_weights

QUERIES = 8  # evaluation images whose neighbors are found
NEIGHBORS = 6
SEARCHED = 5000  # training images among which neighbors are searched
THUMBNAIL = 96  # largest height and width of an image on the page, in pixels


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        counts: [c, c] int64, row: true class, column: predicted class.
        names: of the classes.
    """

    counts: np.ndarray
    names: Sequence[str]

    @property
    def accuracy(self) -> float:
        """Share of images on the diagonal."""
        return float(np.trace(self.counts) / self.counts.sum())


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


def confusion(run: Run, source: Source) -> Confusion | None:
    """Runs the module of a run on its evaluation split.

    Returns:
        The matrix; None if there is no module with a classifier, or no image with a label.
    """
    module = load_module(run)
    if module is None or source.num_classes is None:
        return None
    found = FeaturePass(module).collect(evaluation_batches(run, source), labeled=True)
    if found.logits is None or not len(found):
        return None
    counts = np.zeros([source.num_classes] * 2, np.int64)
    np.add.at(counts, (found.labels, np.argmax(found.logits, axis=1)), 1)
    return Confusion(counts, class_names(source))


def neighborhoods(run: Run, source: Source) -> list[Neighborhood]:
    """The nearest training images of some evaluation images, by the encoder of a run.

    The evaluation images are the first ones of as many classes as possible. The first SEARCHED
    training images are searched; sources are in mixed order.

    Returns:
        At most QUERIES, in the order of their classes; none if there is no module.
    """
    module = load_module(run)
    if module is None:
        return []
    data, batch_size = run.config.data, run.config.evaluation.eval_batch_size
    images, labels = choose_queries(evaluation_batches(run, source), source.num_classes)
    queries = [Picture(*pair) for pair in zip(thumbnails(images), labels.tolist())]
    train = eval_batches(source, data, split=data.train_split, batch_size=batch_size)
    look = FeaturePass(module)
    searched, pictures = _searched(look, train)
    asked = look.of_batch({'views': (tf.constant(images),), 'label': tf.constant(labels)})
    found, cosines = nearest(searched.embeddings, asked.embeddings, NEIGHBORS)
    return [
        Neighborhood(query, [pictures[i] for i in indices], similarities.tolist())
        for query, indices, similarities in zip(queries, found, cosines)
    ]


def choose_queries(
    batches: Iterable[Any], num_classes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class, QUERIES in total if there are enough.

    Args:
        batches: as `eval_batches` yields them; not read further than needed.
        num_classes: None if the data set has no labels.

    Returns:
        Images [m, h, w, 3] float32 and labels [m], ascending; m <= QUERIES.
    """
    of_each = -(-QUERIES // (num_classes or 1))
    chosen: list[tuple[int, np.ndarray]] = []
    taken: collections.Counter[int] = collections.Counter()
    for batch in batches:
        for image, label in _examples(batch):
            wanted = label == NO_LABEL or taken[label] < of_each
            if len(chosen) < QUERIES and wanted:
                taken[label] += 1
                chosen.append((label, image))
        if len(chosen) == QUERIES:
            break
    chosen.sort(key=lambda pair: pair[0])
    return np.stack([image for _, image in chosen]), np.array([label for label, _ in chosen])


def _examples(batch: Any) -> Iterable[tuple[np.ndarray, int]]:
    """Image and label of each row, without padding."""
    rows = batch['mask'].numpy()
    return zip(batch['views'][0].numpy()[rows], batch['label'].numpy()[rows].tolist())


def _searched(look: FeaturePass, batches: Iterable[Any]) -> tuple[Features, list[Picture]]:
    """Features and thumbnails of the first SEARCHED images."""
    parts: list[Features] = []
    pictures: list[Picture] = []
    for batch in batches:
        parts.append(look.of_batch(batch))
        images, labels = zip(*_examples(batch))
        pictures += [Picture(*pair) for pair in zip(thumbnails(np.stack(images)), labels)]
        if len(pictures) >= SEARCHED:
            break
    return concatenated(parts).at(slice(SEARCHED)), pictures[:SEARCHED]


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
