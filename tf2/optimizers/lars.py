"""Layer-wise adaptive rate scaling, LARS (You et al. 2017, arXiv:1708.03888)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tensorflow as tf

from tf2.optimizers.decay import variable_key

# "eeta" in the published program of SimCLR (arXiv:2002.05709).
TRUST_COEFFICIENT = 0.001


class Lars(tf.keras.optimizers.Optimizer):
    """Momentum whose step for each decayed variable is proportional to that variable's norm.

    With w a decayed variable and d its gradient, one update is

        g = d + weight_decay * w
        v <- momentum * v + rate * trust * g
        w <- w - v

    where trust is 0.001 * |w| / |g|, or 1 if either norm is 0. Since g includes the weight decay, a
    zero gradient alone doesn't make trust 1. For other variables trust is 1, and there is no weight
    decay. With `rate_in_velocity=False` the update is

        v <- momentum * v + trust * g
        w <- w - rate * v

    which is the same for a constant rate. The program of SimCLR has the first form, those of BYOL
    and MoCo v3 the second, which without decayed variables is SGD with momentum as in PyTorch.

    Args:
        learning_rate: float, or a schedule called with the number of updates done.
        decayed: variables with weight decay and trust ratio.
        momentum: share of the velocity that each update keeps.
        weight_decay: times the variable, is added to its gradient.
        rate_in_velocity: see above.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule,
        *,
        decayed: Iterable[tf.Variable],
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        rate_in_velocity: bool = True,
    ) -> None:
        # Keras's own weight decay bypasses the gradient (as in AdamW), so it is not used; its
        # jit_compile would compile a small XLA program for each variable.
        super().__init__(name='Lars', weight_decay=None, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        # Keys instead of variables, which as an attribute would be saved in the optimizer's
        # checkpoint again.
        self._decayed = frozenset(map(variable_key, decayed))
        self._momentum = momentum
        self._decay = weight_decay
        self._rate_in_velocity = rate_in_velocity

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
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        rate = tf.cast(self.learning_rate, variable.dtype)
        trust = tf.ones_like(rate)
        if variable_key(variable) in self._decayed:
            if self._decay:
                gradient += self._decay * variable
            trust = _trust_ratio(variable, gradient)
        velocity = self._velocities[self._index_dict[self._var_key(variable)]]
        # Fused kernels. Keras's keeps the velocity with the opposite sign, which is equivalent:
        # v <- momentum * v - rate * trust * g and w <- w + v.
        if self._rate_in_velocity:
            apply, rate = tf.raw_ops.ResourceApplyKerasMomentum, rate * trust
        else:
            apply, gradient = tf.raw_ops.ResourceApplyMomentum, trust * gradient
        apply(
            var=variable.handle,
            accum=velocity.handle,
            lr=rate,
            grad=gradient,
            momentum=tf.cast(self._momentum, variable.dtype),
        )


def _trust_ratio(variable: tf.Variable, gradient: tf.Tensor) -> tf.Tensor:
    """Factor on the learning rate, [] of the variable's dtype."""
    weight_norm, gradient_norm = _norm(variable), _norm(gradient)
    ratio = TRUST_COEFFICIENT * tf.math.divide_no_nan(weight_norm, gradient_norm)
    adapts = (weight_norm > 0) & (gradient_norm > 0)
    return tf.where(adapts, ratio, tf.ones_like(ratio))


def _norm(tensor: tf.Tensor | tf.Variable) -> tf.Tensor:
    # l2_loss is half the sum of squares in a single kernel; tf.norm takes several.
    return tf.sqrt(2.0 * tf.nn.l2_loss(tensor))
