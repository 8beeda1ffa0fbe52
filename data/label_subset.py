"""A stratified, seeded subset of the labels, the same on every machine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError, printable
from data.config import DataConfig
from data.labels import label_arrays, read_labels
from data.sources.source import HELD_BYTES, NO_LABEL, Source, no_share
from data.worker import Worker

# Subsets of up to this many examples are cached, encoded: otherwise every epoch would read the
# whole split to find them.
CACHED_EXAMPLES = 20_000


@dataclasses.dataclass(frozen=True)
class LabelSubset:
    """The chosen examples of a split.

    Attributes:
        indices: [n] int64, their positions in the source's order, ascending.
        labels: [n] int32.
        class_names: names by label; None if they have none.
        examples: [n], the file or slice of each example, see `Source.identify`; None if unknown.
    """

    indices: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str] | None = None
    examples: Sequence[str] | None = None

    def listing(self) -> str:
        """One line for each chosen example, with fields separated by tabs.

        The fields are its position, its class (a number if classes have no names), and its file or
        a slice of the split. Control characters in names are escaped.
        """
        names = [self.class_names[i] if self.class_names else str(i) for i in self.labels]
        fields = [self.indices, names, *([self.examples] if self.examples else [])]
        rows = zip(*fields, strict=True)
        return ''.join('\t'.join(printable(str(field)) for field in row) + '\n' for row in rows)


def wants_subset(config: DataConfig) -> bool:
    """Whether `config` asks for a subset of the labels."""
    return config.labels_per_class > 0 or config.label_fraction < 1


def choose_labels(source: Source, config: DataConfig, *, split: str, seed: int) -> LabelSubset:
    """Chooses `label_fraction` of every class, or `labels_per_class` of each.

    The examples of a class are ordered by a hash of seed and position, and the first ones are
    taken: a larger subset contains every smaller one of the same seed.

    Args:
        source: has labels.
        config: `label_fraction` and `labels_per_class`.
        split: split or slice of `source`.
        seed: the run's seed.

    Returns:
        The chosen examples.

    Raises:
        UserError: if a class would have no label, or has fewer than asked for.
    """
    labels = read_labels(source, split)
    chosen: list[int] = []
    for label in range(source.num_classes or 0):
        members = np.flatnonzero(labels == label)
        count = config.labels_per_class or round(config.label_fraction * len(members))
        _check_count(source, config, label, count, len(members))
        chosen += sorted(members.tolist(), key=lambda index: _order(seed, index))[:count]
    indices = np.array(sorted(chosen), np.int64)
    found = source.identify(split, indices) if source.identify else None
    return LabelSubset(indices, labels[indices], source.class_names, found)


def _order(seed: int, index: int) -> bytes:
    # A hash, because permutations of NumPy's generators may change between releases.
    return hashlib.blake2b(f'{seed} {index}'.encode(), digest_size=16).digest()


def _check_count(source: Source, config: DataConfig, label: int, count: int, members: int) -> None:
    name = source.class_names[label] if source.class_names else str(label)
    if members == 0:
        raise UserError(f'Class {name} of {source.name} has no example in the training split.')
    if count == 0:
        raise UserError(
            f'--label_fraction={config.label_fraction} leaves class {name} of {source.name}, which '
            f'has {members} examples, without a label. Give at least {1 / members:.2g}, or '
            '--labels_per_class=1.'
        )
    if count > members:
        raise UserError(
            f'--labels_per_class must be at most {members}, the examples of class {name} of '
            f'{source.name}; found {count}.'
        )


def restrict(source: Source, split: str, subset: LabelSubset) -> Source:
    """`source` with only the chosen examples in `split`; other splits are unchanged.

    Each chosen example also has an 'index', its position in the whole split. Where it is in the
    files is unknown, so every worker reads all of them.
    """
    is_chosen = _membership(subset)
    size = 0 if source.read else source.bytes_per_example(split) or 0
    few = len(subset.indices) <= min(CACHED_EXAMPLES, HELD_BYTES / max(size, 1))
    chosen = source.examples(split).enumerate()
    chosen = chosen.filter(lambda index, _: is_chosen(index))
    chosen = chosen.map(lambda index, example: {**example, 'index': index})
    chosen = chosen.cache() if few else chosen
    return dataclasses.replace(
        source,
        num_examples=lambda asked: (
            len(subset.indices) if asked == split else source.num_examples(asked)
        ),
        examples=lambda asked: chosen if asked == split else source.examples(asked),
        share=lambda asked, worker: (no_share if asked == split else source.share)(asked, worker),
        **_known_labels(source, split, subset.labels),
    )


def _known_labels(source: Source, split: str, labels: np.ndarray) -> dict[str, Callable]:
    """Replacements for fields of `source`, so that labels of `split` are not read again."""

    def arrays(asked: str) -> Iterator[np.ndarray]:
        return iter([labels]) if asked == split else label_arrays(source, asked)

    def label_bytes(asked: str) -> int:
        return 0 if asked == split else source.label_bytes(asked)

    return {'labels': arrays, 'label_bytes': label_bytes}


def hide_other_labels(source: Source, split: str, subset: LabelSubset) -> Source:
    """`source` with all its examples; in `split` only the chosen ones keep their label."""
    is_chosen = _membership(subset)

    def hide(index: tf.Tensor, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**example, 'label': tf.where(is_chosen(index), example['label'], NO_LABEL)}

    def share(asked: str, worker: Worker) -> tf.data.Dataset | None:
        own = source.share(asked, worker)
        if own is None or asked != split:
            return own
        return own.map(lambda index, example: (index, hide(index, example)))

    masked = source.examples(split).enumerate().map(hide)
    labels = np.full([source.num_examples(split)], NO_LABEL, np.int32)
    labels[subset.indices] = subset.labels
    return dataclasses.replace(
        source,
        examples=lambda asked: masked if asked == split else source.examples(asked),
        share=share,
        **_known_labels(source, split, labels),
    )


def _membership(subset: LabelSubset) -> Callable[[tf.Tensor], tf.Tensor]:
    """Position in the source's order, int64 scalar -> whether it was chosen, bool scalar."""
    # A constant rather than a lookup table, because a constant is part of the dataset's graph,
    # wherever that runs. The last number is larger than any position, so every search finds one.
    chosen = tf.constant(np.append(subset.indices, np.iinfo(np.int64).max), tf.int64)
    return lambda index: chosen[tf.searchsorted(chosen, [index])[0]] == index
