"""The learning rate meets the published program's figures, eagerly and in a graph."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import GOLDEN
from tf2 import schedules
from tf2.config import OptimizerConfig, TrainConfig

CASES = json.loads((GOLDEN / 'learning_rate.json').read_text())


def _configs(case: dict) -> tuple[OptimizerConfig, TrainConfig]:
    optimizer = OptimizerConfig(
        learning_rate=case['learning_rate'],
        learning_rate_scaling=case['learning_rate_scaling'],
        warmup_epochs=case['warmup_epochs'],
    )
    train = TrainConfig(
        train_batch_size=case['train_batch_size'], train_epochs=case['train_epochs']
    )
    return optimizer, train


@pytest.mark.smoke
@pytest.mark.parametrize('case', CASES)
def test_golden(case: dict) -> None:
    optimizer, train = _configs(case)
    assert schedules.train_steps(case['num_examples'], train) == case['train_steps']
    schedule = schedules.build(optimizer, train, case['num_examples'])
    in_graph = tf.function(schedule)
    for step, expected in case['lr'].items():
        eager = schedule(int(step))
        assert eager.dtype == tf.float32
        assert eager.shape == ()
        np.testing.assert_allclose(eager, expected, rtol=1e-6, atol=1e-8)
        graph = in_graph(tf.constant(int(step), tf.int64))
        np.testing.assert_allclose(graph, expected, rtol=1e-6, atol=1e-8)


def test_train_steps_given() -> None:
    assert schedules.train_steps(1000, TrainConfig(train_steps=7)) == 7


def test_train_steps_of_tiny_data() -> None:
    assert schedules.train_steps(3, TrainConfig(train_batch_size=512, train_epochs=1)) == 1


@pytest.mark.parametrize(
    ('epochs', 'examples', 'batch', 'expected'),
    [(10, 1281167, 512, 25022), (0.5, 1000, 16, 31), (0, 1000, 16, 0), (0.01, 100, 512, 0)],
)
def test_warmup_steps(epochs: float, examples: int, batch: int, expected: int) -> None:
    assert schedules.warmup_steps(examples, epochs, batch) == expected


@pytest.mark.parametrize(('warmup', 'total'), [(0, 1), (5, 5), (9, 5), (0, 10), (3, 10)])
def test_follows_the_formula(warmup: int, total: int) -> None:
    def slow(step: int) -> float:
        if step < warmup:
            return 0.8 * step / warmup
        progress = min((step - warmup) / max(total - warmup, 1), 1)
        return 0.4 * (1 + math.cos(math.pi * progress))

    for step in range(15):
        rate = schedules.warmup_cosine(step, peak=0.8, warmup_steps=warmup, total_steps=total)
        np.testing.assert_allclose(rate, slow(step), rtol=1e-5, atol=1e-7)


def test_optimizer_reads_the_rate_of_the_update_it_makes() -> None:
    schedule = schedules.WarmupCosine(peak=1.0, warmup_steps=2, total_steps=4)
    variable = tf.Variable(0.0)
    optimizer = tf.keras.optimizers.SGD(schedule)
    moved = []
    for _ in range(3):
        optimizer.apply_gradients([(tf.constant(-1.0), variable)])
        moved.append(float(variable))
    np.testing.assert_allclose(moved, [0.0, 0.5, 1.5])


def test_config_round_trip() -> None:
    schedule = schedules.WarmupCosine(peak=1.0, warmup_steps=2, total_steps=4)
    copy = schedules.WarmupCosine.from_config(schedule.get_config())
    assert float(copy(3)) == float(schedule(3))


def test_unknown_scaling() -> None:
    with pytest.raises(ValueError, match='linear or sqrt'):
        schedules.peak_learning_rate(0.1, 256, 'cubic')


def test_golden_drops_and_cosine_of_moco() -> None:
    """Epochs, rates with drops at epochs 120 and 160, and rates along a cosine, of 200 epochs."""
    train = TrainConfig(train_batch_size=10, train_epochs=200)
    epoch, examples = 5000, 50_000
    for name, column in (('0.6:0.1,0.8:0.01', 1), ('cosine', 2)):
        optimizer = OptimizerConfig(
            learning_rate=0.03 * 25.6, warmup_epochs=0.0, learning_rate_schedule=name
        )
        schedule = schedules.build(optimizer, train, examples)
        for row in np.load(GOLDEN / 'methods' / 'schedules.npz')['moco_epoch_step_cos']:
            found = schedule(int(row[0]) * epoch)
            np.testing.assert_allclose(found, row[column], rtol=1e-4, atol=1e-7)


def test_drops_after_a_warm_up() -> None:
    schedule = schedules.WarmupDrops(2.0, 4, 20, drops=((0.5, 0.1), (0.75, 0.0)))
    found = [float(schedule(step)) for step in (0, 1, 4, 9, 10, 14, 15, 30)]
    np.testing.assert_allclose(found, [0, 0.5, 2, 2, 0.2, 0.2, 0, 0], rtol=1e-6)
    schedule.ahead = 5
    assert float(schedule(5)) == pytest.approx(0.2)


@pytest.mark.parametrize(('batch', 'frozen'), [(4096, 313), (256, 5005)])
def test_an_epoch_has_as_many_steps_as_the_published_runs_froze_prototypes(
    batch: int, frozen: int
) -> None:
    """SwAV's program gives that number of steps for ImageNet."""
    done = [
        float(schedules.epochs(tf.constant(step), num_examples=1_281_167, batch_size=batch))
        for step in (0, frozen - 1, frozen)
    ]
    assert done[0] == 0 and done[1] < 1 <= done[2]


@pytest.mark.parametrize(
    'text', ['linear', '0.5', '0.5:2', '0.6:0.1,0.4:0.01', '1:0.1', '0:0.1', '0.5:-1', '0.5:nan']
)
def test_an_unknown_schedule_is_refused(text: str) -> None:
    with pytest.raises(UserError, match='--learning_rate_schedule must be cosine, or pairs'):
        OptimizerConfig(learning_rate_schedule=text)
