"""The training loop, the same for every method."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from common.errors import UserError
from common.interruption import Interrupted, Stop
from tf2 import collapse, collectives, distribution
from tf2.checkpoints import Checkpoints
from tf2.config import TrainConfig
from tf2.methods.base import Batch, Method
from tf2.optimizers import builder
from tf2.optimizers.decay import l2_penalty
from tf2.progress import Progress

# Keys of a checkpoint's record.
EXAMPLES_SEEN = 'examples_seen'
FIRST_LOSS = 'first_loss'
METRICS = 'metrics'

SECONDS_PER_CALL = 1.0  # target duration of a call if `steps_per_loop` is not set
MAX_STEPS_PER_CALL = 100

ControlSignals: TypeAlias = tf.Tensor | Sequence[float]
NO_SIGNALS = (0.0, 1.0)
Explain: TypeAlias = Callable[[Exception], str | None]


@dataclasses.dataclass(frozen=True)
class Penalty:
    """The L2 term of the loss: `weight` times half the sum of squares of `variables`."""

    weight: float = 0.0
    variables: Sequence[tf.Variable] = ()

    def value(self) -> tf.Tensor:
        """The term, float32 scalar."""
        return self.weight * l2_penalty(self.variables)


class Trainer:
    """Trains a method under a distribution strategy; create it within the strategy's scope.

    Args:
        method: the loss and the variables it trains; its model must be built.
        optimizer: its `iterations` count the steps.
        penalty: L2 term added to the loss.
        config: batch size, steps per call and interval of the summaries.
        prepare: applied on the device to each replica's share of a batch, before the loss.

    Attributes:
        metrics: names of the metrics computed at each step.
        means: their means since they were last written.
        latest_loss: mean total loss over the last call; None before the first.
    """

    def __init__(
        self,
        method: Method,
        optimizer: builder.Optimizer,
        penalty: Penalty,
        config: TrainConfig,
        prepare: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self._strategy = tf.distribute.get_strategy()
        self._prepare = prepare
        self._method, self._optimizer, self._penalty = method, optimizer, penalty
        self._config = config
        spreads = map(collapse.metric_of, method.watched)
        self.metrics = ('total_loss', 'weight_decay', *method.metrics, *spreads)
        builder.create_variables(optimizer, method.trainable_variables)
        self._replica_step = self.replica_step
        if config.jit_compile:
            self._replica_step = tf.function(self.replica_step, jit_compile=True, autograph=False)
        self._steps_per_call = config.steps_per_loop or 1
        self._preferred_steps = 1.0
        self.means = Means(self.metrics)
        self.latest_loss: float | None = None

    @property
    def step(self) -> int:
        """Number of updates done."""
        return int(self._optimizer.iterations.numpy())

    # AutoGraph has nothing to convert here, and would spend seconds finding that out.
    @tf.autograph.experimental.do_not_convert
    def replica_step(self, batch: Batch, signals: ControlSignals = NO_SIGNALS) -> tf.Tensor:
        """One update; runs on each replica.

        Args:
            batch: this replica's share.
            signals: [2] float32, from this process: above 0 if it was asked to stop, and the
                number of updates per call that it prefers.

        Returns:
            [len(metrics) + 2] float32: `metrics` of this replica's share, then `signals`.
        """
        replicas = self._strategy.num_replicas_in_sync
        method, step = self._method, tf.identity(self._optimizer.iterations)
        variables = method.trainable_variables
        if self._prepare is not None:
            batch = self._prepare(batch)
        targets = method.targets(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outputs = method.forward(batch['views'], training=True)
            terms = method.loss(outputs, targets, batch)
            terms['weight_decay'] = self._penalty.value()
            terms['total_loss'] = terms.pop('loss') + terms['weight_decay']
            share = builder.scaled(self._optimizer, terms['total_loss'] / replicas)
        terms |= collapse.measure(method.watched, outputs)
        gradients = tape.gradient(share, variables)
        _check_gradients(gradients, variables)
        gradients = collectives.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients = builder.unscaled(self._optimizer, gradients)
        gradients = method.adjust_gradients(gradients, step)
        builder.apply(self._optimizer, gradients, variables)
        method.after_update(outputs, targets, batch, step)
        return tf.concat([tf.stack([terms[name] for name in self.metrics]), signals], 0)

    @tf.function
    def _run_steps(
        self, iterator: Iterable[Batch], steps: tf.Tensor, signals: ControlSignals = NO_SIGNALS
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Runs up to `steps` updates.

        Ends early after an update whose loss is not finite, or after the first one if the `signals`
        of any process ask to stop. All processes end after the same update. They must all pass the
        same `steps`: messages between them carry the number of the update within the call.

        Returns:
            Means of `metrics` over replicas, summed over the updates, float64; the number of
            updates; means of `signals` over updates and replicas, float64, equal on all processes.
        """
        # Float64, so that the sums don't depend on how the updates are grouped into calls.
        sums = tf.zeros([len(self.metrics) + 2], tf.float64)
        done = tf.constant(0)
        while done < steps and tf.math.is_finite(sums[0]) and sums[-2] == 0:
            shares = self._strategy.run(self._replica_step, (next(iterator), signals))
            means = self._strategy.reduce(tf.distribute.ReduceOp.MEAN, shares, axis=None)
            sums += tf.cast(means, tf.float64)
            done += 1
        return sums[:-2], done, sums[-2:] / tf.cast(done, tf.float64)

    def fit(
        self,
        batches: Iterable[Batch],
        total_steps: int,
        *,
        checkpoints: Checkpoints,
        checkpoint_steps: int,
        write: Callable[[int, Mapping[str, float]], None],
        on_checkpoint: Callable[[int], object] | None = None,
        look: Callable[[int], object] | None = None,
        stop: Stop | None = None,
        explain: Explain = lambda error: None,
    ) -> None:
        """Trains until exactly `total_steps` updates are done.

        Args:
            batches: each replica's share of global batches, starting with the next step's.
            total_steps: updates of the whole run, including those already done.
            checkpoints: written every `checkpoint_steps` steps and at the end.
            checkpoint_steps: see `checkpoints`.
            write: called every `train_summary_steps` steps with the step and the means of
                `metrics` since it was last called, and 'images_per_second'.
            on_checkpoint: called with the step after each checkpoint.
            look: called with the step after each `write` and each checkpoint. Signals are deferred
                during the call because steps may not be saved yet, so it should be brief.
            stop: a signal to any process makes all of them finish the step, write a checkpoint and
                raise `Interrupted`.
            explain: maps an exception raised in a step to a line for the user, or to None if the
                user can't fix the cause.

        Raises:
            UserError: if the loss, or a weight that would be saved, is not finite, if `explain`
                returns a message, or if a file can't be written.
            Interrupted: after a signal.
        """
        iterator, stop, stopping = iter(batches), stop or Stop(), False
        if METRICS in checkpoints.record:
            self.means.restore(checkpoints.record[METRICS])
        with contextlib.closing(self._progress(total_steps)) as progress, stop.deferred():
            while self.step < total_steps and not stopping:
                steps = self._steps_until(total_steps, checkpoint_steps)
                latest, stopping = self._run_call(iterator, steps, stop, checkpoints, explain)
                progress.update(self.step, latest)
                writes = self._is_due(self._config.train_summary_steps, total_steps)
                saves = stopping or self._is_due(checkpoint_steps, total_steps)
                if writes:
                    write(self.step, self.means.take(self._config.train_batch_size))
                if saves:
                    self._save(checkpoints)
                    stopping |= self._was_signaled(stop)
                    if on_checkpoint is not None and not stopping:
                        with stop.allowed(), progress.paused():
                            on_checkpoint(self.step)
                if look is not None and (writes or saves) and not stopping:
                    with progress.paused():
                        look(self.step)
        if stopping:  # by a signal to another process
            raise Interrupted(signal.SIGTERM)

    def _progress(self, total_steps: int) -> Progress:
        shown = [name for name in self._method.metrics if name.endswith(('_loss', '_acc'))]
        return Progress(self.step, total_steps, self._config.train_batch_size, shown)

    def _is_due(self, interval: int, total_steps: int) -> bool:
        """Whether the current step ends an interval or the run."""
        return self.step % interval == 0 or self.step == total_steps

    def _steps_until(self, total_steps: int, checkpoint_steps: int) -> int:
        """Updates in the next call, which ends no later than the run or an interval."""
        step, intervals = self.step, (checkpoint_steps, self._config.train_summary_steps)
        return min(
            self._steps_per_call,
            total_steps - step,
            *(interval - step % interval for interval in intervals),
        )

    def _run_call(
        self,
        iterator: Iterable[Batch],
        steps: int,
        stop: Stop,
        checkpoints: Checkpoints,
        explain: Explain,
    ) -> tuple[dict[str, float], bool]:
        """Runs up to `steps` updates in one call, and records what a checkpoint says of them.

        Returns:
            Means of the metrics over these updates, and whether to stop.
        """
        first, record = self.step, checkpoints.record
        started = time.monotonic()
        signals = tf.constant([float(stop.number is not None), self._preferred_steps])
        with _explained(explain, checkpoints):
            results = self._run_steps(iterator, tf.constant(steps), signals)
            sums, done, (stopping, preferred) = (result.numpy().tolist() for result in results)
        if not math.isfinite(sums[0]):
            raise _diverged('loss is', first + done, checkpoints)
        seconds = time.monotonic() - started
        self._adjust_steps_per_call(seconds, done, preferred)
        latest = self.means.add(sums, done, seconds)
        self.latest_loss = latest['total_loss']
        record.setdefault(FIRST_LOSS, self.latest_loss)
        batch = self._config.train_batch_size
        seen_before = record.get(EXAMPLES_SEEN, first * batch)
        record[EXAMPLES_SEEN] = seen_before + (self.step - first) * batch
        return latest, stopping > 0

    def _save(self, checkpoints: Checkpoints) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: if a weight is not finite, which a finite loss doesn't rule out.
        """
        variables = self._method.trainable_variables
        if not all(tf.reduce_all(tf.math.is_finite(variable)) for variable in variables):
            raise _diverged('weights are', self.step, checkpoints)
        checkpoints.record[METRICS] = self.means.state()
        checkpoints.save(self.step)

    def _was_signaled(self, stop: Stop) -> bool:
        """Whether any process has received a signal; the same answer in all of them."""
        return not distribution.all_agree(self._strategy, stop.number is None)

    def _adjust_steps_per_call(self, seconds: float, steps: int, preferred: float) -> None:
        """Adjusts the updates per call so that a call takes about `SECONDS_PER_CALL`.

        Args:
            seconds: duration of the last call in this process.
            steps: updates done in that call.
            preferred: preferred updates per call, averaged over all processes.
        """
        if self._config.steps_per_loop:
            return
        fitting = int(SECONDS_PER_CALL * steps / max(seconds, 1e-3))
        # At most twice as many as before: the first calls are slow for reasons of their own.
        self._preferred_steps = float(
            max(1, min(fitting, 2 * self._steps_per_call, MAX_STEPS_PER_CALL))
        )
        self._steps_per_call = max(1, round(preferred))


@contextlib.contextmanager
def _explained(explain: Explain, checkpoints: Checkpoints) -> Iterator[None]:
    """Turns errors that `explain` can explain into a UserError."""
    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        line = explain(error)
        if line is None:
            raise
        kept = checkpoints.latest or 'none was written yet'
        raise UserError(
            f'{line} Then run the same command to resume. The last checkpoint: {kept}.'
        ) from error


def _check_gradients(
    gradients: Sequence[tf.Tensor | None], variables: Sequence[tf.Variable]
) -> None:
    """Raises ValueError if the loss doesn't depend on a trained variable."""
    without = [v.name for v, gradient in zip(variables, gradients) if gradient is None]
    if without:
        raise ValueError(
            f'Expected a gradient for each of the {len(variables)} trained variables; found none '
            f'for {", ".join(without)}. Is their output part of the loss?'
        )


def _diverged(what: str, step: int, checkpoints: Checkpoints) -> UserError:
    kept = checkpoints.latest or 'none was written yet'
    return UserError(
        f'The {what} no longer finite at step {step}. The last good checkpoint: {kept}. '
        'Try a lower --learning_rate, a longer --warmup_epochs or a higher --temperature.'
    )


class Means:
    """Running means of metrics over updates; their state survives an interruption.

    Args:
        names: names of the metrics.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._clear()

    def _clear(self) -> None:
        self._sums, self._steps = dict.fromkeys(self._names, 0.0), 0
        # Of this process only: the duration of updates before a restart is unknown.
        self._recent, self._seconds = 0, 0.0

    def state(self) -> dict[str, Any]:
        """A JSON-serializable state for `restore`."""
        return {'steps': self._steps, 'sums': dict(self._sums)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a `state`; ignored if it holds other metrics."""
        if state['sums'].keys() == self._sums.keys():
            self._steps, self._sums = state['steps'], dict(state['sums'])

    def add(self, sums: Sequence[float], steps: int, seconds: float) -> dict[str, float]:
        """Adds sums over `steps` updates that took `seconds`; returns their means."""
        for name, value in zip(self._sums, sums, strict=True):
            self._sums[name] += value
        self._steps += steps
        self._recent += steps
        self._seconds += seconds
        return {name: value / steps for name, value in zip(self._sums, sums, strict=True)}

    def take(self, batch_size: int) -> dict[str, float]:
        """Returns the means since the last call, and 'images_per_second', and resets them."""
        means = {name: value / self._steps for name, value in self._sums.items()}
        rate = self._recent * batch_size / max(self._seconds, 1e-9)
        self._clear()
        return {**means, 'images_per_second': rate}
