"""SwAV against golden figures: Sinkhorn, loss, gradients, queue, trajectories; what moves."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored, on_replicas, relative_error, run_on_replicas
from tests.tf2.methods import golden_steps
from tests.tf2.methods.golden_steps import INPUTS, STEPS, assign, compare, golden, losses_of
from tests.tf2.test_compiled_step import check
from tf2.config import LearningConfig, ModelConfig, OptimizerConfig, TrainConfig
from tf2.methods.swav import SwAV, sinkhorn, swapped_loss
from tf2.optimizers import builder, decay
from tf2.trainer import Penalty, Trainer

FIGURES, TRAJECTORY, REPLICAS = golden('swav'), golden('traj_swav'), golden('mocov3_replicas')
BATCH, WIDTH = int(FIGURES['B']), int(FIGURES['D'])
EPSILON, ITERATIONS = float(FIGURES['epsilon']), int(FIGURES['iters'])
MODEL = ModelConfig(num_proj_layers=1, proj_out_dim=int(TRAJECTORY['D']))


@pytest.fixture(autouse=True, scope='module')
def small_networks() -> Iterator[None]:
    with golden_steps.dense_encoder(10, last_relu=True):
        yield


def floats(values: np.ndarray) -> tf.Tensor:
    return tf.constant(values, tf.float32)


# --- assignments and loss


@pytest.mark.smoke
@pytest.mark.parametrize('graph', [False, True])
def test_sinkhorn_is_golden_at_every_size(graph: bool) -> None:
    for number in range(1, int(FIGURES['n_sinkhorn']) + 1):
        scores = floats(FIGURES[f'sk_scores{number}'])
        assign_rows = tf.function(sinkhorn) if graph else sinkhorn
        found = assign_rows(scores, EPSILON, ITERATIONS)
        np.testing.assert_allclose(found, FIGURES[f'sk_out{number}'], rtol=1e-5, atol=1e-6)


def test_sinkhorn_on_two_replicas_is_golden() -> None:
    shares = np.split(REPLICAS['two_sk_scores'].astype(np.float32), 2)
    found = run_on_replicas(mirrored(2), lambda rows: sinkhorn(rows, EPSILON, ITERATIONS), shares)
    np.testing.assert_allclose(np.concatenate(found), REPLICAS['two_sk_out'], rtol=1e-5, atol=1e-6)


def test_samples_that_do_not_count_change_nothing() -> None:
    scores = FIGURES['sk_scores2'].astype(np.float32)
    counted = tf.constant([1.0, 0, 1, 1, 0])
    found = sinkhorn(scores, EPSILON, ITERATIONS, counted).numpy()
    np.testing.assert_array_equal(found[[1, 4]], 0)
    alone = sinkhorn(scores[[0, 2, 3]], EPSILON, ITERATIONS)
    np.testing.assert_allclose(found[[0, 2, 3]], alone, rtol=1e-6)


def test_a_small_epsilon_stays_finite() -> None:
    shares = sinkhorn(tf.constant([[1.0, -1.0, 0.3], [1.0, 0.9, -1.0]]), 0.02, ITERATIONS)
    np.testing.assert_allclose(tf.reduce_sum(shares, -1), [1, 1], rtol=1e-6)


def loss_and_gradients(embedded: tf.Tensor, prototypes: tf.Tensor) -> tuple[Any, ...]:
    """Loss and gradients by projections [v, b, d] and unit prototypes [k, d]; assignments."""
    with tf.GradientTape() as tape:
        tape.watch([embedded, prototypes])
        units = tf.math.l2_normalize(embedded, -1)
        scores = tf.einsum('vbd,kd->vbk', units, prototypes)
        assigned = sinkhorn(scores[:2], EPSILON, ITERATIONS)
        loss = swapped_loss(tf.unstack(scores), tf.unstack(assigned), 0.1)
    return loss, assigned, *tape.gradient(loss, [embedded, prototypes])


@pytest.mark.smoke
@pytest.mark.parametrize('graph', [False, True])
def test_loss_and_gradients_are_golden(graph: bool) -> None:
    compute = tf.function(loss_and_gradients) if graph else loss_and_gradients
    prototypes = tf.math.l2_normalize(floats(FIGURES['proto_raw']), -1)
    np.testing.assert_allclose(prototypes, FIGURES['proto_norm'], rtol=1e-5, atol=1e-6)
    loss, assigned, *gradients = compute(floats(FIGURES['emb_raw']), prototypes)
    np.testing.assert_allclose(loss, FIGURES['loss'], rtol=1e-5)
    np.testing.assert_allclose(assigned, [FIGURES['q0'], FIGURES['q1']], rtol=1e-5, atol=1e-6)
    for name, gradient in zip(('g_emb', 'g_proto'), gradients, strict=True):
        assert relative_error(gradient, FIGURES[name]) < 1e-5, name


def test_assignments_get_no_gradient() -> None:
    scores = floats(FIGURES['sk_scores1'])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(scores)
        shares = sinkhorn(scores, EPSILON, ITERATIONS)
        loss = swapped_loss([tf.zeros_like(scores)] * 2, [scores], 0.1)
    assert tape.gradient(shares, scores) is None and tape.gradient(loss, scores) is None


# --- the queue


def method_with_queue() -> SwAV:
    learning = LearningConfig(
        method='swav',
        prototypes=int(FIGURES['K']),
        queue_size=int(FIGURES['L']),
        queue_start_epoch=0.0,
    )
    method = golden_steps.method_of(
        'swav', ModelConfig(num_proj_layers=1, proj_out_dim=16), learning
    )
    method.prototypes.kernel.assign(FIGURES['proto_raw'].T)
    method.initialize()
    return method


def check_queue(rows: np.ndarray, expected: np.ndarray, step: int) -> None:
    """Compares a ring of batches with the published queue, whose newest batch comes first."""
    blocks = int(FIGURES['L']) // BATCH
    for age in range(min(step, blocks)):
        place = (step - 1 - age) % blocks
        found = np.split(rows[place * BATCH : (place + 1) * BATCH], 2, axis=-1)
        wanted = expected[:, age * BATCH : (age + 1) * BATCH]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('replicas', 'graph'), [(1, False), (1, True), (2, True)])
def test_the_queue_and_what_it_changes_are_golden(replicas: int, graph: bool) -> None:
    strategy = mirrored(replicas)
    with strategy.scope():
        method = method_with_queue()

    def step(embedded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(embedded)
            units = tuple(tf.unstack(tf.math.l2_normalize(embedded, -1)))
            batch = {'label': tf.fill([embedded.shape[1]], -1)}
            outputs = {'projections': units}
            loss = method.loss(outputs, None, batch)['loss']
            share = loss / replicas
        method.after_update(outputs, None, batch, tf.constant(0, tf.int64))
        return loss, tape.gradient(share, embedded)

    run = on_replicas(strategy, step) if graph else lambda shares: [step(tf.constant(shares[0]))]
    for number in range(1, 6):
        embedded = FIGURES[f'qu_emb{number}'].astype(np.float32)
        found = run(np.split(embedded, replicas, axis=1))
        loss = np.mean([result[0] for result in found])
        np.testing.assert_allclose(loss, FIGURES[f'qu_loss{number}'], rtol=1e-5)
        gradient = np.concatenate([result[1] for result in found], axis=1)
        assert relative_error(gradient, FIGURES[f'qu_gemb{number}']) < 2e-5
        for rows in strategy.experimental_local_results(method.queue.rows):
            check_queue(rows.numpy(), FIGURES[f'qu_queue{number}'], number)


def test_the_queue_is_used_from_its_epoch_on() -> None:
    method = method_with_queue()
    method.config = LearningConfig(
        method='swav', prototypes=12, queue_size=24, queue_start_epoch=2.0
    )
    method.epoch = lambda step: tf.cast(step, tf.float32) / 2
    outputs = {'projections': (tf.ones([24, WIDTH]), tf.ones([24, WIDTH]))}
    used = []
    for step in range(5):
        method.after_update(outputs, None, {}, tf.constant(step, tf.int64))
        used.append(float(method.uses_queue))
    assert used == [0, 0, 0, 1, 1]


# --- training


def batches() -> list[dict[str, Any]]:
    """The golden file's batches of six views."""
    views = [TRAJECTORY[f'x_{step}'].astype(np.float32) for step in range(STEPS)]
    return [
        {
            'views': tuple(view.reshape(-1, *INPUTS) for view in step),
            'label': np.full(step.shape[1], -1, np.int32),
        }
        for step in views
    ]


def keys_of(method: SwAV) -> dict[str, tf.Variable]:
    """Golden keys of all trained variables but the prototypes."""
    ((first,),) = method.model.backbone.blocks
    (last,) = method.model.projection_head.blocks
    layers = {'enc_l1': first, 'enc_fc': last.dense}
    kernels = {f'{name}_weight': layer.kernel for name, layer in layers.items()}
    return kernels | {f'{name}_bias': layer.bias for name, layer in layers.items()}


def make(kind: str, replicas: int = 1) -> tuple[SwAV, builder.Optimizer, Penalty]:
    learning = LearningConfig(
        method='swav',
        prototypes=int(TRAJECTORY['K']),
        freeze_prototypes_epochs=float(TRAJECTORY['freeze_iters']),
        queue_size=int(TRAJECTORY['L']) if kind == 'q' else 0,
        queue_start_epoch=0.0,
    )
    method = golden_steps.method_of('swav', MODEL, learning, replicas)
    method.epoch = lambda step: tf.cast(step, tf.float32)  # an epoch is one step
    everything = keys_of(method) | {'prototypes_weight': method.prototypes.kernel}
    assign(everything, TRAJECTORY, 'w0_')
    method.initialize()
    momentum, rate = float(TRAJECTORY['momentum']), float(TRAJECTORY['lr'])
    optimizer = builder.build(OptimizerConfig(optimizer='sgd', momentum=momentum), rate, [])
    decayed = decay.everything(method.trained())
    return method, optimizer, Penalty(float(TRAJECTORY['weight_decay']), decayed)


def unit_columns(kernel: np.ndarray) -> np.ndarray:
    return kernel / np.linalg.norm(kernel, axis=0)


@pytest.mark.parametrize(
    ('kind', 'replicas', 'eager'),
    [('noq', 1, True), ('noq', 2, False), ('q', 1, False), ('q', 1, True), ('q', 2, False)],
)
def test_trajectories_are_golden(kind: str, replicas: int, eager: bool) -> None:
    method, metrics = losses_of(
        lambda: make(kind, replicas), batches(), replicas=replicas, eager=eager
    )
    losses = [step['assignment_loss'] for step in metrics]
    np.testing.assert_allclose(losses, TRAJECTORY[f'{kind}_loss'], rtol=5e-4)
    compare(keys_of(method), TRAJECTORY, f'{kind}_w{STEPS}_')
    # The published program scales prototypes at the start of the next step, to the same values.
    prototypes = unit_columns(TRAJECTORY[f'{kind}_w{STEPS}_prototypes_weight'])
    np.testing.assert_allclose(method.prototypes.kernel, prototypes, rtol=5e-4, atol=5e-4)
    if kind == 'q':  # of two batches, the fifth one is the first again
        rows = method.queue.rows.numpy()
        newest, older = np.split(TRAJECTORY['q_queue5'], 2, axis=1)
        expected = np.concatenate([np.concatenate(part, -1) for part in (newest, older)])
        np.testing.assert_allclose(rows, expected, rtol=5e-4, atol=5e-4)


def test_the_optimizer_moves_the_network_at_once_and_the_prototypes_later() -> None:
    method, _ = losses_of(lambda: make('q'), batches()[:2])
    wanted = [*keys_of(method).values(), method.prototypes.kernel]
    assert {v.ref() for v in method.trainable_variables} == {v.ref() for v in wanted}
    for key, variable in keys_of(method).items():
        assert (variable.numpy() != TRAJECTORY[f'w0_{key}'].astype(np.float32)).any(), key
    start = unit_columns(TRAJECTORY['w0_prototypes_weight'])
    np.testing.assert_allclose(method.prototypes.kernel, start, atol=1e-6)
    method, _ = losses_of(lambda: make('q'), batches()[:3])
    assert np.abs(method.prototypes.kernel - start).max() > 1e-3
    lengths = np.linalg.norm(method.prototypes.kernel.numpy(), axis=0)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_the_queue_gets_no_gradient_and_the_loss_changes_nothing() -> None:
    method, *_ = make('q')
    method.queue.rows.assign(tf.random.stateless_normal([16, 10], [0, 0]))
    method.uses_queue.assign(1.0)
    before = [variable.numpy() for variable in method.variables]
    batch = tf.nest.map_structure(tf.constant, batches()[0])
    with tf.GradientTape() as tape:
        tape.watch([method.queue.rows, method.uses_queue])
        terms = method.loss(method.forward(batch['views'], True), None, batch)
    variables = [method.queue.rows, method.uses_queue, *method.trainable_variables]
    gradients = tape.gradient(terms['loss'], variables)
    assert gradients[:2] == [None, None] and None not in gradients[2:]
    for variable, value in zip(method.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_checkpoint_resumes_exactly(tmp_path: pathlib.Path) -> None:
    golden_steps.check_resuming(lambda: make('q'), batches(), tmp_path)


def test_a_step_compiles_with_static_shapes() -> None:
    method, optimizer, penalty = make('q')
    method.queue.enqueued.assign(16)
    method.uses_queue.assign(1.0)
    trainer = Trainer(method, optimizer, penalty, TrainConfig())
    batch = tf.nest.map_structure(tf.constant, batches()[0])
    expected = method.loss(method.forward(batch['views'], True), None, batch)['loss']
    metrics = dict(zip(trainer.metrics, check(trainer.replica_step, batch)))
    np.testing.assert_allclose(metrics['assignment_loss'], expected, rtol=1e-5)
