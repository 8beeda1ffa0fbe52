"""Name -> optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import tensorflow as tf

from common.errors import UserError
from tf2.config import OptimizerConfig
from tf2.optimizers.lamb import build_lamb
from tf2.optimizers.lars import Lars

Rate: TypeAlias = float | tf.keras.optimizers.schedules.LearningRateSchedule
Optimizer: TypeAlias = tf.keras.optimizers.Optimizer | tf.keras.optimizers.legacy.Optimizer
Variables: TypeAlias = Sequence[tf.Variable]
LossScaling = tf.keras.mixed_precision.LossScaleOptimizer


def _lars(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    return Lars(rate, decayed=decayed, momentum=config.momentum, weight_decay=config.weight_decay)


def _momentum(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    del decayed  # its weight decay is an L2 term of the loss
    return tf.keras.optimizers.SGD(rate, momentum=config.momentum, nesterov=True, jit_compile=False)


def _adam(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    del config, decayed  # its weight decay is an L2 term of the loss
    return tf.keras.optimizers.Adam(rate, jit_compile=False)


def _lamb(config: OptimizerConfig, rate: Rate, decayed: Variables) -> Optimizer:
    return build_lamb(rate, decayed=decayed, weight_decay=config.weight_decay)


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Rate, Variables], Optimizer]] = {
    'lars': _lars,
    'momentum': _momentum,
    'adam': _adam,
    'lamb': _lamb,
}

# These apply weight decay themselves, to what they are told to; the others rely on an L2 term of
# the loss.
DECAY_IN_UPDATE = frozenset({'lars', 'lamb'})


def build(
    config: OptimizerConfig,
    learning_rate: Rate,
    decayed: Variables,
    *,
    scales_loss: bool = False,
) -> Optimizer:
    """The optimizer `config` names.

    To be called within the scope of the distribution strategy, after the model was built.

    Args:
        config: which optimizer, and its momentum and weight decay.
        learning_rate: float, or a schedule called with the number of updates done.
        decayed: variables that lars and lamb decay and adapt. The others ignore it.
        scales_loss: whether small gradients are kept from vanishing in float16: the loss is
            multiplied by a factor that grows until gradients overflow; such an update is left
            out, counts as a step, and halves the factor (Micikevicius et al. 2017,
            arXiv:1710.03740, section 3.2).

    Returns:
        A Keras optimizer, for `apply`.

    Raises:
        UserError: for a name that is not in OPTIMIZERS, or whose package is missing.
    """
    if config.optimizer not in OPTIMIZERS:
        names = ', '.join(OPTIMIZERS)
        raise UserError(f'--optimizer must be one of {names}; found {config.optimizer!r}.')
    optimizer = OPTIMIZERS[config.optimizer](config, learning_rate, decayed)
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
    """Updates `variables` by `gradients` that were already summed over the replicas.

    Args:
        optimizer: from `build`.
        gradients: one for each variable; None leaves the variable as it is.
        variables: all that are trained, the same at each call.
    """
    # The one spelling that current and legacy Keras optimizers and the LossScaleOptimizer share.
    optimizer.apply_gradients(
        zip(gradients, variables, strict=True), experimental_aggregate_gradients=False
    )
