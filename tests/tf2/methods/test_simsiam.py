"""SimSiam against golden figures: loss, gradients, schedules, trajectories; what is moved how."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored, run_on_replicas
from tests.tf2.methods import golden_steps
from tests.tf2.methods.golden_steps import STEPS, assign, batches_of, compare, golden, losses_of
from tf2.config import LearningConfig, ModelConfig, OptimizerConfig
from tf2.methods.simsiam import SimSiam, simsiam_loss
from tf2.optimizers import builder, decay
from tf2.schedules import WarmupCosine
from tf2.trainer import Penalty

LOSS, TRAJECTORY = golden('simsiam'), golden('traj_simsiam')
RATES = golden('schedules')['simsiam_epoch_lr_predlr']
MODEL = ModelConfig(num_proj_layers=3, proj_out_dim=8)
LEARNING = LearningConfig(method='simsiam', predictor_hidden_dim=5)
MOMENTUM = float(TRAJECTORY['momentum'])
KEPT = 0.9 ** (2 * STEPS)  # of the moving statistics' start; both views of a step move them


@pytest.fixture(autouse=True)
def small_networks() -> Iterator[None]:
    with golden_steps.dense_encoder(10, last_relu=True):
        yield


# --- the loss


def float32(name: str) -> tf.Tensor:
    return tf.constant(LOSS[name], tf.float32)


def loss_and_gradients(*predictions: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    projections = [float32('z1'), float32('z2')]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([*predictions, *projections])
        loss = simsiam_loss(predictions, projections)
    assert tape.gradient(loss, projections) == [None, None]
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

    def loss(p1: tf.Tensor, p2: tf.Tensor, z1: tf.Tensor, z2: tf.Tensor) -> tf.Tensor:
        return simsiam_loss((p1, p2), (z1, z2))

    found = run_on_replicas(mirrored(2), loss, *(np.split(row, 2) for row in rows))
    np.testing.assert_allclose(np.mean(found), loss(*rows), rtol=1e-5)


# --- training


class Rates(WarmupCosine):
    """The golden file's learning rates, one for each step."""

    def __init__(self) -> None:
        super().__init__(float(TRAJECTORY['pred_lr']), 0, STEPS)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(TRAJECTORY['enc_lr'], tf.float32), step)


def keys_of(method: SimSiam) -> dict[str, tf.Variable]:
    """Golden keys of all trained variables."""
    (first,) = method.model.backbone.blocks
    keys = {'encoder_l1_weight': first[0].kernel, 'encoder_l1_bias': first[0].bias}
    hidden = zip(('encoder_fc_0', 'encoder_fc_3'), ('encoder_fc_1', 'encoder_fc_4'))
    blocks = [*method.model.projection_head.blocks[:2], method.predictor.blocks[0]]
    for (dense, norm), block in zip([*hidden, ('predictor_0', 'predictor_1')], blocks, strict=True):
        keys[f'{dense}_weight'] = block.dense.kernel
        keys |= {f'{norm}_weight': block.bn.gamma, f'{norm}_bias': block.bn.beta}
    keys['encoder_fc_6_weight'] = method.model.projection_head.blocks[2].dense.kernel
    last = method.predictor.blocks[1].dense
    return keys | {'predictor_3_weight': last.kernel, 'predictor_3_bias': last.bias}


def make(replicas: int = 1, fixed: bool = True) -> tuple[SimSiam, builder.Optimizer, Penalty]:
    method = golden_steps.method_of('simsiam', MODEL, LEARNING, replicas)
    assign(keys_of(method), TRAJECTORY, 's0_')
    assert {v.ref() for v in method.trainable_variables} == {
        v.ref() for v in keys_of(method).values()
    }
    optimizer = builder.build(
        OptimizerConfig(optimizer='sgd', momentum=MOMENTUM),
        Rates(),
        [],
        unscheduled=method.predictor.trainable_variables if fixed else (),
    )
    decayed = decay.everything(method.trained())
    return method, optimizer, Penalty(float(TRAJECTORY['weight_decay']), decayed)


@pytest.mark.parametrize(('replicas', 'eager'), [(1, False), (1, True), (2, False)])
def test_trajectories_are_golden(replicas: int, eager: bool) -> None:
    method, metrics = losses_of(
        lambda: make(replicas), batches_of(TRAJECTORY), replicas=replicas, eager=eager
    )
    losses = [step['prediction_loss'] for step in metrics]
    np.testing.assert_allclose(losses, TRAJECTORY['loss'], rtol=5e-4, atol=5e-4)
    compare(keys_of(method), TRAJECTORY, f's{STEPS}_')


def test_moving_statistics_are_golden() -> None:
    method, _ = losses_of(make, batches_of(TRAJECTORY), eager=True)
    blocks = [*method.model.projection_head.blocks, method.predictor.blocks[0]]
    count = len(TRAJECTORY['x1_0'])
    names = ('encoder_fc_1', 'encoder_fc_4', 'encoder_fc_7', 'predictor_1')
    for name, block in zip(names, blocks, strict=True):
        mean = TRAJECTORY[f's{STEPS}_{name}_running_mean']
        if name == 'encoder_fc_7':  # the published layer before has a constant bias
            mean = mean - (1 - KEPT) * TRAJECTORY['s0_encoder_fc_6_bias']
        np.testing.assert_allclose(block.bn.moving_mean, mean, rtol=5e-4, atol=5e-4)
        variance = TRAJECTORY[f's{STEPS}_{name}_running_var']
        # Theirs is of the unbiased variance.
        expected = KEPT + (variance - KEPT) * (count - 1) / count
        np.testing.assert_allclose(block.bn.moving_variance, expected, rtol=5e-4)


def test_a_scheduled_predictor_learns_something_else() -> None:
    _, metrics = losses_of(lambda: make(fixed=False), batches_of(TRAJECTORY), eager=True)
    losses = [step['prediction_loss'] for step in metrics]
    assert np.abs(losses - TRAJECTORY['loss']).max() > 0.01


def test_the_encoder_follows_the_published_schedule() -> None:
    """Theirs changes at the start of each epoch, ours at each step."""
    epochs, steps, base = 100, 7, RATES[0, 1]
    schedule = WarmupCosine(base, 0, epochs * steps)
    for epoch, rate, predictor in RATES:
        np.testing.assert_allclose(schedule(int(epoch) * steps), rate, rtol=1e-5, atol=1e-8)
        assert predictor == schedule.peak == base


def test_the_projections_get_no_gradient() -> None:
    """The gradient reaches the projection head through the predictor alone."""
    method, *_ = make()
    batch = tf.nest.map_structure(tf.constant, batches_of(TRAJECTORY)[0])
    for variable in method.predictor.blocks[1].dense.trainable_variables:
        variable.assign(tf.zeros_like(variable) + 0.1)  # predicts the same for all images
    with tf.GradientTape() as tape:
        terms = method.loss(method.forward(batch['views'], True), None, batch)
    head = method.model.projection_head.trainable_variables
    biggest = max(float(tf.reduce_max(tf.abs(g))) for g in tape.gradient(terms['loss'], head))
    assert biggest < 1e-6


def test_a_checkpoint_resumes_exactly(tmp_path: pathlib.Path) -> None:
    golden_steps.check_resuming(make, batches_of(TRAJECTORY), tmp_path)
