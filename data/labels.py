"""Counts labels without decoding images, and renumbers classes.

Classes are compared by name: two data sets may number the same classes differently, and a
classifier keeps the numbers that it was trained with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError, printable
from data.sources.source import BYTES_SAMPLED, NO_LABEL, Source
from data.worker import Worker

_LABELS_PER_BATCH = 1024
_LISTED = 8  # names of classes in a message


@dataclasses.dataclass(frozen=True)
class LabelCounts:
    """How the examples of a split are distributed over the classes.

    Attributes:
        examples: number of examples in the split, or of its first ones if only they count.
        read: number of labels that were read; they are those of the first examples.
        by_class: [c] int64, how many of these labels are of each class.
    """

    examples: int
    read: int
    by_class: np.ndarray

    @property
    def labeled(self) -> int:
        """How many of the examples that were read have a label."""
        return int(self.by_class.sum())

    @property
    def unlabeled(self) -> int:
        """How many of the examples that were read have no label."""
        return self.read - self.labeled

    @property
    def complete(self) -> bool:
        """Whether all labels were read."""
        return self.read == self.examples

    def in_order(self, before: Sequence[str], names: Sequence[str]) -> LabelCounts:
        """These counts for classes that are numbered as in `names`, not as in `before`."""
        number = {name: label for label, name in enumerate(before)}
        order = [number[name] for name in names]
        return dataclasses.replace(self, by_class=self.by_class[order])

    def describe(self, names: Sequence[str] | None = None) -> str:
        """'10 classes of 600', or '9 of 10 classes, of 2 (owl) to 70 (cat); 5 without a label'.

        Args:
            names: of the classes.
        """
        if not self.labeled:
            return 'no labels'
        there = np.flatnonzero(self.by_class)
        of = self.by_class[there]
        count = len(self.by_class)
        classes = f'{count} classes' if len(there) == count else f'{len(there)} of {count} classes,'
        few, many = (int(there[place(of)]) for place in (np.argmin, np.argmax))

        def size(label: int) -> str:
            name = f' ({printable(names[label])})' if names and of.min() < of.max() else ''
            return f'{self.by_class[label]:,}{name}'

        sizes = size(few) if of.min() == of.max() else f'{size(few)} to {size(many)}'
        none = f'; {self.unlabeled:,} without a label' if self.unlabeled else ''
        looked = '' if self.complete else f' among the first {self.read:,}'
        return f'{classes} of {sizes}{none}{looked}'


def listed(names: Sequence[str]) -> str:
    """Names of classes for a message, only the first few if there are many."""
    more = f', … ({len(names)} in all)' if len(names) > _LISTED else ''
    return ', '.join(map(printable, names[:_LISTED])) + more


def label_arrays(source: Source, split: str) -> Iterator[np.ndarray]:
    """Yields the labels of a split in the source's order, in arrays [n].

    Raises:
        UserError: if there is no such split, or a label is none of the classes.
    """
    start = 0
    for labels in (source.labels or _labels_of_examples(source))(split):
        limit = source.num_classes or 0
        wrong = np.flatnonzero((labels < NO_LABEL) | (labels >= limit))
        if len(wrong):
            raise UserError(
                f'Labels of {source.name} must be from 0 to {limit - 1}, or {NO_LABEL} for none; '
                f'found {labels[wrong[0]]}, of example {start + wrong[0]} of {split!r}. Fix the '
                'data set, or choose another split.'
            )
        start += len(labels)
        yield labels


def _labels_of_examples(source: Source) -> Callable[[str], Iterator[np.ndarray]]:
    def labels(split: str) -> Iterator[np.ndarray]:
        examples = source.examples(split).map(lambda example: example['label'])
        return examples.batch(_LABELS_PER_BATCH).as_numpy_iterator()

    return labels


def read_labels(source: Source, split: str) -> np.ndarray:
    """All labels of a split in the source's order, [n] int32; images are not decoded."""
    arrays = [array.astype(np.int32) for array in label_arrays(source, split)]
    return np.concatenate(arrays) if arrays else np.zeros([0], np.int32)


def count_labels(
    source: Source, split: str, *, first: int | None = None, at_least: int = 1
) -> LabelCounts:
    """Counts the labels of a split, class by class.

    If labels are stored among the images of a large split, about BYTES_SAMPLED are read.

    Args:
        source: with labels or without.
        split: split or slice of `source`.
        first: number of examples to count, the first ones; None for all.
        at_least: number of labels to find before reading may stop early.

    Raises:
        UserError: if there is no such split, or a label is none of the classes.
    """
    examples = source.num_examples(split)
    examples = examples if first is None else min(first, examples)
    counts = np.zeros([source.num_classes or 0], np.int64)
    if source.num_classes is None:
        return LabelCounts(examples, examples, counts)
    size = source.label_bytes(split)
    enough = examples if size <= BYTES_SAMPLED else int(examples * BYTES_SAMPLED / size)
    read = 0
    for labels in label_arrays(source, split):
        labels = labels[: examples - read]
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
        read += len(labels)
        if read >= examples or (read >= enough and counts.sum() >= at_least):
            break
    return LabelCounts(examples, read, counts)


def with_class_order(source: Source, names: Sequence[str], whose: str) -> Source:
    """`source` with its classes numbered as in `names`.

    Args:
        source: with names of its classes.
        names: the same names, in any order.
        whose: who uses `names`, for the message.

    Raises:
        UserError: if `source` has other classes.
    """
    own = source.class_names
    if tuple(names) == own:
        return source
    if not same_classes(own, names):
        raise UserError(
            f'{whose} has other classes than {source.name}: {difference(names, own)}. Choose '
            'data with the same class names.'
        )
    return relabeled(source, names)


def same_classes(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether both name the same classes, in whichever order."""
    return sorted(one) == sorted(other)


def difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Both lists for a message: whole if they are short, else what only one of them has."""
    if max(len(theirs), len(ours)) <= _LISTED or same_classes(theirs, ours):
        return f'{listed(theirs)}; found {listed(ours)}'
    only = [[name for name in a if name not in b] for a, b in ((theirs, ours), (ours, theirs))]
    counts = f'{len(theirs)} classes, found {len(ours)}'
    return f'{counts}; only there: {listed(only[0]) or "none"}; only in the data: ' + (
        listed(only[1]) or 'none'
    )


def relabeled(source: Source, names: Sequence[str]) -> Source:
    """`source` with other numbers for its classes.

    Args:
        source: with names of its classes.
        names: the same names, in the order of the new numbers.
    """
    new = {name: number for number, name in enumerate(names)}
    # The old number -1, no label, stays -1: it is the last entry, which index -1 selects.
    table = np.array([*(new[name] for name in source.class_names), NO_LABEL], np.int32)

    def rename(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        place = tf.math.floormod(example['label'], len(table))
        return {**example, 'label': tf.gather(tf.constant(table), place)}

    def share(split: str, worker: Worker) -> tf.data.Dataset | None:
        own = source.share(split, worker)
        return None if own is None else own.map(lambda index, example: (index, rename(example)))

    return dataclasses.replace(
        source,
        class_names=tuple(names),
        examples=lambda split: source.examples(split).map(rename),
        share=share,
        labels=lambda split: (table[labels] for labels in label_arrays(source, split)),
    )
