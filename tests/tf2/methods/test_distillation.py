"""Distillation: the loss against a slow reference, who is trained, and several replicas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from tests.support import loss_of, mirrored, run_on_replicas
from tf2.checkpoints import Checkpoints
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.methods.base import build
from tf2.methods.distillation import Distillation, soft_cross_entropy
from tf2.models.encoder import SimCLRModel, build_model
from tf2.trainer import Penalty, Trainer

pytestmark = pytest.mark.usefixtures('plain')

CLASSES = 4
VIEWS = tf.random.stateless_uniform([6, 8, 8, 3], [1, 2])
TEACHER_VIEWS = tf.random.stateless_uniform([6, 5, 5, 3], [3, 4])
SOME_LABELS = [0, -1, 2, -1, 3, 1]
NO_LABELS = [-1] * 6


def slow_cross_entropy(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    """The definition, example by example and class by class, in double precision."""
    total = 0.0
    for t, s in zip(teacher.astype(np.float64), student.astype(np.float64), strict=True):
        p = np.exp(t / temperature - np.max(t / temperature))
        q = np.exp(s / temperature - np.max(s / temperature))
        for c in range(len(t)):
            total -= p[c] / p.sum() * (s[c] / temperature - np.max(s / temperature))
            total += p[c] / p.sum() * np.log(q.sum())
    return total / len(teacher)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    examples=st.integers(1, 6),
    temperature=st.sampled_from([0.1, 0.5, 1.0, 4.0]),
    squared=st.booleans(),
)
def test_loss_is_the_slow_reference(
    seed: int, examples: int, temperature: float, squared: bool
) -> None:
    check_loss(soft_cross_entropy, seed, examples, temperature, squared)


@pytest.mark.parametrize('squared', [False, True])
def test_loss_is_the_slow_reference_in_a_graph(squared: bool) -> None:
    check_loss(tf.function(soft_cross_entropy, autograph=False), 1, 5, 0.5, squared)


def check_loss(
    function: Callable[..., tf.Tensor],
    seed: int,
    examples: int,
    temperature: float,
    squared: bool,
) -> None:
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(0, 3, [2, examples, CLASSES]).astype(np.float32)
    found = function(tf.constant(teacher), tf.constant(student), temperature, squared=squared)
    factor = temperature**2 if squared else 1
    expected = factor * slow_cross_entropy(teacher, student, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_teacher_gets_no_gradient_and_the_student_softmax_minus_softmax() -> None:
    rng = np.random.default_rng(0)
    teacher, student = map(tf.constant, rng.normal(size=[2, 5, CLASSES]).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        loss = soft_cross_entropy(teacher, student, 0.5)
    of_teacher, of_student = tape.gradient(loss, [teacher, student])
    assert of_teacher is None
    # d/ds of tau^2 * CE is tau * (softmax(s / tau) - softmax(t / tau)) / examples.
    expected = 0.5 * (tf.nn.softmax(student / 0.5) - tf.nn.softmax(teacher / 0.5)) / 5
    np.testing.assert_allclose(of_student, expected, atol=1e-6)


class Teaching(tf.Module):
    """A teacher with a weight that must never change."""

    def __init__(self) -> None:
        super().__init__()
        kernel = tf.random.stateless_normal([5 * 5 * 3, CLASSES], [5, 6])
        self.kernel = tf.Variable(kernel, name='teachers_kernel')

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return tf.reshape(images, [-1, 5 * 5 * 3]) @ self.kernel


def student() -> SimCLRModel:
    tf.keras.utils.set_random_seed(0)
    config = ModelConfig(resnet_depth=18, width_multiplier=0.125)
    # One replica's statistics on each: these tests compare losses, not batch statistics.
    model = build_model(SimCLRModel(config, 8, CLASSES, replicas=1))
    model.classifier.kernel.assign(tf.random.stateless_normal([64, CLASSES], [7, 8]))
    return model


@pytest.fixture(scope='module', name='student')
def shared_student(plain: None) -> SimCLRModel:
    """One for all tests that don't train it."""
    return student()


def distillation(
    teacher: Teaching, model: SimCLRModel | None = None, **settings: object
) -> Distillation:
    model = model or student()
    settings = {'train_mode': 'distill', 'teacher': 'made up', **settings}
    return build(model, LearningConfig(**settings), lambda images: teacher(images))


def batch(labels: list[int]) -> dict:
    return {'views': (VIEWS, TEACHER_VIEWS), 'label': tf.constant(labels)}


@pytest.mark.parametrize('labels', [SOME_LABELS, NO_LABELS], ids=['some labels', 'no label'])
@pytest.mark.parametrize('alpha', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('temperature', [0.1, 1.0, 3.0])
def test_the_loss_is_the_weighted_sum_of_both_terms(
    student: SimCLRModel, alpha: float, temperature: float, labels: list[int]
) -> None:
    teacher = Teaching()
    method = distillation(teacher, student, distill_alpha=alpha, distill_temperature=temperature)
    terms = loss_of(method, batch(labels), training=False)
    logits = method.model(VIEWS)['logits_sup'].numpy()
    soft = temperature**2 * slow_cross_entropy(teacher(TEACHER_VIEWS).numpy(), logits, temperature)
    known = [(row, label) for row, label in zip(logits, labels, strict=True) if label >= 0]
    # Its own examples only: mean over those with a label, 0 without any.
    hard = sum(np.log(np.sum(np.exp(row - row[label]))) for row, label in known)
    hard /= max(len(known), 1)
    np.testing.assert_allclose(terms['distill_loss'], soft, rtol=1e-4)
    np.testing.assert_allclose(terms['loss'], alpha * soft + (1 - alpha) * hard, rtol=1e-4)
    if alpha < 1:
        np.testing.assert_allclose(terms['supervised_loss'], hard, rtol=1e-4)
    same = np.argmax(logits, 1) == np.argmax(teacher(TEACHER_VIEWS).numpy(), 1)
    np.testing.assert_allclose(terms['teacher_agreement'], np.mean(same))
    assert set(method.metrics) == terms.keys() - {'loss'}


def test_only_the_student_learns_and_only_its_weights_are_saved(tmp_path) -> None:
    teacher = Teaching()
    method = distillation(teacher, distill_alpha=0.5)
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    trainer = Trainer(method, optimizer, Penalty(), TrainConfig())
    before = [variable.numpy() for variable in (*method.trainable_variables, teacher.kernel)]
    trainer.replica_step(batch(SOME_LABELS))
    after = [variable.numpy() for variable in (*method.trainable_variables, teacher.kernel)]
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed[-1] is False and changed[-2] is True
    names = {id(variable) for variable in method.variables}
    assert id(teacher.kernel) not in names
    path = Checkpoints(str(tmp_path), method.model, method, optimizer, 1).save(1)
    saved = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    assert list(teacher.kernel.shape) not in saved.values()


@pytest.mark.parametrize('replicas', [2])
def test_replicas_agree_with_one(replicas: int) -> None:
    """Labels are spread unevenly: three on the first replica, one on the second."""
    teacher = Teaching()
    labels = [0, 1, 2, 3, -1, -1]

    def terms_of(views: tf.Tensor, teachers: tf.Tensor, labels: tf.Tensor) -> dict:
        return loss_of(method, {'views': (views, teachers), 'label': labels}, training=False)

    strategy = mirrored(replicas)
    with strategy.scope():
        method = distillation(teacher, distill_alpha=0.3, distill_temperature=0.5)
    whole_batch = (VIEWS.numpy(), TEACHER_VIEWS.numpy(), np.array(labels, np.int32))
    shares = [np.split(part, replicas) for part in whole_batch]
    found = run_on_replicas(strategy, terms_of, *shares)
    method = distillation(teacher, distill_alpha=0.3, distill_temperature=0.5)
    whole = loss_of(method, batch(labels), training=False)
    for name, value in whole.items():
        np.testing.assert_allclose(np.mean([part[name] for part in found]), value, rtol=1e-5)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'teacher': None}, 'needs a --teacher'),
        ({'distill_alpha': 1.1}, '--distill_alpha must be at most 1; found 1.1'),
        ({'distill_alpha': -0.1}, '--distill_alpha must be at least 0'),
        ({'distill_temperature': 0.0}, '--distill_temperature must be greater than 0; found 0.0'),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        LearningConfig(**{'train_mode': 'distill', 'teacher': 't', **settings})
