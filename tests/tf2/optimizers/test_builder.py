"""Every optimizer runs alone and on replicas, resumes, and chooses its variables by role."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import mirrored
from tf2.config import OptimizerConfig
from tf2.optimizers import OPTIMIZERS, builder
from tf2.schedules import WarmupCosine

NAMES = sorted(OPTIMIZERS)
DECAY_IN_UPDATE = [name for name in NAMES if OPTIMIZERS[name].decays_in_update]
GRADIENTS = [[[0.5, -1.0], [2.0, 0.25]], [[-1.0, 0.5], [0.1, 3.0]], [[1.0, 1.0], [0.3, -2.0]]]


def _variables() -> list[tf.Variable]:
    return [tf.Variable([3.0, 4.0], name='bias'), tf.Variable([3.0, 4.0], name='kernel')]


def _build(name: str, variables: list[tf.Variable], weight_decay: float = 0.1) -> builder.Optimizer:
    if name == 'lamb':
        pytest.importorskip('tensorflow_addons')
    config = OptimizerConfig(optimizer=name, weight_decay=weight_decay)
    schedule = WarmupCosine(peak=0.5, warmup_steps=1, total_steps=5)
    return builder.build(config, schedule, variables[:1])


def _run_alone(name: str) -> list[np.ndarray]:
    variables = _variables()
    optimizer = _build(name, variables)
    for gradients in GRADIENTS:
        builder.apply(optimizer, map(tf.constant, gradients), variables)
    return [v.numpy() for v in variables]


@pytest.mark.parametrize('name', NAMES)
def test_keras_decays_nothing_of_its_own(name: str) -> None:
    optimizer = _build(name, _variables())
    if not isinstance(optimizer, tf.keras.optimizers.legacy.Optimizer):
        # With 0, Keras would subtract 0 from each variable, in each step.
        assert optimizer.weight_decay is None


def _run_on_replicas(strategy: tf.distribute.Strategy, name: str) -> list[np.ndarray]:
    with strategy.scope():
        variables = _variables()
        optimizer = _build(name, variables)

    def replica(gradients: list[tf.Tensor]) -> None:
        context = tf.distribute.get_replica_context()
        share = [0.5 * gradient for gradient in gradients]
        reduced = context.all_reduce(tf.distribute.ReduceOp.SUM, share)
        builder.apply(optimizer, reduced, variables)

    update = tf.function(lambda gradients: strategy.run(replica, args=(gradients,)))
    for gradients in GRADIENTS:
        update([tf.constant(gradient) for gradient in gradients])
    assert optimizer.iterations.numpy() == len(GRADIENTS)
    return [v.numpy() for v in variables]


@pytest.mark.smoke
@pytest.mark.parametrize('name', NAMES)
def test_two_replicas_agree_with_one(name: str, two_replicas: tf.distribute.Strategy) -> None:
    alone = _run_alone(name)
    assert not np.allclose(alone[0], [3.0, 4.0])
    for value, expected in zip(_run_on_replicas(two_replicas, name), alone, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_resumes_where_it_stopped(name: str, tmp_path: pathlib.Path) -> None:
    variables = _variables()
    optimizer = _build(name, variables)
    builder.apply(optimizer, map(tf.constant, GRADIENTS[0]), variables)
    path = tf.train.Checkpoint(optimizer=optimizer, variables=variables).save(tmp_path / 'ckpt')
    others = _variables()
    resumed = _build(name, others)
    tf.train.Checkpoint(optimizer=resumed, variables=others).restore(path)
    builder.apply(resumed, map(tf.constant, GRADIENTS[1]), others)
    builder.apply(optimizer, map(tf.constant, GRADIENTS[1]), variables)
    for variable, other in zip(variables, others, strict=True):
        np.testing.assert_array_equal(variable, other)


@pytest.mark.parametrize('name', DECAY_IN_UPDATE)
def test_decays_by_role_whatever_the_names(name: str) -> None:
    variables = _variables()
    optimizer = _build(name, variables)
    for _ in range(3):
        builder.apply(optimizer, [tf.zeros([2]), tf.zeros([2])], variables)
    assert np.all(variables[0].numpy() < [3.0, 4.0])
    np.testing.assert_array_equal(variables[1], [3.0, 4.0])


@pytest.mark.parametrize('name', sorted(set(NAMES) - set(DECAY_IN_UPDATE)))
def test_decay_is_left_to_the_loss(name: str) -> None:
    variables = _variables()
    optimizer = _build(name, variables)
    for _ in range(3):
        builder.apply(optimizer, [tf.zeros([2]), tf.zeros([2])], variables)
    np.testing.assert_array_equal(variables[0], [3.0, 4.0])


def test_momentum_is_nesterov() -> None:
    variable = tf.Variable([1.0])
    config = OptimizerConfig(optimizer='momentum', momentum=0.9)
    optimizer = builder.build(config, 0.1, [])
    weight, velocity = 1.0, 0.0
    for gradient in (1.0, -2.0, 0.5):
        builder.apply(optimizer, [tf.constant([gradient])], [variable])
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (gradient + 0.9 * velocity)
        np.testing.assert_allclose(variable, [weight], rtol=1e-6)


def test_lamb_follows_its_paper() -> None:
    pytest.importorskip('tensorflow_addons')
    variables = _variables()
    config = OptimizerConfig(optimizer='lamb', weight_decay=0.1)
    optimizer = builder.build(config, 0.2, variables[:1])
    states = [[np.array([3.0, 4.0]), np.zeros(2), np.zeros(2)] for _ in variables]
    for step, gradients in enumerate(GRADIENTS, 1):
        builder.apply(optimizer, map(tf.constant, gradients), variables)
        for number, (state, gradient) in enumerate(zip(states, gradients, strict=True)):
            weight, first, second = state
            first = 0.9 * first + 0.1 * np.array(gradient)
            second = 0.999 * second + 0.001 * np.array(gradient) ** 2
            update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-6)
            if number == 0:
                update += 0.1 * weight
                update *= np.linalg.norm(weight) / np.linalg.norm(update)
            state[:] = weight - 0.2 * update, first, second
            np.testing.assert_allclose(variables[number], state[0], rtol=1e-5)


def test_lamb_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'tensorflow_addons', None)
    with pytest.raises(UserError, match=r'tensorflow-addons.*--optimizer=lars') as caught:
        builder.build(OptimizerConfig(optimizer='lamb'), 0.1, [])
    assert '\n' not in str(caught.value)


def test_lamb_starts_without_the_end_of_life_notice() -> None:
    pytest.importorskip('tensorflow_addons')
    program = (
        'import warnings; warnings.simplefilter("always");'
        'from tf2.config import OptimizerConfig; from tf2.optimizers import builder;'
        'builder.build(OptimizerConfig(optimizer="lamb"), 0.1, [])'
    )
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=root, capture_output=True, text=True, check=True
    )
    assert 'TensorFlow Addons' not in done.stderr


def test_unknown_name() -> None:
    with pytest.raises(UserError, match='momentum, adam, lars, lamb'):
        OptimizerConfig(optimizer='sgdx')


def _trained_at(
    name: str, rate: builder.Rate, fixed: slice, strategy: tf.distribute.Strategy | None = None
) -> list[np.ndarray]:
    """Two variables after some updates; those in `fixed` keep the peak rate."""
    with (strategy or tf.distribute.get_strategy()).scope():
        variables = _variables()
        optimizer = builder.build(
            OptimizerConfig(optimizer=name), rate, variables, unscheduled=variables[fixed]
        )
        builder.create_variables(optimizer, variables)

    def update(gradients: list[tf.Tensor]) -> None:
        builder.apply(optimizer, gradients, variables)

    for gradients in GRADIENTS:
        values = [tf.constant(gradient) for gradient in gradients]
        if strategy is None:
            update(values)
        else:
            tf.function(lambda: strategy.run(update, (values,)))()  # noqa: B023
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize('name', [name for name in NAMES if OPTIMIZERS[name].fixes_rates])
@pytest.mark.parametrize('replicated', [False, True])
def test_some_variables_keep_the_peak_rate(name: str, replicated: bool) -> None:
    schedule = WarmupCosine(peak=0.5, warmup_steps=0, total_steps=len(GRADIENTS) + 1)
    scheduled = _trained_at(name, schedule, slice(0))
    constant = _trained_at(name, 0.5, slice(0))
    assert all((a != b).any() for a, b in zip(scheduled, constant, strict=True))
    mixed = _trained_at(name, schedule, slice(1, 2), mirrored(2) if replicated else None)
    np.testing.assert_allclose(mixed[0], scheduled[0], rtol=1e-6)
    np.testing.assert_allclose(mixed[1], constant[1], rtol=1e-6)


def test_sgd_keeps_the_rate_out_of_its_velocity() -> None:
    variables = [tf.Variable([3.0, 4.0])]
    schedule = WarmupCosine(peak=0.5, warmup_steps=0, total_steps=4)
    optimizer = builder.build(OptimizerConfig(optimizer='sgd', momentum=0.5), schedule, [])
    weight, velocity = np.array([3.0, 4.0]), np.zeros(2)
    for step, (gradient, _) in enumerate(GRADIENTS):
        builder.apply(optimizer, [tf.constant(gradient)], variables)
        velocity = 0.5 * velocity + np.array(gradient)
        weight = weight - float(schedule(step)) * velocity
        np.testing.assert_allclose(variables[0], weight, rtol=1e-6)
