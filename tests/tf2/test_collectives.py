"""What replicas get from each other, and the gradients of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import op_selector

from tests.support import mirrored, run_on_replicas
from tf2 import collectives


@pytest.mark.parametrize('replicas', [1, 2, 4])
def test_gather_gives_every_replica_all_rows_and_the_place_of_its_own(replicas: int) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(12, 2)
    shares = np.split(rows, replicas)
    results = run_on_replicas(
        mirrored(replicas),
        lambda local: [tf.convert_to_tensor(part) for part in collectives.all_gather(local)],
        shares,
    )
    for (gathered, offset), own in zip(results, shares, strict=True):
        np.testing.assert_array_equal(gathered, rows)
        np.testing.assert_array_equal(gathered[offset : offset + len(own)], own)


def test_gradients_flow_through_the_gather_to_every_replica() -> None:
    rng = np.random.default_rng(0)
    shares = rng.normal(size=(2, 3, 4)).astype(np.float32)
    weights = rng.normal(size=(2, 6, 4)).astype(np.float32)

    def gradient(local: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(local)
            gathered, _ = collectives.all_gather(local)
            loss = tf.reduce_sum(weight * gathered**2)
        return tape.gradient(loss, local)

    found = run_on_replicas(mirrored(2), gradient, shares, weights)
    for replica in range(2):
        for row in range(3):
            # The row takes part in the losses of both replicas.
            factor = sum(weights[loss][3 * replica + row] for loss in range(2))
            expected = 2 * shares[replica][row] * factor
            np.testing.assert_allclose(found[replica][row], expected, rtol=1e-5)


@pytest.mark.parametrize('replicas', [1, 2, 4])
@pytest.mark.parametrize('operation', [tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN])
def test_reductions_and_their_gradients_are_those_of_all_replicas(
    operation: tf.distribute.ReduceOp, replicas: int
) -> None:
    """Of several tensors at once, with second derivatives."""
    rng = np.random.default_rng(0)
    shares = rng.normal(size=(replicas, 3)).astype(np.float32)
    weights = rng.normal(size=(replicas, 3)).astype(np.float32)

    def results(local: tf.Tensor, weight: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as second:
            second.watch(local)
            with tf.GradientTape() as first:
                first.watch(local)
                total, square = collectives.all_reduce(operation, [local, local**2])
                loss = tf.reduce_sum(weight * (total + square))
            gradient = first.gradient(loss, local)
        return [total, square, gradient, second.gradient(gradient, local)]

    reduce = np.sum if operation == tf.distribute.ReduceOp.SUM else np.mean
    weight = reduce(weights, 0)
    for share, found in zip(
        shares, run_on_replicas(mirrored(replicas), results, shares, weights), strict=True
    ):
        expected = [reduce(shares, 0), reduce(shares**2, 0), weight * (1 + 2 * share), 2 * weight]
        for value, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'exchange',
    [collectives.mean_over_replicas, lambda local: collectives.all_gather(local)[0]],
    ids=['reduce', 'gather'],
)
def test_tracing_an_exchange_does_not_search_what_came_before_it(
    exchange: Callable[[tf.Tensor], tf.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow searches for the variables that a gradient depends on, each time."""
    found, search = [], op_selector.get_backward_walk_ops

    def noted(*args: object, **kwargs: object) -> list[tf.Operation]:
        found.append(len(search(*args, **kwargs)))
        return search(*args, **kwargs)

    monkeypatch.setattr(op_selector, 'get_backward_walk_ops', noted)

    def gradient(local: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(local)
            value = local
            for _ in range(50):
                value = tf.sin(value)
            loss = tf.reduce_sum(exchange(value) ** 2)
        return tape.gradient(loss, local)

    run_on_replicas(mirrored(2), gradient, np.ones([2, 3], np.float32))
    assert found and max(found) < 25
