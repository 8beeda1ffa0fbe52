"""The memory: order of the queue, weights of the momentum encoder, the same on all replicas."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import loss_of, mirrored, on_replicas, relative_error, run_eagerly
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.methods.memory import Memory, Queue
from tf2.methods.simclr import SimCLR
from tf2.models.encoder import SimCLRModel, build_model
from tf2.trainer import Penalty, Trainer

pytestmark = pytest.mark.usefixtures('plain')

CONFIG = ModelConfig(resnet_depth=18, width_multiplier=0.125, proj_out_dim=6)
SIZE = 12
BATCH = 8


def objective_of(replicas: int = 1, precision: str = 'float32', **options: object) -> SimCLR:
    """One that may be trained."""
    tf.keras.utils.set_random_seed(0)
    model = build_model(
        SimCLRModel(CONFIG, 8, 3, replicas=replicas, precision=precision, detach_classifier=True)
    )
    method = SimCLR(model, LearningConfig(**{'memory_size': SIZE, **options}))
    method.initialize()
    return method


def batches(steps: int) -> dict[str, object]:
    """Views and labels of as many global batches, one after another."""
    views = np.random.default_rng(0).random((2, steps * BATCH, 8, 8, 3), np.float32)
    return {'views': tuple(views), 'label': np.arange(steps * BATCH, dtype=np.int32) % 3}


def first_batch() -> dict[str, object]:
    return tf.nest.map_structure(tf.constant, batches(1))


def values(variables: object) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


# --- the queue


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 9), shares=st.lists(st.integers(1, 9), max_size=8))
def test_the_newest_rows_take_the_places_of_the_oldest(size: int, shares: list[int]) -> None:
    queue, expected, next_row = Queue(size, 2), np.zeros([size, 2]), 0
    for count in (min(share, size) for share in shares):
        rows = np.arange(next_row, next_row + count)
        queue.enqueue(tf.constant(np.stack([rows, -rows], 1), tf.float32))
        for row in rows:
            expected[row % size] = row, -row
        next_row += count
        np.testing.assert_array_equal(queue.rows, expected)
        assert int(queue.enqueued) == next_row
        assert int(queue.filled()) == min(next_row, size)
    # What is left are the newest ones.
    kept = sorted(queue.rows.numpy()[: int(queue.filled()), 0])
    assert kept == list(range(max(0, next_row - size), next_row))


@pytest.mark.parametrize('replicas', [2, 4])
def test_the_queue_is_the_same_on_all_replicas(replicas: int) -> None:
    strategy = mirrored(replicas)
    with strategy.scope():
        queue = Queue(12, 3)
    alone = Queue(12, 3)
    rows = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)

    def enqueue(local: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        queue.enqueue(local)
        return queue.rows.read_value(), queue.filled()

    run = on_replicas(strategy, enqueue)
    for batch, filled in zip(rows, (8, 12), strict=True):
        alone.enqueue(tf.constant(batch))
        for found, count in run(np.split(batch, replicas)):
            np.testing.assert_array_equal(found, alone.rows)
            assert count == filled


# --- the momentum encoder


def test_it_starts_equal_to_the_model() -> None:
    method = objective_of()
    model, encoder = method.model, method.memory.encoder
    for variable in model.variables:
        variable.assign_add(tf.random.stateless_uniform(variable.shape, [1, 2]))
    assert encoder.classifier is None
    images = first_batch()['views'][0]
    differing = encoder(images)['proj_head_output'] - model(images)['proj_head_output']
    assert np.abs(differing).max() > 0
    method.initialize()
    for training in (False, True):
        expected = model(images, training=training)['proj_head_output']
        found = encoder(images, training=training)['proj_head_output']
        np.testing.assert_array_equal(found, expected)


@pytest.mark.smoke
@pytest.mark.parametrize('decay', [0.0, 0.9, 0.999])
def test_its_weights_are_moving_averages(decay: float) -> None:
    method = objective_of(momentum_encoder_decay=decay)
    encoder, model = method.memory.encoder, method.model
    parts = [(model.backbone, encoder.backbone), (model.projection_head, encoder.projection_head)]
    expected = [values(own.trainable_variables) for _, own in parts]
    statistics = values(encoder.non_trainable_variables)
    for step in range(3):
        for variable in model.variables:
            variable.assign_add(tf.random.stateless_normal(variable.shape, [step, 3]))
        method.memory.update_encoder(model)
        for (part, _), means in zip(parts, expected, strict=True):
            for index, weight in enumerate(values(part.trainable_variables)):
                means[index] = decay * means[index].astype(np.float64) + (1 - decay) * weight
    for (_, own), means in zip(parts, expected, strict=True):
        for found, mean in zip(values(own.trainable_variables), means, strict=True):
            np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)
    # Its batch statistics are its own.
    for before, after in zip(statistics, values(encoder.non_trainable_variables), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize('hidden_norm', [True, False])
def test_a_step_enqueues_the_projections_of_its_second_views(hidden_norm: bool) -> None:
    method = objective_of(hidden_norm=hidden_norm)
    batch = first_batch()
    statistics = values(method.model.non_trainable_variables)
    keys = method.memory.encoder(batch['views'][1], training=True)['proj_head_output']
    before = values(method.memory.encoder.non_trainable_variables)
    np.testing.assert_array_equal(  # only the momentum encoder's own move
        np.concatenate(values(method.model.non_trainable_variables)), np.concatenate(statistics)
    )
    targets = method.targets(batch)
    method.loss(method.forward(batch['views'], True), targets, batch)
    assert int(method.memory.queue.enqueued) == 0  # the loss changes nothing
    method.after_update(None, targets, batch, tf.constant(0))
    expected = keys / np.linalg.norm(keys, axis=1, keepdims=True) if hidden_norm else keys
    np.testing.assert_allclose(method.memory.queue.rows[:BATCH], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(method.memory.queue.rows[BATCH:], np.zeros([SIZE - BATCH, 6]))
    after = values(method.memory.encoder.non_trainable_variables)
    assert any((old != new).any() for old, new in zip(before, after, strict=True))


@pytest.mark.smoke
def test_the_loss_counts_earlier_batches_and_not_its_own() -> None:
    remembering, plain = objective_of(), objective_of(memory_size=0)
    batch = first_batch()
    losses = [float(loss_of(remembering, batch)['contrast_loss'])]
    remembering.memory.enqueue(remembering.targets(batch))
    losses.append(float(loss_of(remembering, batch)['contrast_loss']))
    expected = float(loss_of(plain, batch, training=True)['contrast_loss'])
    assert losses[0] == expected
    assert losses[1] > expected + 0.1


def test_nothing_of_the_memory_is_trained() -> None:
    method = objective_of()
    trained = {id(variable) for variable in method.trainable_variables}
    assert not trained & {id(variable) for variable in method.memory.encoder.variables}
    with tf.GradientTape(persistent=True) as tape:
        terms = loss_of(method, first_batch())
    assert sorted(terms) == sorted(['loss', *method.metrics])
    memory = [*method.memory.encoder.trainable_variables, method.memory.queue.rows]
    tape.watch(memory)
    assert all(gradient is None for gradient in tape.gradient(terms['loss'], memory))
    assert None not in tape.gradient(terms['loss'], method.trainable_variables)
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9, jit_compile=False)
    Trainer(method, optimizer, Penalty(), TrainConfig())
    assert len(optimizer.momentums) == len(method.trainable_variables)


def saved_keys(method: SimCLR, folder: pathlib.Path) -> set[str]:
    checkpoint = tf.train.Checkpoint(model=method.model, objective=method)
    return {name for name, _ in tf.train.list_variables(checkpoint.write(str(folder / 'ckpt')))}


def test_only_a_memory_adds_to_the_checkpoint(tmp_path: pathlib.Path) -> None:
    plain = saved_keys(objective_of(memory_size=0), tmp_path)
    keys = saved_keys(objective_of(), tmp_path)
    assert not any(name.startswith('objective/') for name in plain)
    assert plain < keys
    assert all(name.startswith('objective/memory/') for name in keys - plain)
    queue = {name.split('/')[3] for name in keys if name.startswith('objective/memory/queue/')}
    assert queue == {'rows', 'enqueued'}


@pytest.mark.parametrize('mode', ['none', 'linear'])
def test_the_queue_is_as_wide_as_the_projection(mode: str) -> None:
    config = dataclasses.replace(CONFIG, proj_head_mode=mode)
    model = build_model(SimCLRModel(config, 8, None))
    memory = Memory(model, LearningConfig(memory_size=4))
    memory.enqueue(memory.keys(tf.zeros([4, 8, 8, 3])))
    assert memory.queue.rows.shape == [4, {'none': 64, 'linear': 6}[mode]]


# --- training


def trained(steps: int, replicas: int = 1, precision: str = 'float32', **options: bool) -> dict:
    """Loss, queue and momentum encoder after as many steps, from the same start."""
    strategy = mirrored(replicas)
    with strategy.scope():
        method = objective_of(replicas, precision, momentum_encoder_decay=0.5)
        optimizer = tf.keras.optimizers.legacy.SGD(0.001)
        trainer = Trainer(method, optimizer, Penalty(), TrainConfig(**options))
    start = values(method.memory.encoder.variables)
    dataset = tf.data.Dataset.from_tensor_slices(batches(steps)).batch(BATCH, drop_remainder=True)
    iterator = iter(strategy.experimental_distribute_dataset(dataset))
    metrics, done, _ = trainer._run_steps(iterator, tf.constant(steps))
    assert int(done) == steps
    queue = method.memory.queue
    copies = [value.numpy() for value in strategy.experimental_local_results(queue.rows)]
    for copy in copies:
        np.testing.assert_array_equal(copy, copies[0])
    return {
        'loss': metrics[trainer.metrics.index('contrast_loss')].numpy(),
        'queue': copies[0],
        'enqueued': queue.enqueued.numpy(),
        'encoder': values(method.memory.encoder.variables),
        'start': start,
    }


@pytest.fixture(scope='module')
def alone(plain: None) -> dict:
    with run_eagerly():
        return trained(3)


def check_same(found: dict, expected: dict, tolerance: float) -> None:
    assert found['enqueued'] == expected['enqueued'] == 3 * BATCH
    np.testing.assert_allclose(found['loss'], expected['loss'], rtol=tolerance)
    assert relative_error(found['queue'], expected['queue']) < tolerance
    for weight, wanted, start in zip(
        found['encoder'], expected['encoder'], expected['start'], strict=True
    ):
        assert (wanted != start).any()
        assert np.abs(weight - wanted).max() < tolerance * (1 + np.abs(wanted).max())


def test_replicas_update_the_memory_as_one(alone: dict) -> None:
    check_same(trained(3, replicas=2), alone, 1e-3)


def test_a_compiled_step_updates_the_memory_too(alone: dict) -> None:
    check_same(trained(3, jit_compile=True), alone, 1e-3)


def test_mixed_precision_keeps_the_memory_in_float32(alone: dict) -> None:
    found = trained(3, precision='bfloat16')
    assert found['queue'].dtype == np.float32
    assert all(weight.dtype == np.float32 for weight in found['encoder'])
    np.testing.assert_allclose(found['loss'], alone['loss'], rtol=0.1)
    # Batch statistics of eight noise images magnify rounding.
    assert np.mean(np.sum(found['queue'] * alone['queue'], axis=1)) > 0.7
    np.testing.assert_allclose(np.linalg.norm(found['queue'], axis=1), 1, rtol=1e-5)
