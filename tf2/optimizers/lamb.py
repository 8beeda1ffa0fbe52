"""LAMB from tensorflow-addons (You et al. 2019, arXiv:1904.00962), with decay by role."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable

import tensorflow as tf

from common.errors import UserError
from tf2.optimizers.decay import variable_key


def build_lamb(
    learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule,
    *,
    decayed: Iterable[tf.Variable],
    weight_decay: float,
) -> tf.keras.optimizers.legacy.Optimizer:
    """LAMB that decays and adapts the variables in `decayed` and no others.

    Args:
        learning_rate: float, or a schedule called with the number of updates done.
        decayed: variables that get weight decay and the trust ratio.
        weight_decay: times the variable, is added to its update.

    Returns:
        The optimizer, with the moment decays of its paper (0.9, 0.999).

    Raises:
        UserError: if tensorflow-addons is not installed.
    """
    base = _addons().optimizers.LAMB
    chosen = frozenset(map(variable_key, decayed))

    class Lamb(base):
        """Chooses variables by role; the base class matches names."""

        def _do_use_weight_decay(self, variable: tf.Variable) -> bool:
            return variable_key(variable) in chosen

        def _do_layer_adaptation(self, variable: tf.Variable) -> bool:
            return variable_key(variable) in chosen

    return Lamb(learning_rate=learning_rate, weight_decay=weight_decay)


def _addons() -> types.ModuleType:
    """Imports tensorflow_addons without its end-of-life notice."""
    with warnings.catch_warnings():
        # Users of this program can do nothing about it.
        warnings.filterwarnings(
            'ignore', message=r'\s*TensorFlow Addons \(TFA\) has ended development'
        )
        try:
            import tensorflow_addons
        except ModuleNotFoundError as error:
            if error.name != 'tensorflow_addons':
                raise
            raise UserError(
                '--optimizer=lamb needs the package tensorflow-addons, which is not installed for '
                f'TensorFlow {tf.__version__}; install it (TensorFlow 2.13 to 2.15) or use '
                '--optimizer=lars.'
            ) from error
    return tensorflow_addons
