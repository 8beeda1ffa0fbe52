"""Variables whose learning rate doesn't follow the schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tf2.optimizers.decay import variable_key


class FixedRate:
    """Mixin of Keras optimizers: some variables have a constant learning rate.

    The optimizer itself reads the rate for each variable, so it is right for every update rule; a
    factor on the gradient would cancel out in rules that normalize it, such as Adam and LARS.
    """

    # Keys instead of variables, which as an attribute would be saved in the optimizer's checkpoint.
    _fixed: frozenset[str] = frozenset()
    _fixed_rate = 0.0
    _at_fixed = False

    def fix_rate(self, variables: Iterable[tf.Variable], rate: float) -> None:
        """Updates `variables` with the learning rate `rate` from now on."""
        self._fixed = frozenset(map(variable_key, variables))
        self._fixed_rate = rate

    @property
    def learning_rate(self) -> Any:
        """That of the variable under way."""
        return self._fixed_rate if self._at_fixed else super().learning_rate

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates `variable` by one step along `gradient`."""
        self._at_fixed = variable_key(variable) in self._fixed
        try:
            super().update_step(gradient, variable)
        finally:
            self._at_fixed = False
