"""The training loop. There is no other: methods differ in objective and batches alone."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import tensorflow as tf

from settings import UserError
from tf2.checkpoints import Checkpoints
from tf2.config import TrainConfig
from tf2.objectives.base import Batch, Objective
from tf2.optimizers import builder
from tf2.optimizers.decay import l2_penalty
from tf2.progress import Progress

SECONDS_PER_CALL = 1.0  # so often the loop returns to Python, where `steps_per_loop` is not given
MAX_STEPS_PER_CALL = 100


@dataclasses.dataclass(frozen=True)
class Penalty:
    """The L2 term of the loss: `weight` times half the sum of squares of `variables`."""

    weight: float = 0.0
    variables: Sequence[tf.Variable] = ()

    def value(self) -> tf.Tensor:
        """The term, float32 scalar."""
        return self.weight * l2_penalty(self.variables)


class Trainer:
    """Updates an objective's variables, step by step, under a distribution strategy.

    To be made within the strategy's scope.

    Args:
        objective: the loss; its model is built.
        optimizer: whose `iterations` count the steps.
        penalty: L2 term added to the loss.
        config: lengths, intervals and seeds.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: builder.Optimizer,
        penalty: Penalty,
        config: TrainConfig,
    ) -> None:
        self._strategy = tf.distribute.get_strategy()
        self._objective, self._optimizer, self._penalty = objective, optimizer, penalty
        self._config = config
        self.metrics = ('total_loss', 'weight_decay', *objective.metrics)
        builder.create_variables(optimizer, objective.trainable_variables)
        self._replica_step = self.replica_step
        if config.jit_compile:
            self._replica_step = tf.function(self.replica_step, jit_compile=True)
        self._steps_per_call = config.steps_per_loop or 1

    @property
    def step(self) -> int:
        """Number of updates done."""
        return int(self._optimizer.iterations.numpy())

    # AutoGraph has nothing to convert here, and takes seconds to find that out.
    @tf.autograph.experimental.do_not_convert
    def replica_step(self, batch: Batch) -> tf.Tensor:
        """One update, as each replica runs it on its share of the batch.

        Returns:
            `metrics` of this replica's share, [len(metrics)] float32.
        """
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        variables = self._objective.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            terms = self._objective.compute(batch, training=True)
            terms['weight_decay'] = self._penalty.value()
            terms['total_loss'] = terms.pop('loss') + terms['weight_decay']
            share = terms['total_loss'] / replicas
        gradients = tape.gradient(share, variables)
        if replicas > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        builder.apply(self._optimizer, gradients, variables)
        self._objective.after_update()
        return tf.stack([terms[name] for name in self.metrics])

    @tf.function
    def _run_steps(
        self, iterator: Iterable[Batch], steps: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs up to `steps` updates; ends after one whose loss is not finite.

        Returns:
            Sums of `metrics` over the updates, means over replicas, and the number of updates.
        """
        sums = tf.zeros([len(self.metrics)])
        done = tf.constant(0)
        while done < steps and tf.math.is_finite(sums[0]):
            shares = self._strategy.run(self._replica_step, (next(iterator),))
            sums += self._strategy.reduce(tf.distribute.ReduceOp.MEAN, shares, axis=None)
            done += 1
        return sums, done

    def fit(
        self,
        batches: tf.data.Dataset,
        total_steps: int,
        *,
        checkpoints: Checkpoints,
        checkpoint_steps: int,
        write: Callable[[int, Mapping[str, float]], None],
        on_checkpoint: Callable[[int], object] | None = None,
    ) -> None:
        """Trains until `total_steps` updates are done, exactly.

        Args:
            batches: global batches, the first one for the next step.
            total_steps: updates of the run, those done before included.
            checkpoints: written every `checkpoint_steps` steps and at the end.
            checkpoint_steps: see `checkpoints`.
            write: called every `train_summary_steps` steps with the step and the means of
                `metrics` since it was last called, and 'images_per_second'.
            on_checkpoint: called with the step after each checkpoint.

        Raises:
            UserError: when the loss, or a weight that would be saved, is not finite.
        """
        iterator = iter(self._strategy.experimental_distribute_dataset(batches))
        shown = [name for name in self._objective.metrics if name.endswith(('_loss', '_acc'))]
        progress = Progress(self.step, total_steps, self._config.train_batch_size, shown)
        means = _Means(self.metrics, self._config.train_batch_size)
        try:
            while self.step < total_steps:
                boundaries = (total_steps, checkpoint_steps, self._config.train_summary_steps)
                sums = self._call(iterator, self._steps_until(*boundaries), checkpoints)
                means.add(*sums)
                progress.update(self.step, means.latest)
                if self._due(self._config.train_summary_steps, total_steps):
                    write(self.step, means.take())
                if self._due(checkpoint_steps, total_steps):
                    self._check_weights(checkpoints)
                    checkpoints.save(self.step)
                    if on_checkpoint is not None:
                        on_checkpoint(self.step)
        finally:
            progress.close()

    def _due(self, interval: int, total_steps: int) -> bool:
        return self.step % interval == 0 or self.step == total_steps

    def _steps_until(self, total_steps: int, *intervals: int) -> int:
        """How many updates the next call may do without running past something that is due."""
        step = self.step
        return min(
            self._steps_per_call,
            total_steps - step,
            *(interval - step % interval for interval in intervals),
        )

    def _call(
        self, iterator: Iterable[Batch], steps: int, checkpoints: Checkpoints
    ) -> tuple[list[float], int]:
        """Sums of the metrics over `steps` updates, and their number."""
        first = self.step
        started = time.monotonic()
        sums, done = self._run_steps(iterator, tf.constant(steps))
        sums, done = sums.numpy().tolist(), int(done)
        if not math.isfinite(sums[0]):
            raise _diverged('loss is', first + done, checkpoints)
        self._adapt(time.monotonic() - started, done)
        return sums, done

    def _check_weights(self, checkpoints: Checkpoints) -> None:
        """Refuses to go on with weights that a finite loss with an infinite gradient broke."""
        variables = self._objective.trainable_variables
        if not all(tf.reduce_all(tf.math.is_finite(variable)) for variable in variables):
            raise _diverged('weights are', self.step, checkpoints)

    def _adapt(self, seconds: float, steps: int) -> None:
        """Lets a call take about a second, so that overhead is small and the display lively."""
        if self._config.steps_per_loop:
            return
        fitting = int(SECONDS_PER_CALL * steps / max(seconds, 1e-3))
        # At most twice as many as before: the first calls are slow for reasons of their own.
        self._steps_per_call = max(1, min(fitting, 2 * self._steps_per_call, MAX_STEPS_PER_CALL))


def _diverged(what: str, step: int, checkpoints: Checkpoints) -> UserError:
    kept = checkpoints.latest or 'none was written yet'
    return UserError(
        f'The {what} not finite any more at step {step}. The last good checkpoint: {kept}. '
        'Try a lower --learning_rate, a longer --warmup_epochs or a higher --temperature.'
    )


class _Means:
    """Means of metrics over calls of the training function."""

    def __init__(self, names: Sequence[str], batch_size: int) -> None:
        self._names, self._batch = names, batch_size
        self.latest: dict[str, float] = {}
        self._restart()

    def _restart(self) -> None:
        self._sums, self._steps, self._since = [0.0] * len(self._names), 0, time.monotonic()

    def add(self, sums: Sequence[float], steps: int) -> None:
        """Takes in the sums of a call of `steps` updates."""
        self.latest = {name: value / steps for name, value in zip(self._names, sums, strict=True)}
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)]
        self._steps += steps

    def take(self) -> dict[str, float]:
        """Means since the last call of this, and 'images_per_second'."""
        means = {name: total / self._steps for name, total in zip(self._names, self._sums)}
        rate = self._steps * self._batch / max(time.monotonic() - self._since, 1e-9)
        self._restart()
        return {**means, 'images_per_second': rate}
