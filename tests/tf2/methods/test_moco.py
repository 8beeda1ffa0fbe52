"""MoCo: the published figures, its state, and which images a query and its key depend on."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.support import (
    GOLDEN,
    mirrored,
    on_replicas,
    relative_error,
    run_eagerly,
    run_on_replicas,
)
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.methods import METHODS, momentum
from tf2.methods.memory import Queue
from tf2.methods.moco import MoCo, deal, gather_up, info_nce
from tf2.models import BACKBONES, BackboneEntry
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.heads import DenseBN
from tf2.models.layers import Layer, Norm
from tf2.trainer import Penalty, Trainer

FIGURES = dict(np.load(GOLDEN / 'methods' / 'moco.npz'))
RUN = dict(np.load(GOLDEN / 'methods' / 'traj_moco.npz'))
STEPS = range(1, 5)


def floats(values: Any) -> tf.Tensor:
    return tf.constant(np.asarray(values), tf.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# --- loss and queue


@pytest.mark.smoke
@pytest.mark.parametrize('version', ['v1', 'v2'])
@pytest.mark.parametrize('graph', [False, True])
def test_golden_loss_gradient_and_queue(version: str, graph: bool) -> None:
    queue = Queue(int(FIGURES['K']), int(FIGURES['D']))
    queue.rows.assign(FIGURES['queue0'])

    def step(queries: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(queries)
            loss = info_nce(queries, keys, queue.rows, float(FIGURES[f'{version}_T'])).loss
        queue.enqueue(keys)
        return loss, tape.gradient(loss, queries)

    run = tf.function(step, autograph=False) if graph else step
    for i in STEPS:
        loss, gradient = run(floats(FIGURES[f'q{i}']), floats(unit(FIGURES[f'k{i}'])))
        np.testing.assert_allclose(loss, FIGURES[f'{version}_loss{i}'], rtol=1e-5)
        assert relative_error(gradient, FIGURES[f'{version}_gq{i}']) < 1e-5
        np.testing.assert_allclose(queue.rows, FIGURES[f'{version}_queue{i}'], atol=1e-6)
        assert int(queue.enqueued) % queue.size == FIGURES[f'{version}_ptr{i}']


def test_golden_queue_of_another_size_than_the_batch_wraps_around() -> None:
    queue = Queue(int(FIGURES['wrap_K']), int(FIGURES['D']))
    queue.rows.assign(FIGURES['wrap_queue0'])
    for i in STEPS:
        keys = floats(unit(FIGURES[f'k{i}']))
        loss = info_nce(floats(FIGURES[f'q{i}']), keys, queue.rows, 0.2).loss
        np.testing.assert_allclose(loss, FIGURES[f'wrap_loss{i}'], rtol=1e-5)
        queue.enqueue(keys)
        np.testing.assert_allclose(queue.rows, FIGURES[f'wrap_queue{i}'], atol=1e-6)
        assert int(queue.enqueued) % queue.size == FIGURES[f'wrap_ptr{i}']


def test_golden_loss_on_two_replicas_is_the_mean_of_theirs() -> None:
    def losses(queries: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(queries)
            loss = info_nce(queries, keys, floats(FIGURES['queue0']), 0.2).loss
            share = loss / 2
        return loss, tape.gradient(share, queries)

    shares = (np.split(rows.astype(np.float32), 2) for rows in (FIGURES['q1'], unit(FIGURES['k1'])))
    found = run_on_replicas(mirrored(2), losses, *shares)
    np.testing.assert_allclose(np.mean([r[0] for r in found]), FIGURES['v2_loss1'], rtol=1e-5)
    gradient = np.concatenate([result[1] for result in found])
    assert relative_error(gradient, FIGURES['v2_gq1']) < 1e-5


def test_golden_moving_average() -> None:
    copy, model = tf.Module(), tf.Module()
    copy.weight = tf.Variable(floats(FIGURES['ema_k0']))
    model.weight = tf.Variable(tf.zeros([16, 3]))
    for i in (1, 2, 3):
        model.weight.assign(FIGURES[f'ema_q{i}'])
        momentum.update_averages([copy], [model], float(FIGURES['ema_m']))
        np.testing.assert_allclose(copy.weight, FIGURES[f'ema_k{i}'], atol=1e-6)


def test_only_filled_rows_are_negatives_and_only_queries_get_a_gradient() -> None:
    queries, keys = floats(FIGURES['q1']), floats(unit(FIGURES['k1']))
    rows = floats(FIGURES['queue0'])
    with tf.GradientTape() as tape:
        tape.watch([queries, keys, rows])
        loss = info_nce(queries, keys, rows, 0.2, filled=tf.constant(5, tf.int64)).loss
    assert float(loss) == pytest.approx(float(info_nce(queries, keys, rows[:5], 0.2).loss))
    gradients = tape.gradient(loss, [queries, keys, rows])
    assert gradients[0] is not None and gradients[1:] == [None, None]
    alone = info_nce(queries, keys, rows, 0.2, filled=0)
    assert (float(alone.loss), float(alone.accuracy)) == (0.0, 1.0)


# --- trajectory


class Hidden(Layer):
    """The encoder of the golden trajectory: a dense layer and a ReLU on pixels in a row."""

    def __init__(self, config: ModelConfig, norm: Norm, image_size: int) -> None:
        super().__init__(dtype=norm.dtype)
        self.width = 10
        self.dense = tf.keras.layers.Dense(self.width)
        self.blocks = [[self.dense]]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        return {'final_avg_pool': tf.nn.relu(self.dense(tf.reshape(images, [-1, 6])))}


class Tower(Layer):
    """Two dense layers with batch normalization."""

    def __init__(self, config: ModelConfig, norm: Norm, image_size: int) -> None:
        super().__init__(dtype=norm.dtype)
        self.width = 8
        self.blocks = [[DenseBN(width, False, norm)] for width in (6, 8)]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        features = tf.reshape(images, [-1, 12])
        for (layer,) in self.blocks:
            features = layer(features, training=training)
        return {'final_avg_pool': features}


@pytest.fixture(autouse=True, scope='module')
def networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Hidden, Tower):
            entry = BackboneEntry(f'{__name__}:{kind.__name__}', 'tests.toys:count_blocks')
            patch.setitem(BACKBONES, kind.__name__, entry)
        yield


def method_of(backbone: str, parts: int = 1, replicas: int = 1, **options: Any) -> MoCo:
    tf.keras.utils.set_random_seed(0)
    config = ModelConfig(backbone=backbone, num_proj_layers=2, proj_out_dim=5)
    model = SimCLRModel(
        config, 8, None, make_head=MoCo.projection_head, replicas=replicas, norm_parts=parts
    )
    learning = LearningConfig(method='moco_v2', norm_parts=parts, **options)
    method = MoCo(build_model(model), learning)
    method.initialize()
    return method


def weights(model: SimCLRModel) -> dict[str, tf.Variable]:
    layers = {'l1': model.backbone.dense}
    layers |= dict(zip(('fc_0', 'fc_2'), model.projection_head.blocks, strict=True))
    layers = {name: getattr(layer, 'dense', layer) for name, layer in layers.items()}
    kernels = {f'{name}_weight': layer.kernel for name, layer in layers.items()}
    return kernels | {f'{name}_bias': layer.bias for name, layer in layers.items()}


def golden_batches() -> dict[str, Any]:
    views = tuple(
        np.concatenate([RUN[f'x{view}_{step}'] for step in range(5)]).reshape(-1, 1, 2, 3)
        for view in (1, 2)
    )
    return {'views': tuple(np.float32(v) for v in views), 'label': np.full(40, -1, np.int32)}


def golden_run(replicas: int) -> tuple[tf.distribute.Strategy, MoCo, Trainer]:
    """The start of the golden trajectory."""
    strategy = mirrored(replicas)
    with strategy.scope():
        method = method_of('Hidden', memory_size=24, temperature=0.2, momentum_encoder_decay=0.9)
        for key, variable in weights(method.model).items():
            variable.assign(RUN[f'q0_{key}'])
        method.initialize()
        method.memory.queue.rows.assign(RUN['queue0'])
        method.memory.queue.enqueued.assign(24)
        optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9, jit_compile=False)
        penalty = Penalty(1e-3, method.trainable_variables)
        trainer = Trainer(method, optimizer, penalty, TrainConfig(train_batch_size=8))
    return strategy, method, trainer


def steps_of(strategy: tf.distribute.Strategy, trainer: Trainer, which: slice) -> list[float]:
    rows = tf.nest.map_structure(lambda v: v[8 * which.start : 8 * which.stop], golden_batches())
    data = tf.data.Dataset.from_tensor_slices(rows).batch(8, drop_remainder=True)
    iterator = iter(strategy.experimental_distribute_dataset(data))
    place = trainer.metrics.index('contrast_loss')
    count = which.stop - which.start
    return [trainer._run_steps(iterator, tf.constant(1))[0].numpy()[place] for _ in range(count)]


@pytest.mark.smoke
@pytest.mark.parametrize('replicas', [1, 2])
def test_golden_trajectory(replicas: int) -> None:
    strategy, method, trainer = golden_run(replicas)
    losses = steps_of(strategy, trainer, slice(0, 4))
    # The published program averages at the start of a step what is averaged at its end here.
    for key, variable in weights(method.memory.encoder).items():
        np.testing.assert_allclose(variable, RUN[f'k5_{key}'], rtol=5e-4, atol=5e-5)
    losses += steps_of(strategy, trainer, slice(4, 5))
    np.testing.assert_allclose(losses, RUN['loss'], rtol=1e-4)
    for key, variable in weights(method.model).items():
        np.testing.assert_allclose(variable, RUN[f'q5_{key}'], rtol=5e-4, atol=5e-5)
    queue = method.memory.queue
    for rows in strategy.experimental_local_results(queue.rows):
        np.testing.assert_allclose(rows, RUN['queue5'], rtol=5e-4, atol=5e-5)
    assert queue.enqueued.numpy() % 24 == RUN['ptr5']


def test_a_restored_run_goes_on_exactly(eagerly: None, tmp_path: pathlib.Path) -> None:
    strategy, whole, trainer = golden_run(1)
    expected = steps_of(strategy, trainer, slice(0, 5))
    strategy, method, trainer = golden_run(1)
    losses = steps_of(strategy, trainer, slice(0, 2))
    saved = tf.train.Checkpoint(objective=method, optimizer=trainer._optimizer)
    path = saved.save(str(tmp_path / 'ckpt'))
    strategy, again, trainer = golden_run(1)
    restored = tf.train.Checkpoint(objective=again, optimizer=trainer._optimizer).restore(path)
    restored.assert_existing_objects_matched()
    losses += steps_of(strategy, trainer, slice(2, 5))
    assert losses == expected
    for found, wanted in zip(again.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_optimizer_moves_the_model_and_nothing_else() -> None:
    _, method, _ = golden_run(1)
    trained = {variable.ref() for variable in method.trainable_variables}
    assert trained == {variable.ref() for variable in method.model.trainable_variables}
    memory = [*method.memory.encoder.trainable_variables, method.memory.queue.rows]
    assert not trained & {variable.ref() for variable in memory}
    batch = tf.nest.map_structure(lambda value: tf.constant(value[:8]), golden_batches())
    with tf.GradientTape() as tape:
        tape.watch(memory)
        targets = method.targets(batch)
        loss = method.loss(method.forward(batch['views'], True), targets, batch)['loss']
    gradients = tape.gradient(loss, [*memory, *method.model.trainable_variables])
    assert gradients[: len(memory)] == [None] * len(memory)
    assert None not in gradients[len(memory) :]
    before = [variable.numpy() for variable in method.variables]
    method.loss(method.forward(batch['views'], True), method.targets(batch), batch)
    for variable, value in zip(method.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


# --- statistics over parts


@pytest.mark.parametrize('replicas', [1, 2, 4])
@pytest.mark.parametrize('parts', [2, 4])
def test_rows_are_dealt_and_gathered_up(replicas: int, parts: int) -> None:
    rows = np.arange(16, dtype=np.float32)[:, None]
    expected = np.concatenate([rows[part::parts] for part in range(parts)])
    found = run_on_replicas(
        mirrored(replicas),
        lambda local: (deal(local, parts), gather_up(deal(local, parts), parts)),
        np.split(rows, replicas),
    )
    np.testing.assert_array_equal(np.concatenate([dealt for dealt, _ in found]), expected)
    np.testing.assert_array_equal(np.concatenate([again for _, again in found]), rows)


def dependence(method: MoCo, strategy: tf.distribute.Strategy, images: np.ndarray) -> tuple:
    """[16, 16] bool each: does the query, and the key, of a row depend on the image of another?"""
    replicas = strategy.num_replicas_in_sync

    def rows(local: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = {'views': (local, local)}
        (queries,) = method.forward(batch['views'], True)['proj_head_output']
        return queries, method.targets(batch)

    run = on_replicas(strategy, rows)

    def both(changed: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate(part) for part in zip(*run(np.split(changed, replicas)))]

    plain, found = both(images), []
    for row in range(len(images)):
        changed = images.copy()
        changed[row] = images[row, ::-1] + 1
        pairs = zip(both(changed), plain, strict=True)
        found.append([np.abs(new - old).max(-1) > 1e-5 for new, old in pairs])
    return tuple(np.array(found).transpose(1, 2, 0))


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize('parts', [1, 4])
def test_statistics_do_not_tell_a_query_its_key(replicas: int, parts: int) -> None:
    """With parts, a query and its key depend on no other image in common."""
    images = np.random.default_rng(0).random((16, 2, 2, 3), np.float32)
    strategy = mirrored(replicas)
    with strategy.scope():
        method = method_of('Tower', parts, replicas, memory_size=16)
    queries, keys = dependence(method, strategy, images)
    if parts == 1:  # statistics of the whole batch: the leak
        assert queries.all() and keys.all()
        return
    np.testing.assert_array_equal(queries.sum(1), np.full(16, 4))
    np.testing.assert_array_equal(keys.sum(1), np.full(16, 4))
    np.testing.assert_array_equal(queries & keys, np.eye(16, dtype=bool))


def trained(replicas: int, *, jit_compile: bool = False) -> tuple[np.ndarray, list[np.ndarray]]:
    """Losses of three steps with statistics over parts, and all variables afterwards."""
    strategy = mirrored(replicas)
    with strategy.scope():
        method = method_of('Tower', 4, replicas, memory_size=32, momentum_encoder_decay=0.5)
        optimizer = tf.keras.optimizers.legacy.SGD(0.01)
        train = TrainConfig(train_batch_size=16, jit_compile=jit_compile)
        trainer = Trainer(method, optimizer, Penalty(), train)
    views = np.random.default_rng(0).random((2, 48, 2, 2, 3), np.float32)
    rows = {'views': tuple(views), 'label': np.full(48, -1, np.int32)}
    data = tf.data.Dataset.from_tensor_slices(rows).batch(16, drop_remainder=True)
    iterator = iter(strategy.experimental_distribute_dataset(data))
    losses = [trainer._run_steps(iterator, tf.constant(1))[0].numpy()[0] for _ in range(3)]
    return np.array(losses), [variable.numpy() for variable in method.variables]


def test_replicas_and_a_compiled_step_give_what_one_replica_gives() -> None:
    with run_eagerly():
        losses, variables = trained(1)
    assert losses[0] == 0 and min(losses[1:]) > 1  # at first the queue is empty
    for found in (trained(2), trained(1, jit_compile=True)):
        np.testing.assert_allclose(found[0], losses, rtol=1e-4, atol=1e-6)
        for value, wanted in zip(found[1], variables, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-4)


def test_each_version_has_its_head_and_temperature() -> None:
    heads = {'moco_v1': [(16, 8)], 'moco_v2': [(16, 16), (16, 8)]}
    for name, shapes in heads.items():
        defaults = METHODS[name].defaults
        names = {field.name for field in dataclasses.fields(ModelConfig)}
        own = {key: value for key, value in defaults.items() if key in names}
        head = MoCo.projection_head(ModelConfig(**{**own, 'proj_out_dim': 8}), 16, Norm())
        outputs = head(tf.random.stateless_normal([2, 16], [1, 2]))
        assert [tuple(block.dense.kernel.shape) for block in head.blocks] == shapes
        assert len(head.variables) == 2 * len(shapes)  # kernels and biases, no normalization
        assert all((hidden.numpy() >= 0).all() for hidden in outputs[1:-1])
        assert (outputs[-1].numpy() < 0).any()
