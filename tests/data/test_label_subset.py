"""Subsets of the labels are stratified, seeded and nested; training reads nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.views import SUPERVISED
from data.batches import eval_batches, train_batches
from data.config import DataConfig
from data.label_subset import (
    choose_labels,
    hide_other_labels,
    read_labels,
    restrict,
    wants_subset,
)
from data.sources.source import Source


def source_of(labels: list[int], classes: int) -> Source:
    """A source whose image i is a single pixel of gray i."""
    pixels = [tf.io.encode_png(np.full([1, 1, 1], i % 256, np.uint8)) for i in range(len(labels))]
    return Source(
        name='made up',
        num_classes=classes,
        class_names=tuple(f'class {i}' for i in range(classes)),
        num_examples=lambda split: len(labels),
        examples=lambda split: tf.data.Dataset.from_tensor_slices(
            {'image': tf.stack(pixels), 'label': tf.constant(labels, tf.int32)}
        ),
        decode=tf.io.decode_png,
    )


LABELS = [i % 3 for i in range(90)]
SOURCE = source_of(LABELS, 3)


@settings(max_examples=20, deadline=None)
@given(fraction=st.floats(0.04, 1), seed=st.integers(0, 1000))
def test_every_class_gives_its_share(fraction: float, seed: int) -> None:
    config = DataConfig(label_fraction=fraction)
    subset = choose_labels(SOURCE, config, split='train', seed=seed)
    np.testing.assert_array_equal(np.bincount(subset.labels, minlength=3), round(fraction * 30))
    np.testing.assert_array_equal(subset.labels, np.array(LABELS)[subset.indices])
    assert len(set(subset.indices)) == len(subset.indices)


def test_a_seed_always_gives_the_same_examples() -> None:
    """The figures are written down: another machine or release has to find these very ones."""
    config = DataConfig(labels_per_class=2)
    first = choose_labels(SOURCE, config, split='train', seed=0)
    assert first.listing() == choose_labels(SOURCE, config, split='train', seed=0).listing()
    assert first.indices.tolist() == [0, 1, 4, 17, 54, 74]
    other = choose_labels(SOURCE, config, split='train', seed=1)
    assert other.indices.tolist() != first.indices.tolist()


def test_a_larger_subset_contains_a_smaller_one() -> None:
    few, more = (
        choose_labels(SOURCE, DataConfig(labels_per_class=n), split='train', seed=4)
        for n in (3, 11)
    )
    assert set(few.indices) < set(more.indices)


def test_training_sees_the_chosen_examples_only() -> None:
    config = DataConfig(labels_per_class=2, image_size=1)
    subset = choose_labels(SOURCE, config, split='train', seed=0)
    limited = restrict(SOURCE, 'train', subset)
    assert limited.num_examples('train') == 6
    assert limited.num_examples('test') == 90
    batches = train_batches(limited, config, split='train', views=SUPERVISED, batch_size=6, seed=0)
    for batch in batches.take(3):
        seen = np.rint(batch['views'][0][:, 0, 0, 0].numpy() * 255)
        assert sorted(seen.tolist()) == subset.indices.tolist()
        np.testing.assert_array_equal(batch['index'], seen)
    (batch,) = eval_batches(limited, config, split='train', batch_size=8)
    assert batch['index'].numpy().tolist() == [*subset.indices, -1, -1]


def test_unlabeled_examples_are_never_chosen() -> None:
    source = source_of([-1, 0, -1, 1, 0, 1], 2)
    subset = choose_labels(source, DataConfig(label_fraction=0.99), split='train', seed=0)
    assert subset.indices.tolist() == [1, 3, 4, 5]
    np.testing.assert_array_equal(read_labels(source, 'train'), [-1, 0, -1, 1, 0, 1])


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (DataConfig(label_fraction=0.01), r'label_fraction=0.01 leaves class class 0 .* 30'),
        (DataConfig(labels_per_class=31), 'at most 30'),
    ],
)
def test_impossible_subsets_are_refused(config: DataConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_labels(SOURCE, config, split='train', seed=0)


def test_a_class_without_examples_is_named() -> None:
    source = dataclasses.replace(SOURCE, num_classes=4, class_names=(*SOURCE.class_names, 'owl'))
    with pytest.raises(UserError, match='owl'):
        choose_labels(source, DataConfig(labels_per_class=1), split='train', seed=0)


def test_two_ways_of_choosing_at_once_are_refused() -> None:
    with pytest.raises(UserError, match='give one of them'):
        DataConfig(labels_per_class=1, label_fraction=0.5)
    assert not wants_subset(DataConfig())
    assert wants_subset(DataConfig(labels_per_class=1)) and wants_subset(
        DataConfig(label_fraction=0.1)
    )


def test_labels_that_were_not_chosen_are_hidden_and_all_images_stay() -> None:
    subset = choose_labels(SOURCE, DataConfig(labels_per_class=2), split='train', seed=5)
    masked = hide_other_labels(SOURCE, 'train', subset)
    examples = list(masked.examples('train').as_numpy_iterator())
    assert len(examples) == masked.num_examples('train') == len(LABELS)
    known = [index for index, example in enumerate(examples) if example['label'] >= 0]
    assert known == subset.indices.tolist()
    assert [examples[index]['label'] for index in known] == subset.labels.tolist()
    whole = SOURCE.examples('train').as_numpy_iterator()
    assert [e['image'] for e in examples] == [e['image'] for e in whole]
    assert read_labels(masked, 'test').tolist() == LABELS
