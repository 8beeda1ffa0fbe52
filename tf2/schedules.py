"""Step -> learning rate: linear warm-up, then cosine decay to zero (SimCLR section 2.3), or drops.

Pure functions; `WarmupCosine` and `WarmupDrops` bind their arguments for Keras optimizers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf2.config import OptimizerConfig, TrainConfig

# Batch size for which `learning_rate` is stated under linear scaling (SimCLR section 2.2).
REFERENCE_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Position:
    """The position of a run.

    Attributes:
        step: updates done.
        examples: training examples seen, which decide the position in the data and the schedule;
            `step` batches, unless the batch size was changed.
    """

    step: int = 0
    examples: int = 0

    def ahead(self, config: TrainConfig) -> int:
        """Batches of the current size in `examples`, minus the updates done.

        0 unless the batch size was changed, and if the run's length is a number of updates.
        """
        if config.train_steps:
            return 0
        return self.examples // config.train_batch_size - self.step


def total_steps(num_examples: int, config: TrainConfig, position: Position) -> int:
    """Updates of the whole run: `train_steps`, unless the batch size was changed.

    Args:
        num_examples: training examples per epoch.
        config: length and batch size from now on.
        position: of the run.
    """
    return train_steps(num_examples, config) - position.ahead(config)


def epoch_steps(num_examples: int, config: TrainConfig) -> int:
    """Updates per epoch of `num_examples`, rounded to the nearest; at least 1."""
    return max(1, round(num_examples / config.train_batch_size))


def train_steps(num_examples: int, config: TrainConfig) -> int:
    """Number of optimizer updates of a run.

    Args:
        num_examples: training examples per epoch.
        config: `train_steps` if above 0; otherwise `train_epochs` epochs of batches of
            `train_batch_size`, plus one step, as the published program counts.

    Returns:
        Steps, at least 1.
    """
    if config.train_steps:
        return config.train_steps
    return num_examples * config.train_epochs // config.train_batch_size + 1


def warmup_steps(num_examples: int, warmup_epochs: float, batch_size: int) -> int:
    """Number of warm-up updates: whole batches in `warmup_epochs` epochs."""
    return int(warmup_epochs * num_examples // batch_size)


def peak_learning_rate(base: float, batch_size: int, scaling: str) -> float:
    """Learning rate at the end of the warm-up.

    Args:
        base: base learning rate.
        batch_size: global batch, over all replicas.
        scaling: 'linear' for base * batch / 256, 'sqrt' for base * sqrt(batch) (SimCLR
            appendix B.1).

    Returns:
        The scaled rate.

    Raises:
        ValueError: for another `scaling`.
    """
    if scaling == 'linear':
        return base * batch_size / REFERENCE_BATCH
    if scaling == 'sqrt':
        return base * math.sqrt(batch_size)
    raise ValueError(f'scaling must be linear or sqrt; found {scaling!r}.')


def warmup_cosine(
    step: int | tf.Tensor | tf.Variable, *, peak: float, warmup_steps: int, total_steps: int
) -> tf.Tensor:
    """Learning rate of update number `step`, counted from 0.

    It rises linearly from 0 at update 0 to the peak at update `warmup_steps`, then falls to 0 at
    `total_steps`, and stays there.

    Args:
        step: scalar, Python number or integer tensor.
        peak: rate at the end of the warm-up.
        warmup_steps: updates of linear increase; 0 starts at the peak.
        total_steps: updates of the run.

    Returns:
        [] float32.
    """
    step = tf.cast(step, tf.float32)
    rising = peak * step / max(warmup_steps, 1)
    # A warm-up as long as the run leaves no decay steps; 1 keeps the quotient finite.
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    angle = math.pi * tf.clip_by_value(progress, 0.0, 1.0)
    falling = peak * 0.5 * (1.0 + tf.cos(angle))
    return tf.where(step < warmup_steps, rising, falling)


def warmup_drops(
    step: int | tf.Tensor | tf.Variable,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    drops: Sequence[tuple[float, float]],
) -> tf.Tensor:
    """Learning rate of update number `step`, counted from 0, that falls in steps.

    It rises as in `warmup_cosine`, and is then the peak times the factor of the last drop.

    Args:
        step: scalar, Python number or integer tensor.
        peak: rate at the end of the warm-up.
        warmup_steps: updates of linear increase; 0 starts at the peak.
        total_steps: updates of the run.
        drops: share of the run, in ascending order, and factor from there on.

    Returns:
        [] float32.
    """
    step = tf.cast(step, tf.float32)
    rate = tf.constant(peak, tf.float32)
    for share, factor in drops:
        rate = tf.where(step >= int(share * total_steps), peak * factor, rate)
    return tf.where(step < warmup_steps, peak * step / max(warmup_steps, 1), rate)


def epochs(step: tf.Tensor, *, num_examples: int, batch_size: int) -> tf.Tensor:
    """Passes over the training examples that `step` updates make.

    Args:
        step: scalar integer tensor.
        num_examples: training examples per epoch.
        batch_size: global batch, over all replicas.

    Returns:
        [] float32.
    """
    return tf.cast(tf.cast(step, tf.int64) * batch_size, tf.float32) / num_examples


class WarmupCosine(tf.keras.optimizers.schedules.LearningRateSchedule):
    """`warmup_cosine` with its arguments bound, callable with the step.

    Args:
        peak: rate at the end of the warm-up.
        warmup_steps: updates of linear increase.
        total_steps: updates of the run.
        ahead: added to every step, see `Position`. Set it before the first call in a graph.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, ahead: int = 0) -> None:
        super().__init__()
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.ahead = ahead

    def __call__(self, step: int | tf.Tensor | tf.Variable) -> tf.Tensor:
        """Learning rate of update `step`, [] float32."""
        step = step + self.ahead if self.ahead else step
        return self._rate(
            step,
            peak=self.peak,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
        )

    def progress(self, step: int | tf.Tensor | tf.Variable) -> tf.Tensor:
        """Share of the run that is done after `step` updates, [] float32 from 0 to 1."""
        done = tf.cast(step, tf.float32) + self.ahead
        return tf.clip_by_value(done / self.total_steps, 0.0, 1.0)

    _rate = staticmethod(warmup_cosine)

    def get_config(self) -> dict[str, float | int]:
        """Constructor arguments, for Keras."""
        return {
            'peak': self.peak,
            'warmup_steps': self.warmup_steps,
            'total_steps': self.total_steps,
            'ahead': self.ahead,
        }


class WarmupDrops(WarmupCosine):
    """`warmup_drops` with its arguments bound, see `WarmupCosine`."""

    def __init__(
        self,
        peak: float,
        warmup_steps: int,
        total_steps: int,
        ahead: int = 0,
        *,
        drops: Sequence[tuple[float, float]],
    ) -> None:
        super().__init__(peak, warmup_steps, total_steps, ahead)
        self.drops = drops
        self._rate = functools.partial(warmup_drops, drops=drops)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for Keras."""
        return {**super().get_config(), 'drops': self.drops}


def build(optimizer: OptimizerConfig, train: TrainConfig, num_examples: int) -> WarmupCosine:
    """The schedule of a run.

    Args:
        optimizer: base rate, its scaling, the warm-up and what follows it.
        train: batch size and length of the run.
        num_examples: training examples per epoch.

    Returns:
        A schedule: step -> [] float32.
    """
    batch = train.train_batch_size
    arguments = (
        peak_learning_rate(optimizer.learning_rate, batch, optimizer.learning_rate_scaling),
        warmup_steps(num_examples, optimizer.warmup_epochs, batch),
        train_steps(num_examples, train),
    )
    if optimizer.drops:
        return WarmupDrops(*arguments, drops=optimizer.drops)
    return WarmupCosine(*arguments)
