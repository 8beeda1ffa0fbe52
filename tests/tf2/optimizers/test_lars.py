"""LARS against the published program's figures and against a slow NumPy reference."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tf2.optimizers import builder
from tf2.optimizers.lars import Lars
from tf2.schedules import WarmupCosine

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / 'golden' / 'lars.npz')
# The roles of the variables in the golden file: these are kernels of encoder and projection head.
GOLDEN_DECAYED = ('conv2d/kernel', 'linear_layer/dense/kernel', 'zero/kernel')


@pytest.mark.smoke
@pytest.mark.parametrize('wrap', [lambda function: function, tf.function], ids=['eager', 'graph'])
def test_golden(wrap: Callable) -> None:
    names = [key.removesuffix('/param0') for key in GOLDEN.files if key.endswith('/param0')]
    variables = [tf.Variable(GOLDEN[f'{name}/param0']) for name in names]
    roles = {name: name.removeprefix('classic/') for name in names}
    decayed = [v for name, v in zip(names, variables, strict=True) if roles[name] in GOLDEN_DECAYED]
    assert len(decayed) == 3
    optimizer = Lars(0.4, decayed=decayed, weight_decay=0.01)
    update = wrap(lambda gradients: builder.apply(optimizer, gradients, variables))
    for step in range(1, 6):
        update([tf.constant(GOLDEN[f'{name}/grad{step}']) for name in names])
        for name, variable in zip(names, variables, strict=True):
            expected = GOLDEN[f'{name}/param{step}']
            np.testing.assert_allclose(variable, expected, rtol=1e-6, atol=2e-6, err_msg=name)


class _Reference:
    """One variable under LARS, in float64, line by line from the formula."""

    def __init__(
        self, weight: np.ndarray, rate: float, momentum: float, decay: float, decays: bool
    ) -> None:
        self.weight = weight.astype(np.float64)
        self.velocity = np.zeros_like(self.weight)
        self.rate, self.momentum, self.decay, self.decays = rate, momentum, decay, decays

    def trust(self, gradient: np.ndarray) -> float:
        weight_norm, gradient_norm = np.linalg.norm(self.weight), np.linalg.norm(gradient)
        if not self.decays or weight_norm == 0 or gradient_norm == 0:
            return 1.0
        return 0.001 * weight_norm / gradient_norm

    def step(self, gradient: np.ndarray) -> None:
        gradient = gradient.astype(np.float64)
        if self.decays:
            gradient = gradient + self.decay * self.weight
        added = self.rate * self.trust(gradient) * gradient
        self.velocity = self.momentum * self.velocity + added
        self.weight -= self.velocity


_CASES = st.fixed_dictionaries(
    {
        'shape': st.lists(st.integers(1, 5), max_size=4),
        'decays': st.booleans(),
        'zero_weight': st.booleans(),
        'zero_gradient_at': st.integers(0, 3),
        'scale': st.sampled_from([1e-4, 1.0, 1e3]),
    }
)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    cases=st.lists(_CASES, min_size=1, max_size=4),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    decay=st.sampled_from([0.0, 1e-4, 0.1]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_slow_reference(
    cases: list[dict], momentum: float, decay: float, seed: int
) -> None:
    random = np.random.RandomState(seed)
    starts = [
        random.standard_normal(case['shape']).astype(np.float32) * (not case['zero_weight'])
        for case in cases
    ]
    variables = [tf.Variable(start, dtype=tf.float32) for start in starts]
    decayed = [v for case, v in zip(cases, variables, strict=True) if case['decays']]
    optimizer = Lars(0.3, decayed=decayed, momentum=momentum, weight_decay=decay)
    references = [
        _Reference(start, 0.3, momentum, decay, case['decays'])
        for case, start in zip(cases, map(np.asarray, starts), strict=True)
    ]
    for step in range(3):
        gradients = [
            np.float32(random.standard_normal(case['shape']) * case['scale'])
            * np.float32(case['zero_gradient_at'] != step)
            for case in cases
        ]
        builder.apply(optimizer, [tf.constant(g) for g in gradients], variables)
        for gradient, reference in zip(gradients, references, strict=True):
            reference.step(np.asarray(gradient))
    for variable, reference in zip(variables, references, strict=True):
        bound = 1e-5 * max(1.0, np.abs(reference.weight).max())
        np.testing.assert_allclose(variable, reference.weight, rtol=1e-4, atol=bound)


def test_zero_gradient_still_decays_with_a_trust_ratio() -> None:
    # With nothing but decay g is weight_decay * w, so trust * g is 0.001 * w.
    variable = tf.Variable([3.0, 4.0])
    optimizer = Lars(1.0, decayed=[variable], weight_decay=0.01)
    builder.apply(optimizer, [tf.zeros([2])], [variable])
    np.testing.assert_allclose(variable, [2.997, 3.996], rtol=1e-6)


def test_names_do_not_matter() -> None:
    kernel = tf.Variable([3.0, 4.0], name='batch_normalization/bias/head_supervised')
    bias = tf.Variable([3.0, 4.0], name='kernel')
    optimizer = Lars(1.0, decayed=[kernel], momentum=0.0)
    builder.apply(optimizer, [tf.constant([3.0, 4.0])] * 2, [kernel, bias])
    np.testing.assert_allclose(kernel, [2.997, 3.996], rtol=1e-6)
    np.testing.assert_allclose(bias, [0.0, 0.0])


def _problem() -> tuple[list[tf.Variable], list[list[tf.Tensor]]]:
    """Three variables and, for each of four steps, two replicas' shares of their gradients."""
    random = np.random.RandomState(3)
    shapes = ([4, 3], [3], [2, 2, 3, 2])
    variables = [tf.Variable(random.standard_normal(s).astype(np.float32)) for s in shapes]
    draws = [[random.standard_normal([2, *s]).astype(np.float32) for s in shapes] for _ in range(4)]
    return variables, [[tf.constant(g) for g in draw] for draw in draws]


def _lars(variables: list[tf.Variable]) -> Lars:
    schedule = WarmupCosine(peak=0.5, warmup_steps=2, total_steps=6)
    return Lars(schedule, decayed=[variables[0], variables[2]], weight_decay=0.1)


def _run_alone(wrap: Callable) -> list[np.ndarray]:
    variables, steps = _problem()
    optimizer = _lars(variables)
    update = wrap(lambda gradients: builder.apply(optimizer, gradients, variables))
    for gradients in steps:
        update([tf.reduce_sum(g, 0) for g in gradients])
    return [v.numpy() for v in variables]


def _run_on_replicas(strategy: tf.distribute.Strategy) -> list[np.ndarray]:
    with strategy.scope():
        variables, steps = _problem()
        optimizer = _lars(variables)

    def replica(shares: list[tf.Tensor]) -> None:
        context = tf.distribute.get_replica_context()
        own = [share[context.replica_id_in_sync_group] for share in shares]
        reduced = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
        builder.apply(optimizer, reduced, variables)

    update = tf.function(lambda shares: strategy.run(replica, args=(shares,)))
    for shares in steps:
        update(shares)
    assert optimizer.iterations.numpy() == len(steps)
    for variable in variables:
        copies = [copy.numpy() for copy in strategy.experimental_local_results(variable)]
        np.testing.assert_array_equal(copies[0], copies[1])
    return [v.numpy() for v in variables]


def test_eager_graph_and_xla_agree() -> None:
    expected = _run_alone(lambda function: function)
    others = {
        'graph': _run_alone(tf.function),
        'xla': _run_alone(lambda function: tf.function(function, jit_compile=True)),
    }
    for name, values in others.items():
        for value, right in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-6, err_msg=name)


def test_two_replicas_agree_with_one(two_replicas: tf.distribute.Strategy) -> None:
    expected = _run_alone(lambda function: function)
    for value, right in zip(_run_on_replicas(two_replicas), expected, strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('built', [True, False], ids=['built', 'not yet built'])
def test_resumes_where_it_stopped(tmp_path: pathlib.Path, built: bool) -> None:
    variables, steps = _problem()
    optimizer = _lars(variables)
    sums = [[tf.reduce_sum(g, 0) for g in gradients] for gradients in steps]
    for gradients in sums[:2]:
        builder.apply(optimizer, gradients, variables)
    path = tf.train.Checkpoint(optimizer=optimizer, variables=variables).save(tmp_path / 'ckpt')

    others, _ = _problem()
    resumed = _lars(others)
    if built:
        resumed.build(others)
    status = tf.train.Checkpoint(optimizer=resumed, variables=others).restore(path)
    for gradients in sums[2:]:
        builder.apply(optimizer, gradients, variables)
        builder.apply(resumed, gradients, others)
    status.assert_consumed()
    assert int(resumed.iterations) == 4
    for variable, other in zip(variables, others, strict=True):
        np.testing.assert_array_equal(variable, other)


def test_checkpoint_holds_velocities_and_no_second_copy_of_the_model(
    tmp_path: pathlib.Path,
) -> None:
    variables, _ = _problem()
    optimizer = _lars(variables)
    optimizer.build(variables)
    path = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / 'ckpt')
    shapes = [shape for _, shape in tf.train.list_variables(path) if shape]
    assert sorted(shapes) == sorted(v.shape.as_list() for v in variables)


def test_loss_scaling_changes_nothing() -> None:
    variables, steps = _problem()
    optimizer = tf.keras.mixed_precision.LossScaleOptimizer(_lars(variables), initial_scale=1024.0)
    for gradients in steps:
        scaled = [1024.0 * tf.reduce_sum(g, 0) for g in gradients]
        builder.apply(optimizer, optimizer.get_unscaled_gradients(scaled), variables)
    for variable, expected in zip(variables, _run_alone(lambda f: f), strict=True):
        np.testing.assert_allclose(variable, expected, rtol=1e-6)


def test_missing_gradient_leaves_the_variable() -> None:
    variables, _ = _problem()
    before = variables[1].numpy()
    optimizer = Lars(0.1, decayed=variables)
    gradients = [tf.ones_like(variables[0]), None, tf.ones_like(variables[2])]
    builder.apply(optimizer, gradients, variables)
    np.testing.assert_array_equal(variables[1], before)


def test_as_many_gradients_as_variables() -> None:
    variables, _ = _problem()
    with pytest.raises(ValueError, match='longer'):
        builder.apply(Lars(0.1, decayed=variables), [tf.zeros([4, 3])], variables)


BYOL = np.load(pathlib.Path(__file__).parents[2] / 'golden' / 'methods' / 'byol.npz')


@pytest.mark.parametrize('wrap', [lambda function: function, tf.function], ids=['eager', 'graph'])
def test_golden_with_the_rate_outside_the_velocity(wrap: Callable) -> None:
    keys = (key.removeprefix('lars_') for key in BYOL.files if key.startswith('lars_'))
    names = [key.removesuffix('_0') for key in keys if key.endswith('_0')]
    variables = [tf.Variable(BYOL[f'lars_{name}_0'], dtype=tf.float32) for name in names]
    kernels = [v for v in variables if v.shape.rank > 1]
    assert 0 < len(kernels) < len(variables)
    optimizer = Lars(
        float(BYOL['lars_lr']),
        decayed=kernels,
        momentum=float(BYOL['lars_momentum']),
        weight_decay=float(BYOL['lars_wd']),
        rate_in_velocity=False,
    )
    update = wrap(lambda gradients: builder.apply(optimizer, gradients, variables))
    for step in range(1, 5):
        update([tf.constant(BYOL[f'lars_{name}_g{step}'], tf.float32) for name in names])
        for name, variable in zip(names, variables, strict=True):
            expected = BYOL[f'lars_{name}_{step}']
            np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=1e-6, err_msg=name)
