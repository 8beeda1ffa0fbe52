"""SGD with momentum in PyTorch's form: the velocity holds gradients, without the learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


class Sgd(tf.keras.optimizers.Optimizer):
    """With w a variable and g its gradient, one update is

        v <- momentum * v + g
        w <- w - rate * v

    For a constant rate that is Keras's SGD; if the rate changes, Keras's velocity holds earlier
    gradients times the rates of their own steps.

    Args:
        learning_rate: float, or a schedule called with the number of updates done.
        momentum: share of the velocity that each update keeps.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule,
        momentum: float = 0.9,
    ) -> None:
        # jit_compile would compile a small XLA program for each variable.
        super().__init__(name='Sgd', jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._momentum = momentum

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates a velocity for each variable of `var_list`, once."""
        super().build(var_list)
        if getattr(self, '_built', False):
            return
        self._velocities = [
            self.add_variable_from_reference(model_variable=variable, variable_name='velocity')
            for variable in var_list
        ]
        self._built = True

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates `variable`, and its velocity, by one step along `gradient`."""
        # A fused kernel: v <- momentum * v + g and w <- w - rate * v.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=self._velocities[self._index_dict[self._var_key(variable)]].handle,
            lr=tf.cast(self.learning_rate, variable.dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
            momentum=tf.cast(self._momentum, variable.dtype),
        )
