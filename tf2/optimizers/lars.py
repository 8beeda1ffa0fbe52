"""Layer-wise adaptive rate scaling, LARS (You et al. 2017, arXiv:1708.03888)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tensorflow as tf

from tf2.optimizers.decay import variable_key

# Trust coefficient of SimCLR (arXiv:2002.05709, published program).
TRUST_COEFFICIENT = 0.001


class Lars(tf.keras.optimizers.Optimizer):
    """Momentum whose step for each adapted variable is in proportion to that variable's norm.

    With w a variable, g its gradient plus weight_decay * w, and
    trust = trust_coefficient * |w| / |g| (1 where either norm is 0, or w is not adapted), one
    update is, in the classic form:

        v <- momentum * v + rate * trust * g;    w <- w - v

    and in the popular form, where u is the new v (Nesterov: g + momentum * v) and trust is taken
    of u instead of g:

        v <- momentum * v + g;                   w <- w - rate * trust(u) * u

    Weight decay enters the trust ratio, so a zero gradient alone does not make it 1.

    Args:
        learning_rate: float, or a schedule called with the number of updates done.
        decayed: variables that get weight decay; the others get none.
        adapted: variables whose step is scaled by the trust ratio; default: `decayed`.
        momentum: share of the velocity kept from update to update.
        weight_decay: factor on the variable that is added to its gradient.
        trust_coefficient: factor of the trust ratio ("eeta" in the published program).
        popular: scale the update by rate and trust after the momentum instead of before it.
        nesterov: look one momentum step ahead.
        name: name scope of the operations.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule,
        *,
        decayed: Iterable[tf.Variable],
        adapted: Iterable[tf.Variable] | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = TRUST_COEFFICIENT,
        popular: bool = False,
        nesterov: bool = False,
        name: str = 'Lars',
    ) -> None:
        # Keras' own weight decay bypasses the gradient (as in AdamW), so it is not used; its
        # jit_compile would compile one small XLA program a variable.
        super().__init__(name=name, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        # Keys instead of variables: an attribute that holds variables would put them into the
        # optimizer's checkpoint a second time.
        self._decayed = frozenset(map(variable_key, decayed))
        self._adapted = self._decayed if adapted is None else frozenset(map(variable_key, adapted))
        self._momentum = momentum
        self._decay = weight_decay
        self._trust_coefficient = trust_coefficient
        self._popular = popular
        self._nesterov = nesterov

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates one velocity for each variable of `var_list`, unless that was done before."""
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
        if self._decay and variable_key(variable) in self._decayed:
            gradient += self._decay * variable
        velocity = self._velocities[self._index_dict[self._var_key(variable)]]
        step = self._popular_step if self._popular else self._classic_step
        step(gradient, variable, velocity)

    def _classic_step(
        self, gradient: tf.Tensor, variable: tf.Variable, velocity: tf.Variable
    ) -> None:
        # One fused kernel. It keeps the velocity with the opposite sign, v <- momentum * v - r * g
        # and w <- w + v, which is the same walk.
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=self._rate(variable, gradient),
            grad=gradient,
            momentum=tf.cast(self._momentum, variable.dtype),
            use_nesterov=self._nesterov,
        )

    def _popular_step(
        self, gradient: tf.Tensor, variable: tf.Variable, velocity: tf.Variable
    ) -> None:
        moved = self._momentum * velocity + gradient
        velocity.assign(moved)
        update = self._momentum * moved + gradient if self._nesterov else moved
        variable.assign_sub(self._rate(variable, update) * update)

    def _rate(self, variable: tf.Variable, update: tf.Tensor) -> tf.Tensor:
        """Learning rate times trust ratio, [] of the variable's dtype."""
        rate = tf.cast(self.learning_rate, variable.dtype)
        if variable_key(variable) not in self._adapted:
            return rate
        weight_norm, update_norm = _norm(variable), _norm(update)
        trust = self._trust_coefficient * tf.math.divide_no_nan(weight_norm, update_norm)
        adapts = (weight_norm > 0) & (update_norm > 0)
        return rate * tf.where(adapts, trust, tf.ones_like(trust))


def _norm(tensor: tf.Tensor | tf.Variable) -> tf.Tensor:
    # l2_loss is half the sum of squares in a single kernel; tf.norm takes several.
    return tf.sqrt(2.0 * tf.nn.l2_loss(tensor))
