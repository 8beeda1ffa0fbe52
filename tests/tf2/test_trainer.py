"""The training loop: where it stops, what it keeps, that it resumes, and what replicas compute."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.interruption import Interrupted, Stop
from common.views import CONTRAST
from data.batches import train_batches
from data.config import DataConfig
from data.sources import open_source
from tests.support import mirrored
from tf2 import distribution, schedules
from tf2 import trainer as trainer_module
from tf2.checkpoints import Checkpoints
from tf2.config import LearningConfig, ModelConfig, OptimizerConfig, TrainConfig
from tf2.methods.base import Batch, Method, Nest, Terms
from tf2.methods.simclr import SimCLR
from tf2.models.encoder import SimCLRModel, build_model
from tf2.optimizers import builder, decay
from tf2.trainer import Penalty, Trainer


class Slope(Method):
    """The loss is the weight times the batch's number, unless a test says otherwise."""

    metrics = ('slope_loss',)

    def __init__(self, loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.multiply) -> None:
        super().__init__()
        self.slope = tf.Module()
        self.slope.weight = self.weight = tf.Variable(1.0)
        self.updates = tf.Variable(
            0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        self._loss = loss

    def trained(self) -> tuple[tf.Module]:
        return (self.slope,)

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> tf.Tensor:
        return views[0]

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        loss = self._loss(self.weight, tf.reduce_mean(outputs))
        return {'loss': loss, 'slope_loss': loss}

    def after_update(self, outputs: Nest, targets: Nest, batch: Batch, step: tf.Tensor) -> None:
        self.updates.assign_add(1)


class Recorded:
    """Replaces `Checkpoints`: records the steps of checkpoints."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.record: dict[str, Any] = {}

    @property
    def latest(self) -> str | None:
        return f'ckpt-{self.steps[-1]}' if self.steps else None

    def save(self, step: int) -> None:
        self.steps.append(step)


def numbers(first: int = 1) -> tf.data.Dataset:
    """Batch k holds the number k."""
    return tf.data.Dataset.range(first, 10**6).map(
        lambda number: {'views': (tf.cast(number, tf.float32)[None],)}
    )


def trainer_of(method: Method, rate: float = 0.0, **options: Any) -> Trainer:
    # Legacy Keras optimizers trace fastest.
    optimizer = tf.keras.optimizers.legacy.SGD(rate)
    return Trainer(method, optimizer, Penalty(), TrainConfig(train_batch_size=1, **options))


def fit(
    trainer: Trainer, total: int, checkpoint_steps: int = 10**6, start: int = 0
) -> tuple[Recorded, dict[int, dict[str, float]]]:
    """Trains on `numbers`; returns the steps of checkpoints, and what was written by step."""
    kept, written = Recorded(), {}
    trainer.fit(
        numbers(start + 1),
        total,
        checkpoints=kept,
        checkpoint_steps=checkpoint_steps,
        write=lambda step, means: written.setdefault(step, dict(means)),
    )
    return kept, written


# --- steps


@pytest.fixture(scope='module')
def slope_trainer() -> Trainer:
    """One for all examples, since tracing it takes most of the time."""
    return trainer_of(Slope())


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(1, 40),
    per_call=st.integers(0, 50),
    summary=st.integers(1, 30),
    checkpoint=st.integers(1, 50),
)
def test_any_intervals_stop_at_the_last_step_and_meet_what_is_due(
    slope_trainer: Trainer, total: int, per_call: int, summary: int, checkpoint: int
) -> None:
    trainer = slope_trainer
    trainer._config = TrainConfig(
        train_batch_size=1, steps_per_loop=per_call, train_summary_steps=summary
    )
    trainer._steps_per_call = per_call or 1
    trainer._optimizer.iterations.assign(0)
    kept, written = fit(trainer, total, checkpoint)
    assert trainer.step == total
    assert kept.steps == [k for k in range(1, total + 1) if k % checkpoint == 0 or k == total]
    due = [k for k in range(1, total + 1) if k % summary == 0 or k == total]
    assert list(written) == due
    # The weight is 1, so the loss of step k is k.
    for before, step in zip([0, *due], due):
        expected = np.mean(range(before + 1, step + 1))
        assert written[step]['slope_loss'] == pytest.approx(expected, rel=1e-5)
        assert written[step]['total_loss'] == pytest.approx(expected, rel=1e-5)


def test_a_finished_run_takes_no_batch(slope_trainer: Trainer) -> None:
    slope_trainer._optimizer.iterations.assign(7)
    kept, written = fit(slope_trainer, 7)
    assert (slope_trainer.step, kept.steps, written) == (7, [], {})


@pytest.mark.smoke
@pytest.mark.parametrize('compiled', [False, True])
def test_every_step_updates_the_weight_and_is_followed_by_after_update(compiled: bool) -> None:
    method = Slope()
    fit(trainer_of(method, rate=0.25, jit_compile=compiled), 3)
    assert method.weight.numpy() == pytest.approx(1 - 0.25 * (1 + 2 + 3))
    assert method.updates.numpy() == 3


@pytest.mark.parametrize('compiled', [False, True])
def test_a_batch_is_prepared_within_the_step(compiled: bool) -> None:
    method, options = Slope(), {'train_batch_size': 1, 'jit_compile': compiled}
    optimizer = tf.keras.optimizers.legacy.SGD(0.25)

    def double(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {'views': (2 * batch['views'][0],)}

    fit(Trainer(method, optimizer, Penalty(), TrainConfig(**options), double), 3)
    assert method.weight.numpy() == pytest.approx(1 - 0.25 * 2 * (1 + 2 + 3))


def test_the_penalty_is_a_separate_term_of_the_loss() -> None:
    method = Slope()
    penalty = Penalty(0.5, [method.weight])
    optimizer = tf.keras.optimizers.legacy.SGD(1.0)
    trainer = Trainer(method, optimizer, penalty, TrainConfig(train_batch_size=1))
    _, written = fit(trainer, 1)
    assert written[1]['weight_decay'] == pytest.approx(0.25)
    assert written[1]['total_loss'] == pytest.approx(1.25)
    assert method.weight.numpy() == pytest.approx(1 - (1 + 0.5))


def test_replicas_share_a_batch_and_report_the_mean() -> None:
    strategy = mirrored(2)
    with strategy.scope():
        method = Slope()
        trainer = trainer_of(method, rate=1.0)
    batch = tf.data.Dataset.from_tensors({'views': (tf.constant([1.0, 4.0]),)})
    iterator = iter(strategy.experimental_distribute_dataset(batch))
    sums, done, notes = trainer._run_steps(iterator, tf.constant(1))
    assert (int(done), notes.numpy().tolist()) == (1, [0.0, 1.0])
    np.testing.assert_allclose(sums, [2.5, 0.0, 2.5])
    assert method.weight.numpy() == pytest.approx(1 - 2.5)
    assert method.updates.numpy() == 1


def test_all_processes_do_the_same_number_of_steps_in_a_call(
    slope_trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows the mean of all preferences, not the process's own measurement."""
    trainer, asked = slope_trainer, []
    trainer._config = TrainConfig(train_batch_size=1, train_summary_steps=100)
    trainer._steps_per_call, trainer._preferred_steps = 1, 1.0
    trainer._optimizer.iterations.assign(0)
    run_steps = trainer._run_steps

    def agreed(iterator: Any, steps: tf.Tensor, notes: tf.Tensor) -> Any:
        asked.append((int(steps), notes.numpy().tolist()[1]))
        sums, done, (stopping, _) = run_steps(iterator, steps, notes)
        return sums, done, tf.stack([stopping, 2.6])

    monkeypatch.setattr(trainer, '_run_steps', agreed)
    fit(trainer, 10, 100)
    assert [steps for steps, _ in asked] == [1, 3, 3, 3]
    assert all(wanted >= 1 for _, wanted in asked)


# --- checkpoints


@pytest.mark.parametrize(('keep', 'left'), [(0, [2, 4, 6, 7]), (1, [7]), (3, [4, 6, 7])])
def test_the_newest_checkpoints_are_kept(tmp_path: pathlib.Path, keep: int, left: list) -> None:
    method = Slope()
    trainer = trainer_of(method)
    saved = Checkpoints(str(tmp_path), tf.Module(), method, trainer._optimizer, keep)
    trainer.fit(numbers(), 7, checkpoints=saved, checkpoint_steps=2, write=lambda *_: None)
    assert sorted(int(path.stem[5:]) for path in tmp_path.glob('ckpt-*.index')) == left
    assert saved.latest == str(tmp_path / 'ckpt-7')


def blown_up_at(step: int) -> Slope:
    """A method whose loss is infinite at one step and finite at the others."""
    return Slope(lambda weight, number: weight * tf.where(number == step, np.inf, number))


@pytest.mark.parametrize('per_call', [1, 4, 100])
@pytest.mark.parametrize('step', [1, 5, 6])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(per_call: int, step: int) -> None:
    trainer = trainer_of(blown_up_at(step), steps_per_loop=per_call)
    kept = Recorded()
    last = 'ckpt-3' if step > 3 else 'none was written yet'
    words = rf'at step {step}\. The last good checkpoint: {last}\. Try a lower --learning_rate'
    with pytest.raises(UserError, match=words):
        trainer.fit(numbers(), 12, checkpoints=kept, checkpoint_steps=3, write=lambda *_: None)
    assert kept.steps == ([3] if step > 3 else [])


def test_broken_weights_are_never_saved() -> None:
    # The loss is finite at the step whose gradient is not.
    trainer = trainer_of(Slope(lambda weight, number: tf.sqrt(weight - 1) + number), rate=1.0)
    kept = Recorded()
    with pytest.raises(UserError, match=r'weights are no longer finite at step 1\.'):
        trainer.fit(numbers(), 5, checkpoints=kept, checkpoint_steps=1, write=lambda *_: None)
    assert kept.steps == []


# --- what comes between


class Signaled(Stop):
    """A signal comes as soon as step `step` is done."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        super().__init__()
        self._trainer, self._step = trainer, step

    @property
    def number(self) -> int | None:
        return signal.SIGTERM if self._trainer.step >= self._step else None

    @number.setter
    def number(self, value: int | None) -> None:
        pass


def interrupted(trainer: Trainer, stop: Stop | None = None) -> tuple[list[int], list[int]]:
    """Steps of the checkpoints of a run of 40 that is stopped, and of those that were evaluated."""
    kept, seen = Recorded(), []
    with pytest.raises(Interrupted, match='SIGTERM'):
        trainer.fit(
            numbers(),
            40,
            checkpoints=kept,
            checkpoint_steps=10,
            write=lambda *_: None,
            on_checkpoint=seen.append,
            stop=stop,
        )
    return kept.steps, seen


@pytest.mark.parametrize('per_call', [1, 4])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(per_call: int) -> None:
    trainer = trainer_of(Slope(), steps_per_loop=per_call)
    kept, seen = interrupted(trainer, Signaled(trainer, 11))
    # It came during the call that ended with this step; one more step tells all processes.
    noticed = 11 if per_call == 1 else 14
    assert kept == [10, noticed + 1]
    assert trainer.step == noticed + 1
    assert seen == [10]


def test_a_signal_to_another_process_while_a_checkpoint_is_written_ends_this_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distribution, 'all_agree', lambda strategy, agrees: False)
    kept, seen = interrupted(trainer_of(Slope()))
    assert (kept, seen) == ([10], [])


def test_metrics_of_an_interrupted_run_are_those_of_an_undisturbed_one(
    tmp_path: pathlib.Path,
) -> None:
    def run(until: int, stop_at: int | None = None) -> dict[int, dict[str, float]]:
        method, written = Slope(), {}
        trainer = trainer_of(method, train_summary_steps=5, steps_per_loop=1)
        arguments = (tf.Module(), method, trainer._optimizer, 5)
        saved = Checkpoints(str(tmp_path), *arguments)
        saved.resume()
        stop = Signaled(trainer, stop_at) if stop_at else None
        with contextlib.suppress(Interrupted):
            trainer.fit(
                numbers(trainer.step + 1),
                until,
                checkpoints=saved,
                checkpoint_steps=100,
                write=lambda step, means: written.setdefault(step, dict(means)),
                stop=stop,
            )
        return written

    first, second = run(12, stop_at=6), run(12)
    assert (list(first), list(second)) == ([5], [10, 12])
    # The loss of step k is k; steps 6 and 7 were done before the interruption.
    losses = {step: means['slope_loss'] for step, means in (first | second).items()}
    assert losses == {5: 3.0, 10: 8.0, 12: 11.5}


@pytest.mark.parametrize('replicas', [1, 2])
def test_a_trained_variable_without_a_gradient_is_named(replicas: int) -> None:
    strategy = mirrored(replicas)
    with strategy.scope():
        method = Slope()
        method.slope.unread = tf.Variable(1.0, name='unread')
        trainer = trainer_of(method)
    batches = iter(strategy.experimental_distribute_dataset(numbers().batch(replicas)))
    with pytest.raises(ValueError, match='each of the 2 trained variables; found none for unread'):
        trainer._run_steps(batches, tf.constant(1))


def test_metrics_need_not_fit(tmp_path: pathlib.Path) -> None:
    """Other settings or a later release may have other metrics."""
    for names, until in ((('a',), 3), (('b', 'c'), 6), ((), 7)):
        method = Slope()
        method.metrics = ('slope_loss', *names)
        method.loss = lambda outputs, *_, names=names, method=method: dict.fromkeys(
            ('loss', 'slope_loss', *names), method.weight * outputs[0]
        )
        trainer = trainer_of(method, train_summary_steps=100)
        saved = Checkpoints(str(tmp_path), tf.Module(), method, trainer._optimizer, 5)
        saved.resume()
        trainer.fit(
            numbers(trainer.step + 1),
            until,
            checkpoints=saved,
            checkpoint_steps=100,
            write=lambda step, means: None,
        )
        assert trainer.step == until


def test_images_per_second_are_those_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time of checkpoints, evaluations and writing doesn't count."""
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(trainer_module, 'time', clock)
    trainer = trainer_of(Slope(), train_summary_steps=2, steps_per_loop=1)
    run_steps = trainer._run_steps

    def in_two_seconds(*arguments: Any) -> Any:
        now[0] += 2
        return run_steps(*arguments)

    trainer._run_steps = in_two_seconds
    written: dict[int, float] = {}

    def write(step: int, means: dict[str, float]) -> None:
        now[0] += 50
        written[step] = means['images_per_second']

    def evaluate(step: int) -> None:
        now[0] += 100

    trainer.fit(
        numbers(),
        6,
        checkpoints=Recorded(),
        checkpoint_steps=1,
        write=write,
        on_checkpoint=evaluate,
    )
    assert written == {2: 0.5, 4: 0.5, 6: 0.5}


def test_metrics_do_not_depend_on_how_steps_are_grouped_into_calls() -> None:
    def total(per_call: int) -> float:
        # Sums of such numbers are rounded in float32.
        method = Slope(lambda weight, number: weight * (number + 1 / 3))
        _, written = fit(trainer_of(method, steps_per_loop=per_call), 9)
        return written[9]['slope_loss']

    assert total(1) == total(2) == total(9)


@pytest.mark.parametrize('line', ['a.jpg is gone.', None])
def test_an_explained_error_of_a_step_gives_one_line(
    line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, kept = trainer_of(Slope(), steps_per_loop=2), Recorded()
    run_steps, error = trainer._run_steps, tf.errors.NotFoundError(None, None, 'a.jpg')

    def fail(*arguments: Any) -> Any:
        if trainer.step == 4:
            raise error
        return run_steps(*arguments)

    monkeypatch.setattr(trainer, '_run_steps', fail)
    explained: list[Exception] = []
    with pytest.raises(UserError if line else tf.errors.NotFoundError) as refused:
        trainer.fit(
            numbers(),
            9,
            checkpoints=kept,
            checkpoint_steps=2,
            write=lambda *_: None,
            explain=lambda error: explained.append(error) or line,
        )
    assert explained == [error]
    if line:
        assert str(refused.value).startswith('a.jpg is gone. Then run the same command')
        assert str(refused.value).endswith('The last checkpoint: ckpt-4.')


# --- resuming a real model

DATA = DataConfig(dataset='bundled', image_size=8, train_split='train[:24]')
LENGTH = TrainConfig(train_batch_size=8, train_steps=6, steps_per_loop=3)


def real_run(model_dir: pathlib.Path, seed: int, until: int) -> list[np.ndarray]:
    """Does what a new process does: builds, resumes, trains; returns model and optimizer."""
    tf.keras.utils.set_random_seed(seed)
    source = open_source(DATA)
    model = build_model(
        SimCLRModel(
            ModelConfig(resnet_depth=18, width_multiplier=0.125), 8, 10, detach_classifier=True
        )
    )
    rate = schedules.build(OptimizerConfig(warmup_epochs=1.0), LENGTH, 24)
    decayed = decay.decayed_kernels([model.backbone])
    optimizer = builder.build(OptimizerConfig(weight_decay=1e-4), rate, decayed)
    method = SimCLR(model, LearningConfig())
    trainer = Trainer(method, optimizer, Penalty(1e-4, [model.classifier.kernel]), LENGTH)
    saved = Checkpoints(str(model_dir), model, method, optimizer, 5)
    saved.resume()
    batches = train_batches(
        source,
        DATA,
        split=DATA.train_split,
        views=CONTRAST,
        batch_size=8,
        seed=3,
        start=trainer.step * 8,
    )
    trainer.fit(batches, until, checkpoints=saved, checkpoint_steps=3, write=lambda *_: None)
    return [variable.numpy() for variable in (*model.variables, *builder_variables(optimizer))]


def builder_variables(optimizer: builder.Optimizer) -> Sequence[tf.Variable]:
    """The optimizer's variables; a method in legacy Keras."""
    return optimizer.variables() if callable(optimizer.variables) else optimizer.variables


def test_a_resumed_run_ends_like_an_uninterrupted_one(plain: None, tmp_path: pathlib.Path) -> None:
    whole = real_run(tmp_path / 'whole', seed=0, until=6)
    stopped = real_run(tmp_path / 'parts', seed=0, until=3)
    # Another seed of the weights: what is not restored would show.
    resumed = real_run(tmp_path / 'parts', seed=1, until=6)
    assert any((a != b).any() for a, b in zip(whole, stopped, strict=True))
    for expected, found in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(found, expected)
