from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.randomness import MOST_DRAWS, epoch_key, threefry, uniform, view_seed


# The known answers that come with the authors' Random123 library (kat_vectors).
@pytest.mark.parametrize(
    ('key', 'counter', 'expected'),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers(key, counter, expected):
    words = threefry(tf.constant([key], tf.int64), tf.constant([counter], tf.int64))
    assert tuple(words.numpy()[0]) == expected


def test_uniform_is_uniform_and_uncorrelated():
    seeds = tf.stack([tf.fill([50_000], 7), tf.range(50_000)], axis=-1)
    numbers = uniform(seeds, 3, 'a use').numpy()
    other = uniform(seeds, 1, 'another use').numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Largest distance of the distribution functions; 1.95 / sqrt(n) is exceeded once in 1,000.
    for column in np.sort(numbers, axis=0).T:
        assert np.abs(column - np.arange(50_000) / 50_000).max() < 1.95 / np.sqrt(50_000)
    correlation = np.corrcoef(np.concatenate([numbers, other], axis=1).T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(50_000)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=8), st.integers(1, 9))
def test_uniform_of_a_batch_is_that_of_each_seed(words, count):
    seeds = tf.reshape(tf.constant(words[: len(words) // 2 * 2]), [-1, 2])
    batch = uniform(seeds, count, 'use')
    single = tf.stack([uniform(seed, count, 'use') for seed in tf.unstack(seeds)])
    assert batch.shape == [seeds.shape[0], count]
    np.testing.assert_array_equal(batch, single)


@given(
    st.integers(0, 2**31 - 1),
    st.lists(
        st.tuples(st.integers(0, 2**30 - 1), st.integers(0, MOST_DRAWS - 1)),
        min_size=2,
        unique=True,
    ),
)
def test_no_two_draws_of_any_examples_coincide(key, drawn):
    seeds = [
        tuple(view_seed(tf.constant(key), tf.constant(index, tf.int64), draw).numpy())
        for index, draw in drawn
    ]
    assert len(set(seeds)) == len(drawn)


@pytest.mark.parametrize('draw', [-1, MOST_DRAWS])
def test_draws_out_of_range_are_refused(draw):
    with pytest.raises(ValueError, match=f'Expected a draw from 0 to .*; found {draw}'):
        view_seed(tf.constant(5), tf.constant(0, tf.int64), draw)


def test_the_first_two_draws_have_the_seeds_they_always_had():
    for index, draw in itertools.product((0, 1, 7), (0, 1)):
        seed = view_seed(tf.constant(5), tf.constant(index, tf.int64), draw)
        assert seed.numpy().tolist() == [5, 2 * index + draw]
    # As many as there are: view 2 of an example once had the draws of the next one's view 0.
    third = view_seed(tf.constant(5), tf.constant(0, tf.int64), 2)
    assert third.numpy().tolist() != [5, 2]


def test_seeds_differ_between_runs_epochs_examples_and_views():
    keys = [epoch_key(run, tf.constant(epoch)) for run in (0, 1, -1) for epoch in range(5)]
    seeds = {
        tuple(view_seed(key, tf.constant(index, tf.int64), view).numpy())
        for key in keys
        for index in range(5)
        for view in (0, 1)
    }
    assert len(seeds) == 3 * 5 * 5 * 2
