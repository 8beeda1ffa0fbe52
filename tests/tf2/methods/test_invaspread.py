"""InvaSpread: the published figures of loss and gradient, and what its gradient reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.support import GOLDEN, mirrored, relative_error, run_on_replicas
from tests.tf2.methods.golden_steps import INPUTS, dense_encoder, losses_of
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.invaspread import InvaSpread, invaspread_loss
from tf2.models.encoder import SimCLRModel, build_model
from tf2.optimizers import builder
from tf2.trainer import Penalty

FIGURES = dict(np.load(GOLDEN / 'methods' / 'invaspread.npz'))
VIEWS = np.split(FIGURES['x'].astype(np.float32), 2)
T = float(FIGURES['T'])


def loss_and_gradients(
    weight: float, replicas: int
) -> Callable[..., tuple[tf.Tensor, list[tf.Tensor]]]:
    def function(*views: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            tape.watch(views)
            loss = invaspread_loss(*views, T, weight).loss
            share = loss / replicas
        return loss, tape.gradient(share, list(views))

    return function


@pytest.mark.smoke
@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize(('weight', 'name'), [(1.0, ''), (2.0, '_neg2')])
def test_golden_loss_and_gradient(replicas: int, weight: float, name: str) -> None:
    shares = [np.split(view, replicas) for view in VIEWS]
    found = run_on_replicas(mirrored(replicas), loss_and_gradients(weight, replicas), *shares)
    np.testing.assert_allclose(np.mean([r[0] for r in found]), FIGURES[f'loss{name}'], rtol=1e-5)
    gradient = np.concatenate([np.concatenate([r[1][view] for r in found]) for view in (0, 1)])
    assert relative_error(gradient, FIGURES[f'grad{name}']) < 1e-5
    # The plain derivative is another one.
    assert relative_error(gradient, FIGURES['grad_both_sides']) > 0.1


def test_golden_loss_and_gradient_eagerly() -> None:
    loss, gradients = loss_and_gradients(1.0, 1)(*map(tf.constant, VIEWS))
    np.testing.assert_allclose(loss, FIGURES['loss'], rtol=1e-5)
    assert relative_error(np.concatenate(gradients), FIGURES['grad']) < 1e-5


def test_it_is_the_sum_over_pairs_of_the_paper() -> None:
    rows = FIGURES['x']
    similar, count = np.exp(rows @ rows.T / T), len(rows)
    total, hits = 0.0, 0
    for i in range(count):
        partner = (i + count // 2) % count
        everything = sum(similar[i, k] for k in range(count) if k != i)
        total -= np.log(similar[i, partner] / everything)
        for k in set(range(count)) - {i, partner}:
            total -= np.log(1 - similar[i, k] / everything)
        hits += max((k for k in range(count) if k != i), key=lambda k: similar[i, k]) == partner
    found = invaspread_loss(*map(tf.constant, VIEWS), T)
    np.testing.assert_allclose(found.loss, total / count, rtol=1e-5)
    assert float(found.accuracy) == pytest.approx(hits / count)


def test_equal_images_and_low_temperatures_stay_finite() -> None:
    views = [tf.constant([[1.0, 0.0], [1.0, 0.0]]), tf.constant([[0.0, 1.0], [0.0, -1.0]])]
    loss, gradients = None, None
    with tf.GradientTape() as tape:
        tape.watch(views)
        loss = invaspread_loss(*views, 0.005).loss
    gradients = tape.gradient(loss, views)
    assert np.isfinite(loss) and all(np.isfinite(gradient).all() for gradient in gradients)


def make(replicas: int = 1) -> Any:
    tf.keras.utils.set_random_seed(0)
    config = ModelConfig(backbone='dense', proj_out_dim=5, num_proj_layers=1)
    head = InvaSpread.projection_head
    model = SimCLRModel(config, 1, 3, make_head=head, replicas=replicas, detach_classifier=True)
    method = InvaSpread(build_model(model), LearningConfig(method='invaspread', temperature=0.1))
    return method, tf.keras.optimizers.legacy.SGD(0.05), Penalty()


def batches() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    views = rng.random((4, 2, 8, *INPUTS), np.float32)
    return [{'views': tuple(pair), 'label': np.arange(8, dtype=np.int32) % 3} for pair in views]


def test_replicas_train_as_one_does() -> None:
    with dense_encoder(10, last_relu=True):
        alone, losses = losses_of(make, batches())
        other, found = losses_of(lambda: make(2), batches(), replicas=2)
    for step, expected in zip(found, losses, strict=True):
        for name, value in expected.items():
            assert step[name] == pytest.approx(value, rel=1e-4), name
    for variable, expected in zip(other.variables, alone.variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_optimizer_moves_the_model_which_is_all_there_is() -> None:
    with dense_encoder(10, last_relu=True):
        method, optimizer, _ = make()
    builder.create_variables(optimizer, method.trainable_variables)
    assert {v.ref() for v in method.variables} == {v.ref() for v in method.model.variables}
    batch = tf.nest.map_structure(tf.constant, batches()[0])
    before = [variable.numpy() for variable in method.variables]
    with tf.GradientTape() as tape:
        loss = method.loss(method.forward(batch['views'], True), None, batch)['loss']
    variables = method.trainable_variables
    assert all(np.abs(g).max() > 0 for g in tape.gradient(loss, variables))
    for variable, value in zip(method.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
