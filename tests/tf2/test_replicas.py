"""One, two and four replicas: loss, gradients and weights of the same global batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from common.stages import STAGES
from tests.support import assign_formula_weights, mirrored, relative_error, run_eagerly
from tf2 import collapse
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.methods.base import Method, build
from tf2.models.encoder import SimCLRModel, build_model
from tf2.trainer import Penalty, Trainer

# Plain networks also keep rounding from switching a ReLU on one side only, which changes a gradient
# by percents. Two replicas train a ResNet in `test_trajectories`.
pytestmark = pytest.mark.usefixtures('plain')

BATCH, CLASSES = 8, 5
IMAGES = np.random.default_rng(0).random((2, BATCH, 8, 8, 3), np.float32)
LABELS = np.array([0, 1, -1, 3, 4, -1, -1, 2], np.int32)  # replicas have unequal shares of them
KINDS = {
    'pretrain': LearningConfig(),
    'finetune': LearningConfig(train_mode='finetune'),
    'distill': LearningConfig(train_mode='distill', teacher='made up', distill_alpha=0.5),
}


class Notes(tf.Module):
    """An optimizer of plain gradient descent that keeps the gradients of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.iterations = tf.Variable(0, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    def build(self, variables: Sequence[tf.Variable]) -> None:
        # After the gradients were summed they are the same on all replicas.
        self.gradients = [
            tf.Variable(tf.zeros(variable.shape), aggregation=tf.VariableAggregation.MEAN)
            for variable in variables
        ]

    def apply_gradients(self, pairs: Any, experimental_aggregate_gradients: bool) -> None:
        assert not experimental_aggregate_gradients
        for note, (gradient, variable) in zip(self.gradients, pairs, strict=True):
            note.assign(gradient)
            variable.assign_sub(1e-3 * gradient)
        self.iterations.assign_add(1)


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results of two steps on the global batch."""

    names: list[str]
    metrics: np.ndarray
    gradients: list[np.ndarray]
    weights: list[np.ndarray]
    moving: list[np.ndarray]


def teacher(images: tf.Tensor) -> tf.Tensor:
    """Logits [b, CLASSES] of a network without weights."""
    return 40 * tf.reduce_mean(images, [1, 2])[:, :1] * tf.range(1.0, CLASSES + 1)


def objective_of(kind: str, replicas: int, global_bn: bool) -> Method:
    config = ModelConfig(resnet_depth=18, width_multiplier=0.125, global_bn=global_bn)
    detached = kind == 'pretrain'
    model = build_model(
        SimCLRModel(config, 8, CLASSES, replicas=replicas, detach_classifier=detached)
    )
    roles = (variable.name.rpartition('/')[2].removesuffix(':0') for variable in model.variables)
    keys = [f'{number}/{role}' for number, role in enumerate(roles)]
    assign_formula_weights(dict(zip(keys, model.variables, strict=True)))
    method = build(model, KINDS[kind], teacher if kind == 'distill' else None)
    method.initialize()
    return method


def steps(kind: str, replicas: int, *, global_bn: bool = True) -> Figures:
    strategy = mirrored(replicas)
    with strategy.scope():
        method = objective_of(kind, replicas, global_bn)
        notes = Notes()
        penalty = Penalty(1e-2, [method.model.classifier.kernel])
        trainer = Trainer(method, notes, penalty, TrainConfig())
    batch = {'views': (IMAGES[0], IMAGES[1]), 'label': LABELS}
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(BATCH, drop_remainder=True)
    iterator = iter(strategy.experimental_distribute_dataset(dataset.repeat()))
    metrics, done, _ = trainer._run_steps(iterator, tf.constant(2))
    assert int(done) == 2
    return figures_of(method, metrics.numpy(), [note.numpy() for note in notes.gradients])


def figures_of(method: Method, metrics: np.ndarray, gradients: list) -> Figures:
    variables = method.trainable_variables
    return Figures(
        [variable.name for variable in variables],
        metrics,
        gradients,
        [variable.numpy() for variable in variables],
        [variable.numpy() for variable in method.model.non_trainable_variables],
    )


def check_same(found: Figures, expected: Figures) -> None:
    np.testing.assert_allclose(found.metrics, expected.metrics, rtol=2e-5, atol=2e-6)
    largest = max(np.abs(gradient).max() for gradient in expected.gradients)
    for name, gradient, wanted in zip(
        expected.names, found.gradients, expected.gradients, strict=True
    ):
        assert np.abs(gradient - wanted).max() < 1e-4 * largest, name
    for name, weight, wanted in zip(expected.names, found.weights, expected.weights, strict=True):
        assert relative_error(weight, wanted) < 1e-5, name
    for moving, wanted in zip(found.moving, expected.moving, strict=True):
        assert relative_error(moving, wanted) < 1e-4


@pytest.fixture(scope='module')
def alone(plain: None) -> dict[str, Figures]:
    """Method -> results on one replica, not in a graph."""
    with run_eagerly():
        return {kind: steps(kind, 1) for kind in KINDS}


def test_every_method_is_tried() -> None:
    assert KINDS.keys() == STAGES.keys()


@pytest.mark.parametrize(('replicas', 'kind'), [*((2, kind) for kind in KINDS), (4, 'pretrain')])
def test_replicas_give_what_one_gives(alone: dict[str, Figures], kind: str, replicas: int) -> None:
    assert sum(np.abs(gradient).max() > 0 for gradient in alone[kind].gradients) > 15
    check_same(steps(kind, replicas), alone[kind])


ENDPOINTS = ('proj_head_input', 'proj_head_output', 'logits_sup')


class Shares:
    """Replaces a model: calls it with one replica's share of the input after the other.

    Moving statistics end as the mean over replicas.
    """

    def __init__(self, model: SimCLRModel, replicas: int) -> None:
        self.classifier = model.classifier
        self._model, self._replicas = model, replicas

    def __call__(self, images: tf.Tensor, training: bool) -> dict[str, tf.Tensor]:
        views = tf.split(images, len(images) // BATCH)  # [BATCH, h, w, 3] each
        shares = zip(*(tf.split(view, self._replicas) for view in views), strict=True)
        moving = self._model.non_trainable_variables
        before, after, outputs = values(moving), [], []
        for share in shares:
            assign(moving, before)
            outputs.append(self._model(tf.concat(share, 0), training=training))
            after.append(values(moving))
        assign(moving, [np.mean(each, 0) for each in zip(*after, strict=True)])

        def whole(name: str) -> tf.Tensor:
            parts = [tf.split(output[name], len(views)) for output in outputs]
            return tf.concat([tf.concat(view, 0) for view in zip(*parts, strict=True)], 0)

        return {name: whole(name) for name in ENDPOINTS}


def values(variables: Sequence[tf.Variable]) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def assign(variables: Sequence[tf.Variable], new: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, new, strict=True):
        variable.assign(value)


@pytest.mark.parametrize('kind', KINDS)
def test_local_batch_normalization_is_that_of_each_share(
    alone: dict[str, Figures], kind: str
) -> None:
    """It differs from the global one, so results depend on the number of replicas."""
    method = objective_of(kind, 1, global_bn=False)
    model, variables = method.model, method.trainable_variables
    batch = {'views': tuple(map(tf.constant, IMAGES)), 'label': tf.constant(LABELS)}
    sums = np.zeros([len(method.metrics) + 2 + len(method.watched)])
    for _ in range(2):
        with tf.GradientTape() as tape:
            object.__setattr__(method, 'model', Shares(model, 2))
            outputs = method.forward(batch['views'], training=True)
            terms = method.loss(outputs, method.targets(batch), batch)
            decay = 1e-2 * tf.nn.l2_loss(model.classifier.kernel)
            loss = terms['loss'] + decay
        object.__setattr__(method, 'model', model)
        gradients = tape.gradient(loss, variables)
        assign(variables, [v - 1e-3 * g for v, g in zip(variables, gradients, strict=True)])
        spreads = collapse.measure(method.watched, outputs).values()
        sums += [float(value) for value in (loss, decay, *map(terms.get, method.metrics), *spreads)]
    expected = figures_of(method, sums, [gradient.numpy() for gradient in gradients])
    check_same(steps(kind, 2, global_bn=False), expected)
    assert abs(expected.metrics[0] - alone[kind].metrics[0]) > 1e-3
