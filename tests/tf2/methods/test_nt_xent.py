"""NT-Xent against golden figures and a slow reference, on one and on several replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import GOLDEN, mirrored, run_on_replicas
from tf2.config import LOGITS_AT_A_TIME
from tf2.methods.nt_xent import nt_xent

FIGURES = np.load(GOLDEN / 'ntxent.npz')


def slow_reference(
    hidden: np.ndarray,
    temperature: float,
    hidden_norm: bool = True,
    negatives: Sequence[np.ndarray] = (),
) -> float:
    """Equation 1, one view at a time, in float64. `hidden` is [2n, d], first views first.

    `negatives` [d] are compared with every view, as they are.
    """
    hidden = hidden.astype(np.float64)
    if hidden_norm:
        hidden = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    rows = len(hidden)
    losses = []
    for i in range(rows):
        partner = (i + rows // 2) % rows
        others = [np.dot(hidden[i], hidden[j]) / temperature for j in range(rows) if j != i]
        others += [np.dot(hidden[i], row.astype(np.float64)) / temperature for row in negatives]
        losses.append(
            np.logaddexp.reduce(others) - np.dot(hidden[i], hidden[partner]) / temperature
        )
    return 2 * float(np.mean(losses))


def loss_and_figures(hidden: tf.Tensor, temperature: float, **options: Any) -> dict:
    """Loss, metrics and gradient of the global loss, for a replica's `hidden` [2n, d]."""
    context = tf.distribute.get_replica_context()
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        contrast = nt_xent(*tf.split(hidden, 2), temperature, **options)
        share = contrast.loss / context.num_replicas_in_sync
    return {**contrast._asdict(), 'grad': tape.gradient(share, hidden)}


def metrics_of(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Accuracy and entropy of first views' `logits` [n, N] over second ones."""
    logits = logits.astype(np.float64)
    softmax = np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None])
    entropies = [-np.sum(row[row > 0] * np.log(row[row > 0])) for row in softmax]
    return float(np.mean(logits.argmax(1) == targets)), float(np.mean(entropies))


# Each case and each block in a graph too.
IN_GRAPH = [(0, True, LOGITS_AT_A_TIME), (1, True, 1), (2, True, 1), (3, True, LOGITS_AT_A_TIME)]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('case', 'graph', 'block'),
    [
        *((case, False, block) for case in range(4) for block in (LOGITS_AT_A_TIME, 1)),
        *IN_GRAPH,
    ],
)
def test_golden_on_one_replica(case: int, graph: bool, block: int) -> None:
    golden = {
        key: FIGURES[f'single{case}_{key}']
        for key in ('hidden', 'loss', 'grad', 'contrast_acc', 'contrast_entropy')
    }
    temperature = float(FIGURES[f'single{case}_temperature'])
    hidden_norm = bool(FIGURES[f'single{case}_hidden_norm'])

    def compute(hidden: tf.Tensor) -> dict:
        return loss_and_figures(hidden, temperature, hidden_norm=hidden_norm, block=block)

    compute = tf.function(compute, autograph=False) if graph else compute
    found = compute(tf.constant(golden['hidden']))
    np.testing.assert_allclose(found['loss'], golden['loss'], rtol=1e-5)
    np.testing.assert_allclose(found['grad'], golden['grad'], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found['accuracy'], golden['contrast_acc'])
    np.testing.assert_allclose(found['entropy'], golden['contrast_entropy'], rtol=1e-4)


@pytest.mark.parametrize('block', [LOGITS_AT_A_TIME, 1])
@pytest.mark.parametrize('replicas', [2, 4])
def test_golden_on_several_replicas(replicas: int, block: int) -> None:
    golden = [
        {
            key: FIGURES[f'replicas{replicas}_{r}_{key}']
            for key in ('hidden', 'loss', 'logits_ab', 'labels', 'grad_of_loss_over_replicas')
        }
        for r in range(replicas)
    ]
    temperature = float(FIGURES[f'replicas{replicas}_temperature'])
    found = run_on_replicas(
        mirrored(replicas),
        lambda hidden: loss_and_figures(hidden, temperature, block=block),
        [figures['hidden'] for figures in golden],
    )
    for mine, theirs in zip(found, golden, strict=True):
        np.testing.assert_allclose(mine['loss'], theirs['loss'], rtol=1e-5)
        np.testing.assert_allclose(
            mine['grad'], theirs['grad_of_loss_over_replicas'], rtol=1e-3, atol=1e-6
        )
        accuracy, entropy = metrics_of(theirs['logits_ab'], theirs['labels'].argmax(1))
        np.testing.assert_allclose(mine['accuracy'], accuracy, rtol=1e-6)
        np.testing.assert_allclose(mine['entropy'], entropy, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 9),
    width=st.integers(1, 20),
    temperature=st.sampled_from([0.05, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_equals_the_slow_reference(images: int, width: int, temperature: float, seed: int) -> None:
    hidden = np.random.default_rng(seed).normal(size=(2 * images, width)).astype(np.float32)
    found = loss_and_figures(tf.constant(hidden), temperature)['loss']
    np.testing.assert_allclose(found, slow_reference(hidden, temperature), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('replicas', [2, 4])
def test_replicas_share_one_global_loss_and_gradient(replicas: int) -> None:
    rng = np.random.default_rng(replicas)
    view_a, view_b = rng.normal(size=(2, 8, 6)).astype(np.float32)
    whole = loss_and_figures(tf.constant(np.concatenate([view_a, view_b])), 0.3)
    shares = [
        np.concatenate(pair)
        for pair in zip(np.split(view_a, replicas), np.split(view_b, replicas), strict=True)
    ]
    parts = run_on_replicas(mirrored(replicas), lambda h: loss_and_figures(h, 0.3), shares)
    np.testing.assert_allclose(np.mean([part['loss'] for part in parts]), whole['loss'], rtol=1e-5)
    gradient_a, gradient_b = (
        np.concatenate([np.split(part['grad'], 2)[view] for part in parts]) for view in (0, 1)
    )
    np.testing.assert_allclose(
        np.concatenate([gradient_a, gradient_b]), whole['grad'], rtol=1e-4, atol=1e-6
    )


def test_extreme_projections_stay_finite() -> None:
    hidden = tf.constant(np.repeat([[1e4, -1e4]], 8, 0).astype(np.float32))
    found = loss_and_figures(hidden, 0.01)
    assert np.isfinite(found['loss']) and np.isfinite(found['grad']).all()


# --- with further negatives


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 6),
    width=st.integers(1, 12),
    fill=st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda pair: (max(pair), pair[1])),
    temperature=st.sampled_from([0.05, 0.3, 1.0]),
    hidden_norm=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_filled_negatives_count_as_in_the_slow_reference(
    images: int,
    width: int,
    fill: tuple[int, int],
    temperature: float,
    hidden_norm: bool,
    seed: int,
) -> None:
    size, filled = fill
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(2 * images, width)).astype(np.float32)
    # What is not filled would dominate the loss if it counted.
    negatives = np.full([size, width], 1e3, np.float32)
    negatives[:filled] = rng.normal(size=(filled, width))
    found = nt_xent(
        *tf.split(tf.constant(hidden), 2),
        temperature,
        hidden_norm=hidden_norm,
        negatives=tf.constant(negatives),
        filled=filled,
    ).loss
    expected = slow_reference(hidden, temperature, hidden_norm, negatives[:filled])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    if filled == size:
        every = nt_xent(
            *tf.split(hidden, 2), temperature, hidden_norm=hidden_norm, negatives=negatives
        )
        np.testing.assert_array_equal(every.loss, found)


def test_no_negatives_yet_give_the_plain_loss_and_gradient() -> None:
    hidden = tf.constant(np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32))
    plain = loss_and_figures(hidden, 0.1)
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        loss = nt_xent(*tf.split(hidden, 2), 0.1, negatives=tf.ones([6, 5]), filled=0).loss
    np.testing.assert_array_equal(loss, plain['loss'])
    np.testing.assert_array_equal(tape.gradient(loss, hidden), plain['grad'])


@pytest.mark.parametrize('filled', [0, 3, 5])
def test_gradients_are_those_of_one_softmax_over_everything(filled: int) -> None:
    rng = np.random.default_rng(filled)
    hidden = tf.constant(rng.normal(size=(8, 6)), tf.float32)
    negatives = tf.constant(rng.normal(size=(5, 6)), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([hidden, negatives])
        loss = nt_xent(*tf.split(hidden, 2), 0.2, negatives=negatives, filled=filled).loss
        unit = tf.math.l2_normalize(hidden, -1)
        columns = tf.concat([unit, negatives[:filled]], 0)
        own = tf.eye(8, 8 + filled) > 0
        logits = tf.where(own, -1e9, tf.matmul(unit, columns, transpose_b=True) / 0.2)
        partners = tf.roll(tf.range(8), 4, 0)
        whole = 2 * tf.nn.sparse_softmax_cross_entropy_with_logits(partners, logits)
        whole = tf.reduce_mean(whole)
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    expected = tape.gradient(whole, hidden)
    np.testing.assert_allclose(tape.gradient(loss, hidden), expected, rtol=1e-4, atol=1e-6)
    assert tape.gradient(loss, negatives) is None


def test_replicas_share_one_loss_with_negatives() -> None:
    rng = np.random.default_rng(5)
    view_a, view_b = rng.normal(size=(2, 8, 6)).astype(np.float32)
    negatives = rng.normal(size=(7, 6)).astype(np.float32)

    def loss(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        return nt_xent(first, second, 0.3, negatives=tf.constant(negatives), filled=4).loss

    parts = run_on_replicas(mirrored(2), loss, np.split(view_a, 2), np.split(view_b, 2))
    expected = slow_reference(np.concatenate([view_a, view_b]), 0.3, True, negatives[:4])
    np.testing.assert_allclose(np.mean(parts), expected, rtol=1e-5)


# --- in blocks


def slow_gradient(
    hidden: np.ndarray, temperature: float, hidden_norm: bool, negatives: np.ndarray
) -> tf.Tensor:
    """Of `slow_reference`, by one softmax over everything, in float64."""
    hidden, negatives = (tf.constant(values, tf.float64) for values in (hidden, negatives))
    rows = len(hidden)
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        views = tf.math.l2_normalize(hidden, -1) if hidden_norm else hidden
        logits = tf.matmul(views, tf.concat([views, negatives], 0), transpose_b=True) / temperature
        logits = tf.where(tf.eye(rows, len(views) + len(negatives)) > 0, -1e9, logits)
        partners = tf.roll(tf.range(rows), rows // 2, 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(partners, logits)
        loss = 2 * tf.reduce_mean(losses)
    return tape.gradient(loss, hidden)


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 11),
    width=st.integers(1, 12),
    rows=st.integers(0, 12),
    filled=st.integers(0, 4),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    hidden_norm=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_blocks_of_any_size_give_the_slow_loss_and_gradient(**case: Any) -> None:
    check_blocks(**case)


@pytest.mark.parametrize(
    ('images', 'rows', 'filled', 'hidden_norm'),
    [(7, 3, 2, True), (6, 2, 0, False), (5, 0, 4, False), (4, 9, 3, True)],
)
def test_blocks_give_the_slow_loss_and_gradient_in_a_graph(
    images: int, rows: int, filled: int, hidden_norm: bool
) -> None:
    check_blocks(images, 5, rows, filled, 0.1, hidden_norm, seed=images, graph=True)


def check_blocks(
    images: int,
    width: int,
    rows: int,
    filled: int,
    temperature: float,
    hidden_norm: bool,
    seed: int,
    *,
    graph: bool = False,
) -> None:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(2 * images, width)).astype(np.float32)
    memory = {}
    negatives = np.full([4, width], 1e3, np.float32)
    negatives[:filled] = rng.normal(size=(filled, width))
    if filled:
        memory = {'negatives': tf.constant(negatives), 'filled': filled}
    # As many logits as `rows` images have; 0 asks for less than one has.
    block = rows * 2 * (2 * images + (4 if filled else 0))

    def compute(hidden: tf.Tensor) -> dict:
        options = {'hidden_norm': hidden_norm, 'block': block, **memory}
        return loss_and_figures(hidden, temperature, **options)

    found = (tf.function(compute, autograph=False) if graph else compute)(tf.constant(hidden))
    expected = slow_reference(hidden, temperature, hidden_norm, negatives[:filled])
    np.testing.assert_allclose(found['loss'], expected, rtol=1e-4, atol=1e-4)
    gradient = slow_gradient(hidden, temperature, hidden_norm, negatives[:filled])
    # Rounding is that of the views, over the temperature; short ones are scaled up.
    lengths = np.linalg.norm(hidden, axis=1)
    scale = (1 / lengths.min() if hidden_norm else lengths.max()) / temperature
    np.testing.assert_allclose(found['grad'], gradient, rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize('replicas', [1, 2])
def test_blocks_give_what_one_block_gives(replicas: int) -> None:
    rng = np.random.default_rng(replicas)
    shares = rng.normal(size=(replicas, 2 * 7, 6)).astype(np.float32)
    negatives = tf.constant(rng.normal(size=(5, 6)), tf.float32)
    columns = 2 * 7 * replicas + 5

    def figures(rows: int) -> list[dict]:
        options = {'negatives': negatives, 'filled': 3, 'block': 2 * rows * columns}
        return run_on_replicas(
            mirrored(replicas), lambda hidden: loss_and_figures(hidden, 0.1, **options), shares
        )

    whole = figures(7)
    for rows in (3, 1):  # 3 + 3 + 1 rows, and one by one
        for mine, theirs in zip(figures(rows), whole, strict=True):
            for name, figure in mine.items():
                np.testing.assert_allclose(figure, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('block', [LOGITS_AT_A_TIME, 200])
def test_the_number_of_rows_may_be_dynamic(block: int) -> None:
    # So it is where several workers share a batch.
    @tf.function(input_signature=2 * [tf.TensorSpec([None, 5])], autograph=False)
    def compute(view_a: tf.Tensor, view_b: tf.Tensor) -> dict:
        return loss_and_figures(tf.concat([view_a, view_b], 0), 0.1, block=block)

    views = tf.constant(np.random.default_rng(2).normal(size=(2, 9, 5)), tf.float32)
    expected = loss_and_figures(tf.concat(tf.unstack(views), 0), 0.1)
    for name, figure in compute(*tf.unstack(views)).items():
        np.testing.assert_allclose(figure, expected[name], rtol=1e-5, atol=1e-6)


def loops_in(function: Any) -> set[str]:
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return {node.op for node in nodes if 'While' in node.op}


@pytest.mark.parametrize(('block', 'looped'), [(4 * 32 * 32, False), (4 * 32 * 32 - 1, True)])
def test_what_fits_into_a_block_needs_no_loop(block: int, looped: bool) -> None:
    function = tf.function(
        lambda hidden: loss_and_figures(hidden, 0.1, block=block), autograph=False
    )
    concrete = function.get_concrete_function(tf.TensorSpec([64, 4]))
    assert bool(loops_in(concrete)) == looped


def largest_tensor(graph: tf.Graph) -> int:
    """Elements of the largest result of an operation in `graph`, not in the functions it calls."""
    return max(
        tensor.shape.num_elements() or 0
        for operation in graph.get_operations()
        for tensor in operation.outputs
    )


def test_no_matrix_of_logits_is_kept() -> None:
    images, width = 64, 4
    function = tf.function(
        lambda hidden: loss_and_figures(hidden, 0.1, block=4 * images * 8), autograph=False
    )
    concrete = function.get_concrete_function(tf.TensorSpec([2 * images, width]))
    # Both views at most, or the logits of a block.
    assert largest_tensor(concrete.graph) <= 2 * images * max(width, 8)


def test_accuracy_and_entropy_are_those_of_first_views_to_second_ones() -> None:
    rng = np.random.default_rng(3)
    view_a = rng.normal(size=(40, 8)).astype(np.float32)
    view_b = (view_a + rng.normal(size=(40, 8))).astype(np.float32)
    found = nt_xent(tf.constant(view_a), tf.constant(view_b), 0.2, hidden_norm=False, block=1)
    logits = view_a.astype(np.float64) @ view_b.T.astype(np.float64) / 0.2
    accuracy, entropy = metrics_of(logits, np.arange(40))
    assert 0 < accuracy < 1
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=1e-6)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-3, atol=1e-4)


def test_equal_projections_are_no_hits() -> None:
    found = nt_xent(tf.ones([8, 3]), tf.ones([8, 3]), 0.1)
    np.testing.assert_allclose(found.accuracy, 1 / 8)  # the first of all that are as near
    np.testing.assert_allclose(found.entropy, np.log(8), rtol=1e-5)


def test_the_gradient_follows_what_comes_after_the_loss() -> None:
    hidden = tf.constant(np.random.default_rng(1).normal(size=(10, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        loss = nt_xent(*tf.split(hidden, 2), 0.1).loss
        cube = loss**3
    expected = 3 * loss**2 * loss_and_figures(hidden, 0.1)['grad']
    np.testing.assert_allclose(tape.gradient(cube, hidden), expected, rtol=1e-4)
