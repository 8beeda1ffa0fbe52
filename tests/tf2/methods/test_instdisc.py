"""InstDisc: the published figures of losses, Z and bank, and what its state follows."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from app.capacity import Devices, check_fits
from app.config.resolution import resolve
from app.config.schema import to_values
from app.presets import PRESETS
from app.resuming import History, check_changes
from common.errors import UserError
from tests.support import GOLDEN, mirrored, on_replicas, relative_error, run_eagerly
from tests.tf2.methods.golden_steps import INPUTS, dense_encoder
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.methods import instdisc
from tf2.methods.instdisc import InstDisc
from tf2.methods.memory import Bank
from tf2.models.encoder import SimCLRModel, build_model
from tf2.trainer import Penalty, Trainer


@pytest.fixture(autouse=True, scope='module')
def small_encoder() -> Iterator[None]:
    with dense_encoder(10, last_relu=True):
        yield


FIGURES = dict(np.load(GOLDEN / 'methods' / 'instdisc.npz'))
N, D, K, B = (int(FIGURES[name]) for name in 'NDKB')
LOSS = {'method': 'instdisc', 'temperature': 0.07, 'bank_negatives': K}
SOFTMAX = {**LOSS, 'bank_loss': 'softmax'}


def method_of(examples: int = N, width: int = D, classes: int | None = None, **options: Any) -> Any:
    tf.keras.utils.set_random_seed(0)
    config = ModelConfig(backbone='dense', proj_out_dim=width, num_proj_layers=1)
    model = SimCLRModel(
        config, 1, classes, make_head=InstDisc.projection_head, detach_classifier=True
    )
    return InstDisc(build_model(model), LearningConfig(**{**LOSS, **options}), examples=examples)


def steps_of(replicas: int, names: str = '123', eager: bool = False, **options: Any) -> Any:
    """The method, and loss, gradient, Z and each replica's bank after each golden step."""
    strategy = mirrored(replicas)
    with strategy.scope():
        method = method_of(**options)
        method.bank.rows.assign(FIGURES['bank0'])

    def step(features: tf.Tensor, index: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        batch = {'index': index, 'label': tf.fill(tf.shape(index), -1)}
        targets = rows if method.config.bank_negatives else None
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = method.loss({'features': features}, targets, batch)['loss']
            share = loss / replicas
        method.after_update({'features': features}, targets, batch, tf.constant(0))
        gradient = tape.gradient(share, features)
        return loss, gradient, tf.identity(method.z), tf.convert_to_tensor(method.bank.rows)

    found, run = [], on_replicas(strategy, step)
    for i in names:
        inputs = (FIGURES[f'f{i}'].astype(np.float32), FIGURES[f'y{i}'], FIGURES[f'idx{i}'])
        if eager:
            with strategy.scope():
                results = strategy.run(step, tuple(map(tf.constant, inputs)))
            parts = [[part.numpy() for part in results]]
        else:
            parts = run(*(np.split(part, replicas) for part in inputs))
        losses, gradients, zs, banks = zip(*parts, strict=True)
        found.append((np.mean(losses), np.concatenate(gradients), zs[0], banks))
    return method, found


# --- published figures


@pytest.mark.smoke
@pytest.mark.parametrize(('replicas', 'eager'), [(1, True), (1, False), (2, False)])
def test_golden_nce(replicas: int, eager: bool) -> None:
    _, found = steps_of(replicas, eager=eager)
    for i, (loss, gradient, z, banks) in zip('123', found, strict=True):
        np.testing.assert_allclose(loss, FIGURES[f'loss{i}'], rtol=1e-5)
        assert relative_error(gradient, FIGURES[f'grad{i}']) < 1e-5
        np.testing.assert_allclose(z, FIGURES['Z'], rtol=1e-5)  # that of the first batch
        for bank in banks:
            np.testing.assert_allclose(bank, FIGURES[f'bank{i}'], atol=1e-6)


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize(('name', 'negatives'), [('full', 0), ('sm', K)])
def test_golden_softmax(name: str, negatives: int, replicas: int) -> None:
    _, found = steps_of(replicas, '1', bank_loss='softmax', bank_negatives=negatives)
    loss, gradient, z, banks = found[0]
    np.testing.assert_allclose(loss, FIGURES[f'{name}_loss'], rtol=1e-5)
    assert relative_error(gradient, FIGURES[f'{name}_grad']) < 1e-5
    assert z == 0
    for bank in banks:
        np.testing.assert_allclose(bank, FIGURES[f'{name}_bank'], atol=1e-6)


@pytest.mark.parametrize('replicas', [1, 2])
def test_golden_proximal_term(replicas: int) -> None:
    weight = float(FIGURES['lam'])
    _, with_it = steps_of(replicas, '1', proximal_weight=weight)
    expected = FIGURES['loss1'] + FIGURES['prox_loss']
    np.testing.assert_allclose(with_it[0][0], expected, rtol=1e-5)
    assert relative_error(with_it[0][1], FIGURES['grad1'] + FIGURES['prox_grad']) < 1e-5


def test_golden_probabilities_either_way_of_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = tf.constant(FIGURES['f1'], tf.float32)
    bank = tf.constant(FIGURES['bank0'], tf.float32)
    found = [instdisc.similarities(features, bank, FIGURES['idx1'])]  # through all products
    wide = tf.concat([bank] * 10, 0)  # more rows than numbers in those drawn
    found.append(instdisc.similarities(features, wide, FIGURES['idx1'] + 3 * N))
    for similar in found:
        probabilities = np.exp(similar / 0.07) / FIGURES['Z']
        assert relative_error(probabilities, FIGURES['prob1']) < 1e-5


# --- the bank


@pytest.mark.parametrize('replicas', [1, 2])
def test_an_image_that_is_twice_in_a_batch_has_its_last_feature(replicas: int) -> None:
    strategy = mirrored(replicas)
    with strategy.scope():
        bank = Bank(5, 3)
    start = bank.rows.numpy()
    features = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]

    def update(index: tf.Tensor, local: tf.Tensor) -> tf.Tensor:
        bank.update(index, local, 0.25)
        return tf.convert_to_tensor(bank.rows)

    index = np.array([4, 1, 4, 0])
    copies = on_replicas(strategy, update)(np.split(index, replicas), np.split(features, replicas))
    expected = start.copy()
    for place, feature in ((1, 1), (4, 2), (0, 3)):  # not the first feature of image 4
        mixed = 0.25 * start[place] + 0.75 * features[feature]
        expected[place] = mixed / np.linalg.norm(mixed)
    for rows in copies:
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_rows_start_with_length_1_on_average() -> None:
    lengths = np.linalg.norm(Bank(2000, 16).rows, axis=1)
    assert np.sqrt(np.mean(lengths**2)) == pytest.approx(1, rel=0.02)
    assert lengths.std() > 0.05


# --- rows drawn


@pytest.mark.parametrize('replicas', [1, 2])
def test_rows_are_drawn_anew_and_uniformly(replicas: int) -> None:
    strategy = mirrored(replicas)
    with strategy.scope():
        method = method_of(examples=50, bank_negatives=200)
    index = np.arange(8)

    def draw(index: tf.Tensor) -> tf.Tensor:
        rows = method.targets({'index': index})
        method.drawn.assign_add(1)
        return rows

    run = on_replicas(strategy, draw)
    first, second = (np.concatenate(run(np.split(index, replicas))) for _ in range(2))
    np.testing.assert_array_equal(first[:, 0], index)
    assert (first[:, 1:] != second[:, 1:]).mean() > 0.9
    assert len({tuple(row) for row in first[:, 1:]}) == 8
    counts = np.bincount(np.concatenate([first, second])[:, 1:].ravel(), minlength=50)
    assert counts.size == 50 and abs(counts - 64).max() < 5 * 8
    assert DRAWN.setdefault('first', first.tolist()) == first.tolist()  # on any number of replicas


DRAWN: dict[str, list] = {}


# --- training


def trained(replicas: int = 1, *, steps: int = 3, jit_compile: bool = False) -> tuple[Trainer, Any]:
    strategy = mirrored(replicas)
    with strategy.scope():
        method = method_of(24, 6, 3)
        optimizer = tf.keras.optimizers.legacy.SGD(0.01)
        train = TrainConfig(train_batch_size=8, jit_compile=jit_compile)
        trainer = Trainer(method, optimizer, Penalty(), train)
    trainer.losses = run(trainer, strategy, 0, steps)
    return trainer, method


def run(trainer: Trainer, strategy: Any, first: int, steps: int) -> list[np.ndarray]:
    images = np.random.default_rng(0).random((24, *INPUTS), np.float32)
    rows = {'views': (images,), 'label': np.arange(24, dtype=np.int32) % 3, 'index': np.arange(24)}
    data = tf.data.Dataset.from_tensor_slices(rows).batch(8, drop_remainder=True).skip(first)
    iterator = iter(strategy.experimental_distribute_dataset(data))
    return [trainer._run_steps(iterator, tf.constant(1))[0].numpy() for _ in range(steps)]


def test_replicas_and_a_compiled_step_give_what_one_replica_gives() -> None:
    with run_eagerly():
        alone, method = trained()
    for other, also in (trained(2), trained(jit_compile=True)):
        np.testing.assert_allclose(other.losses, alone.losses, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(also.bank.rows, method.bank.rows, atol=2e-3)
        np.testing.assert_allclose(also.z.numpy(), method.z.numpy(), rtol=1e-3)


def test_a_restored_run_goes_on_exactly(eagerly: None, tmp_path: pathlib.Path) -> None:
    whole, expected = trained()
    first, method = trained(steps=2)
    path = tf.train.Checkpoint(objective=method, optimizer=first._optimizer).save(
        str(tmp_path / 'c')
    )
    again, restored = trained(steps=0)
    restored.seed.assign(1)
    checkpoint = tf.train.Checkpoint(objective=restored, optimizer=again._optimizer)
    checkpoint.restore(path).assert_existing_objects_matched()
    losses = [*first.losses, *run(again, mirrored(1), 2, 1)]
    np.testing.assert_array_equal(losses, whole.losses)
    for found, wanted in zip(restored.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_optimizer_moves_the_model_and_the_loss_changes_no_state() -> None:
    method = method_of(24, 6, 3, proximal_weight=1.0)
    images = tf.random.stateless_uniform([8, *INPUTS], [1, 2])
    batch = {
        'views': (images,),
        'label': tf.zeros([8], tf.int32),
        'index': tf.range(8, dtype=tf.int64),
    }
    trained = {variable.ref() for variable in method.trainable_variables}
    assert trained == {variable.ref() for variable in method.model.trainable_variables}
    state = [method.bank.rows, method.z, method.drawn, method.seed]
    before = [value.numpy() for value in state]
    with tf.GradientTape() as tape:
        tape.watch([method.bank.rows, method.z])
        targets = method.targets(batch)
        loss = method.loss(method.forward(batch['views'], True), targets, batch)['loss']
    gradients = tape.gradient(loss, [method.bank.rows, method.z, *method.trainable_variables])
    assert gradients[:2] == [None, None] and None not in gradients[2:]
    for value, old in zip(state, before, strict=True):
        np.testing.assert_array_equal(value, old)


# --- what is refused


def test_a_run_with_another_number_of_images_is_not_resumed() -> None:
    config = resolve({'method': 'instdisc', 'allow_changes': 'train_examples'}, PRESETS)
    history = History({**to_values(config), 'train_examples': 10})
    assert check_changes(config, 10, history).changes == ()
    with pytest.raises(UserError, match='holds a memory bank of 10 images; this run has 12'):
        check_changes(config, 12, history)


def test_a_bank_that_does_not_fit_is_refused_with_its_size() -> None:
    config = resolve({'preset': 'imagenet_instdisc'}, PRESETS)
    devices = Devices('CPU', 64 * 2**30)
    check_fits(config, devices, train_examples=1_281_167)
    with pytest.raises(UserError, match=r'must fit into memory.*memory bank 476\.8 GB'):
        check_fits(config, devices, train_examples=10**9)
