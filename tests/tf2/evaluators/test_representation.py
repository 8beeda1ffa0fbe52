"""Alignment, uniformity and effective rank against slow references and known cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import mirrored
from tf2.evaluators import alignment, uniformity
from tf2.evaluators.alignment import Alignment
from tf2.evaluators.base import Batch, Inputs, some_rows
from tf2.evaluators.rank import EffectiveRank, effective_rank
from tf2.evaluators.uniformity import Uniformity


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[n, d]).astype(np.float32)


def unit(row: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def squared_distance(first: Sequence[float], second: Sequence[float]) -> float:
    pairs = zip(unit(first.tolist()), unit(second.tolist()), strict=True)
    return sum((a - b) ** 2 for a, b in pairs)


# --- alignment


def test_alignment_is_the_mean_squared_distance_on_the_sphere() -> None:
    first, second = rows(30, 5), 7 * rows(30, 5, seed=1)
    slow = [squared_distance(*pair) for pair in zip(first, second)]
    assert alignment.alignment(first, second) == pytest.approx(np.mean(slow))


def test_alignment_of_known_cases() -> None:
    views = rows(20, 4)
    assert alignment.alignment(views, 3 * views) == pytest.approx(0, abs=1e-12)
    assert alignment.alignment(views, -views) == pytest.approx(4)
    ones = np.eye(4)
    assert alignment.alignment(ones, np.roll(ones, 1, axis=1)) == pytest.approx(2)


# --- uniformity


@pytest.mark.parametrize('at_a_time', [7, 512])
def test_uniformity_is_that_of_all_pairs(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uniformity, '_ROWS_AT_A_TIME', at_a_time)
    points = rows(40, 5)
    pairs = itertools.combinations(points, 2)
    slow = math.log(np.mean([math.exp(-2 * squared_distance(*pair)) for pair in pairs]))
    assert uniformity.uniformity(points) == pytest.approx(slow)


def test_uniformity_of_known_cases() -> None:
    assert uniformity.uniformity(np.ones([9, 3])) == pytest.approx(0, abs=1e-12)
    assert uniformity.uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    # Evenly over a sphere in three dimensions the squared distance is even over [0, 4].
    expected = math.log((1 - math.exp(-8)) / 8)
    assert uniformity.uniformity(rows(4000, 3)) == pytest.approx(expected, abs=0.02)
    # Of many dimensions nearly all are at right angles.
    assert uniformity.uniformity(rows(300, 2000)) == pytest.approx(-4, abs=0.02)


# --- effective rank


def test_effective_rank_is_the_exponential_of_the_entropy() -> None:
    matrix = rows(30, 5).astype(np.float64)
    values = np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix))
    shares = [value / sum(values) for value in values]
    entropy = -sum(share * math.log(share) for share in shares)
    assert effective_rank(matrix) == pytest.approx(math.exp(entropy))


def test_effective_rank_of_known_cases() -> None:
    collapsed = np.outer(np.arange(1, 21), [1.0, 2, 3])
    assert effective_rank(collapsed) == pytest.approx(1)
    orthogonal, _ = np.linalg.qr(rows(50, 8))
    assert effective_rank(orthogonal) == pytest.approx(8)
    assert effective_rank(5 * orthogonal[:, :3] @ rows(3, 3)) < 3
    # Evenly over the sphere: all directions alike.
    even = rows(4000, 16)
    even /= np.linalg.norm(even, axis=1, keepdims=True)
    assert effective_rank(even) == pytest.approx(16, rel=0.01)
    assert effective_rank(np.zeros([4, 3])) == 0
    assert math.isnan(effective_rank(np.array([[1.0, math.nan]])))


# --- evaluators


def inputs(strategy: tf.distribute.Strategy, points: np.ndarray, others: np.ndarray) -> Inputs:
    """'Images' are embeddings; the last four rows are padding."""
    mask = np.arange(len(points)) < len(points) - 4
    labels = np.full([len(points)], -1, np.int32)  # none of these needs one

    def batches(*views: np.ndarray) -> Batch:
        parts = {'views': views, 'label': labels, 'mask': mask}
        dataset = tf.data.Dataset.from_tensor_slices(parts).batch(8)
        return strategy.experimental_distribute_dataset(dataset)

    return Inputs(
        lambda: batches(points),
        0,
        embed=tf.identity,
        pairs=lambda: batches(points, others),
    )


@pytest.mark.parametrize('replicas', [1, 2])
def test_evaluators_leave_out_padding(replicas: int) -> None:
    points, others = rows(24, 6), rows(24, 6, seed=1)
    strategy = mirrored(replicas)
    given = inputs(strategy, points, others)
    with strategy.scope():
        found = dict(
            pair for kind in (Alignment, Uniformity, EffectiveRank) for pair in kind(given).run()
        )
    shown = points[:20]
    assert found == {
        'eval/alignment': pytest.approx(alignment.alignment(shown, others[:20])),
        'eval/uniformity': pytest.approx(uniformity.uniformity(shown)),
        'eval/effective_rank': pytest.approx(effective_rank(shown)),
    }


def test_alignment_looks_at_a_bounded_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, 'MOST_ROWS', 11)
    points, others = rows(24, 6), rows(24, 6, seed=1)
    ((_, found),) = Alignment(inputs(mirrored(1), points, others)).run()
    assert found == pytest.approx(alignment.alignment(points[:11], others[:11]))


def test_some_rows_are_drawn_once_and_for_all() -> None:
    points = np.arange(100)
    drawn = some_rows(points, 30)
    assert len(set(drawn.tolist())) == 30 and drawn.tolist() == sorted(drawn)
    np.testing.assert_array_equal(drawn, some_rows(points, 30))
    assert some_rows(points, 100) is points


def test_too_few_images_are_an_error() -> None:
    few = inputs(mirrored(1), rows(5, 3), rows(5, 3))
    with pytest.raises(UserError, match='needs two images to evaluate; found 1'):
        Uniformity(few).run()
    none = inputs(mirrored(1), rows(4, 3), rows(4, 3))
    with pytest.raises(UserError, match='needs an image to evaluate; found none'):
        Alignment(none).run()
