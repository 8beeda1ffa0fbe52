"""Labels are counted and classes matched by name, without decoding images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from data import labels as labels_module
from data.labels import count_labels, read_labels, relabeled, with_class_order
from data.sources.source import Source
from data.worker import Worker

NAMES = ('cat', 'dog', 'owl')


def source_of(labels: list[int], names: tuple[str, ...] | None = NAMES, **fields) -> Source:
    """Labels in two arrays; an image is the number of its example."""

    def examples(split: str) -> tf.data.Dataset:
        parts = {'image': np.arange(len(labels)), 'label': np.array(labels, np.int32)}
        return tf.data.Dataset.from_tensor_slices(parts)

    def arrays(split: str):
        return iter(np.array_split(np.array(labels, np.int64), 2))

    return Source(
        name='pets',
        num_classes=3,
        class_names=names,
        num_examples=lambda split: len(labels),
        examples=examples,
        decode=tf.identity,
        share=lambda split, worker: examples(split).enumerate(),
        labels=arrays,
        **fields,
    )


@pytest.mark.parametrize(
    ('labels', 'names', 'words'),
    [
        ([0, 1, 2, 2, 1, 0], NAMES, '3 classes of 2'),
        ([0, 2, 2, 2, -1], NAMES, '2 of 3 classes, of 1 (cat) to 3 (owl); 1 without a label'),
        ([0, 2, 2], None, '2 of 3 classes, of 1 to 2'),
        ([-1, -1], NAMES, 'no labels'),
        ([], NAMES, 'no labels'),
    ],
)
@pytest.mark.parametrize('has_reader', [True, False])
def test_labels_are_counted_by_class(
    labels: list, names: tuple | None, words: str, has_reader: bool
) -> None:
    source = source_of(labels, names)
    source = source if has_reader else dataclasses.replace(source, labels=None)
    counts = count_labels(source, 'train')
    assert counts.describe(names) == words
    assert (counts.complete, counts.read) == (True, len(labels))
    assert counts.labeled == sum(label >= 0 for label in labels)


def test_counting_stops_early_in_large_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, 'BYTES_SAMPLED', 10)
    source = source_of([-1, -1, -1, 0, 1, 1], label_bytes=lambda split: 20)
    counts = count_labels(source, 'train')
    assert (counts.read, counts.complete) == (6, True)  # none was found before
    source = source_of([0, 1, 1, 0, 1, 1], label_bytes=lambda split: 20)
    counts = count_labels(source, 'train')
    assert (counts.read, counts.examples, counts.labeled) == (3, 6, 3)
    assert counts.describe(NAMES).endswith('among the first 3')
    assert count_labels(source, 'train', at_least=4).read == 6
    assert count_labels(source, 'train', first=2).by_class.tolist() == [1, 1, 0]


@pytest.mark.parametrize('wrong', [3, -2, 2**32])
def test_labels_out_of_range_are_refused(wrong: int) -> None:
    with pytest.raises(
        UserError, match=f'from 0 to 2, or -1 for none; found {wrong}, of example 4'
    ):
        count_labels(source_of([0, 1, 2, 0, wrong]), 'train')


def test_classes_are_renumbered_by_name() -> None:
    source = source_of([0, 1, 2, -1])
    order = ('owl', 'cat', 'dog')
    for renamed in (relabeled(source, order), with_class_order(source, order, 'it')):
        expected = [1, 2, 0, -1]
        assert renamed.class_names == order
        assert [int(e['label']) for e in renamed.examples('train')] == expected
        assert [int(e['label']) for _, e in renamed.share('train', Worker(0, 2))] == expected
        assert read_labels(renamed, 'train').tolist() == expected
        without = dataclasses.replace(renamed, labels=None)
        assert read_labels(without, 'train').tolist() == expected
        # Counts of the old numbers, renumbered, are those of the new ones.
        counts = count_labels(source_of([0, 0, 0, 1, 2, 2, -1]), 'train')
        renumbered = counts.in_order(NAMES, order)
        assert renumbered.by_class.tolist() == [2, 3, 1]
        assert renumbered.describe(order) == counts.describe(NAMES)
    assert with_class_order(source, NAMES, 'it') is source
    alone = dataclasses.replace(source, share=lambda split, worker: None)
    assert relabeled(alone, order).share('train', Worker(0, 2)) is None


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        (('cat', 'dog', 'fox'), 'cat, dog, fox; found cat, dog, owl'),
        (('cat', 'dog'), 'cat, dog; found cat, dog, owl'),
        (
            tuple(f'c{i}' for i in range(20)),
            '20 classes, found 3; only there: c0, .*only in .*: cat',
        ),
    ],
)
def test_other_classes_are_refused_with_both_lists(names: tuple, words: str) -> None:
    with pytest.raises(UserError, match=f'The run has other classes than pets: {words}'):
        with_class_order(source_of([0]), names, 'The run')
