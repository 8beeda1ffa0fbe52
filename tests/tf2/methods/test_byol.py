"""BYOL against golden figures: loss, gradients, schedule, trajectories; what moves and how."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored, run_on_replicas
from tests.tf2.methods import golden_steps
from tests.tf2.methods.golden_steps import STEPS, assign, batches_of, compare, golden, losses_of
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.byol import BYOL, byol_loss, target_decay
from tf2.models.encoder import SimCLRModel
from tf2.models.mlp import MLP
from tf2.optimizers.decay import decayed_kernels
from tf2.optimizers.lars import Lars
from tf2.schedules import WarmupCosine
from tf2.trainer import Penalty

LOSS, TRAJECTORY = golden('byol'), golden('traj_byol')
MODEL = ModelConfig(num_proj_layers=2, proj_hidden_dim=14, proj_out_dim=5)
BASE = float(TRAJECTORY['base_tau'])
LEARNING = LearningConfig(method='byol', predictor_hidden_dim=14, target_decay=BASE)


@pytest.fixture(autouse=True)
def small_networks() -> Iterator[None]:
    with golden_steps.dense_encoder(10, 8, last_relu=False):
        yield


def float32(name: str) -> tf.Tensor:
    return tf.constant(LOSS[name], tf.float32)


# --- the loss


def loss_and_gradients(*predictions: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    targets = float32('z1'), float32('z2')
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([*predictions, *targets])
        loss = byol_loss(predictions, targets)
    assert tape.gradient(loss, [*targets]) == [None, None]
    return loss, tape.gradient(loss, [*predictions])


@pytest.mark.smoke
@pytest.mark.parametrize('graph', [False, True])
def test_loss_and_gradients_are_golden(graph: bool) -> None:
    compute = tf.function(loss_and_gradients, autograph=False) if graph else loss_and_gradients
    loss, gradients = compute(float32('p1'), float32('p2'))
    np.testing.assert_allclose(loss, LOSS['loss'], rtol=1e-5)
    for name, gradient in zip(('gp1', 'gp2'), gradients, strict=True):
        np.testing.assert_allclose(gradient, LOSS[name], rtol=1e-5, atol=1e-6)


def test_the_mean_over_replicas_is_the_loss_of_the_batch() -> None:
    rows = [LOSS[name][:6].astype(np.float32) for name in ('p1', 'p2', 'z1', 'z2')]
    shares = [np.split(row, 2) for row in rows]

    def loss(p1: tf.Tensor, p2: tf.Tensor, z1: tf.Tensor, z2: tf.Tensor) -> tf.Tensor:
        return byol_loss((p1, p2), (z1, z2))

    found = run_on_replicas(mirrored(2), loss, *shares)
    np.testing.assert_allclose(np.mean(found), LOSS['per_sample'][:6].mean(), rtol=1e-5)


def test_the_decay_is_golden() -> None:
    base, longest = float(LOSS['sched_base_tau']), float(LOSS['sched_max'])
    schedule = WarmupCosine(1.0, 0, int(longest))
    for step, expected in zip(LOSS['sched_steps'], LOSS['sched_tau'], strict=True):
        decay = target_decay(base, schedule.progress(tf.constant(step, tf.int64)))
        np.testing.assert_allclose(decay, expected, rtol=1e-6)


def test_the_decay_continues_where_examples_were_seen() -> None:
    """After the batch size was changed, the position is the number of examples."""
    schedule = WarmupCosine(1.0, 0, 20, ahead=5)
    assert float(schedule.progress(5)) == 0.5
    assert float(schedule.progress(100)) == 1.0


# --- training


def mlp_keys(name: str, network: MLP) -> dict[str, tf.Variable]:
    first, second = network.blocks
    return {
        f'{name}_linear_1_w': first.dense.kernel,
        f'{name}_linear_1_b': first.dense.bias,
        f'{name}_batch_norm_scale': first.bn.gamma,
        f'{name}_batch_norm_offset': first.bn.beta,
        f'{name}_linear_2_w': second.dense.kernel,
    }


def keys_of(model: SimCLRModel) -> dict[str, tf.Variable]:
    layers = {
        f'enc_linear_{number}_{kind}': variable
        for number, (layer,) in enumerate(model.backbone.blocks, 1)
        for kind, variable in (('w', layer.kernel), ('b', layer.bias))
    }
    return layers | mlp_keys('projector', model.projection_head)


def make(kind: str, replicas: int = 1) -> tuple[BYOL, tf.keras.optimizers.Optimizer, Penalty]:
    steps = int(TRAJECTORY['max_steps'])
    method = golden_steps.method_of('byol', MODEL, LEARNING, replicas)
    online = keys_of(method.model) | mlp_keys('predictor', method.predictor)
    assign(online, TRAJECTORY, 'on0_')
    assign(keys_of(method.target), TRAJECTORY, 'ta0_')  # it has a start of its own
    method.progress = WarmupCosine(1.0, 0, steps).progress
    if kind == 'sgd':
        rate = float(TRAJECTORY['sgd_lr'][0])
        return method, tf.keras.optimizers.SGD(rate, jit_compile=False), Penalty()
    warm, batch = int(TRAJECTORY['lars_warm']), len(TRAJECTORY['x1_0'])
    peak = float(TRAJECTORY['lars_base_lr']) * batch / 256
    optimizer = Lars(
        WarmupCosine(peak, warm, steps),
        decayed=decayed_kernels(method.trained()),
        weight_decay=float(TRAJECTORY['lars_wd']),
        rate_in_velocity=False,
    )
    return method, optimizer, Penalty()


@pytest.mark.parametrize(
    ('kind', 'replicas', 'eager'),
    [
        ('sgd', 1, True),
        ('sgd', 2, False),
        ('lars', 1, False),
        ('lars', 2, False),
    ],
)
def test_trajectories_are_golden(kind: str, replicas: int, eager: bool) -> None:
    method, metrics = losses_of(
        lambda: make(kind, replicas), batches_of(TRAJECTORY), replicas=replicas, eager=eager
    )
    losses = [step['prediction_loss'] for step in metrics]
    np.testing.assert_allclose(losses, TRAJECTORY[f'{kind}_loss'], rtol=5e-4)
    compare(keys_of(method.model), TRAJECTORY, f'{kind}_on{STEPS}_')
    compare(mlp_keys('predictor', method.predictor), TRAJECTORY, f'{kind}_on{STEPS}_')
    compare(keys_of(method.target), TRAJECTORY, f'{kind}_ta{STEPS}_')


def values(variables: Mapping[str, tf.Variable]) -> dict[str, np.ndarray]:
    return {key: variable.numpy() for key, variable in variables.items()}


def test_the_optimizer_moves_the_online_network_and_the_target_follows() -> None:
    method, _ = losses_of(lambda: make('sgd'), batches_of(TRAJECTORY)[:1], eager=True)
    online = keys_of(method.model) | mlp_keys('predictor', method.predictor)
    wanted = {variable.ref() for variable in online.values()}
    assert {variable.ref() for variable in method.trainable_variables} == wanted
    for key, found in values(online).items():
        assert (found != TRAJECTORY[f'on0_{key}'].astype(np.float32)).any(), key
    for key, found in values(keys_of(method.target)).items():
        expected = BASE * TRAJECTORY[f'ta0_{key}'] + (1 - BASE) * online[key].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_new_run_starts_with_a_copy() -> None:
    method, *_ = make('sgd')
    method.initialize()
    for key, value in values(keys_of(method.target)).items():
        np.testing.assert_array_equal(value, keys_of(method.model)[key])


def test_no_gradient_reaches_the_target() -> None:
    method, *_ = make('sgd')
    batch = tf.nest.map_structure(tf.constant, batches_of(TRAJECTORY)[0])
    with tf.GradientTape() as tape:
        tape.watch(method.target.trainable_variables)
        targets = method.targets(batch)
        terms = method.loss(method.forward(batch['views'], True), targets, batch)
    assert set(tape.gradient(terms['loss'], method.target.trainable_variables)) == {None}


def test_a_checkpoint_resumes_exactly(tmp_path: pathlib.Path) -> None:
    golden_steps.check_resuming(lambda: make('lars'), batches_of(TRAJECTORY), tmp_path)
