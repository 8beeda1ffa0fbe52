"""Makes and applies the optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import tensorflow as tf

from common.registry import load
from tf2.config import OptimizerConfig
from tf2.optimizers import OPTIMIZERS
from tf2.optimizers.fixed_rate import FixedRate
from tf2.optimizers.lamb import build_lamb
from tf2.optimizers.lars import Lars

Rate: TypeAlias = float | tf.keras.optimizers.schedules.LearningRateSchedule
Optimizer: TypeAlias = tf.keras.optimizers.Optimizer | tf.keras.optimizers.legacy.Optimizer
Variables: TypeAlias = Sequence[tf.Variable]
LossScaling = tf.keras.mixed_precision.LossScaleOptimizer


class _Momentum(FixedRate, tf.keras.optimizers.SGD):
    pass


class _Adam(FixedRate, tf.keras.optimizers.Adam):
    pass


class _Lars(FixedRate, Lars):
    pass


def momentum(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    """SGD with Nesterov momentum."""
    del decayed  # its weight decay is an L2 term of the loss
    return _Momentum(rate, momentum=config.momentum, nesterov=True, jit_compile=False)


def sgd(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    """SGD with momentum as in PyTorch: the velocity holds gradients, without the learning rate.

    Keras's velocity holds earlier gradients times the rates of their own steps, which differs if
    the rate changes.
    """
    del decayed  # its weight decay is an L2 term of the loss
    return _Lars(rate, decayed=(), momentum=config.momentum, rate_in_velocity=False)


def adam(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    """Adam with the defaults of Keras."""
    del config, decayed  # its weight decay is an L2 term of the loss
    return _Adam(rate, jit_compile=False)


def lars(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    """See `Lars`."""
    return _Lars(
        rate,
        decayed=decayed,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        rate_in_velocity=config.rate_in_velocity,
    )


def lamb(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    """See `build_lamb`."""
    return build_lamb(rate, decayed=decayed, weight_decay=config.weight_decay)


def build(
    config: OptimizerConfig,
    learning_rate: Rate,
    decayed: Variables,
    *,
    unscheduled: Variables = (),
    scales_loss: bool = False,
) -> Optimizer:
    """The optimizer that `config` names.

    Call it within the strategy's scope, after the model was built.

    Args:
        config: which optimizer, and its momentum and weight decay.
        learning_rate: float, or a schedule called with the number of updates done.
        decayed: variables that lars and lamb decay and adapt; the others ignore it.
        unscheduled: variables whose learning rate stays at the schedule's peak; not with an
            optimizer whose entry says that it can't fix rates.
        scales_loss: whether to scale the loss, so that small gradients don't vanish in float16.
            The factor grows until gradients overflow; such an update is skipped, counts as a step,
            and halves the factor (Micikevicius et al. 2017, arXiv:1710.03740, section 3.2).

    Returns:
        A Keras optimizer, for `apply`.

    Raises:
        UserError: if its package is missing.
    """
    make = load(OPTIMIZERS[config.optimizer].implementation)
    optimizer = make(config, learning_rate, decayed)
    if unscheduled:
        optimizer.fix_rate(unscheduled, getattr(learning_rate, 'peak', learning_rate))
    return LossScaling(optimizer) if scales_loss else optimizer


def scaled(optimizer: Optimizer, loss: tf.Tensor) -> tf.Tensor:
    """What to differentiate in place of `loss`, for `unscaled`."""
    return optimizer.get_scaled_loss(loss) if isinstance(optimizer, LossScaling) else loss


def unscaled(
    optimizer: Optimizer, gradients: Sequence[tf.Tensor | None]
) -> Sequence[tf.Tensor | None]:
    """Gradients of the loss from those of `scaled`, summed over the replicas, for `apply`."""
    if not isinstance(optimizer, LossScaling):
        return gradients
    return optimizer.get_unscaled_gradients(gradients)


def create_variables(optimizer: Optimizer, variables: Variables) -> None:
    """Creates the optimizer's own variables, so that a checkpoint can be restored into them."""
    if isinstance(optimizer, tf.keras.optimizers.legacy.Optimizer):
        optimizer._create_all_weights(variables)  # legacy Keras has no public name for it
    else:
        optimizer.build(variables)


def apply(
    optimizer: Optimizer, gradients: Iterable[tf.Tensor | None], variables: Iterable[tf.Variable]
) -> None:
    """Updates `variables` with `gradients` that were already summed over the replicas.

    Args:
        optimizer: from `build`.
        gradients: one for each variable; None leaves the variable as it is.
        variables: all that are trained, the same at each call.
    """
    # The only call that current and legacy Keras optimizers and the LossScaleOptimizer share.
    optimizer.apply_gradients(
        zip(gradients, variables, strict=True), experimental_aggregate_gradients=False
    )
