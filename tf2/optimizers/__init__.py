"""Update rules. An optimizer is a function in `builder` and an entry in `OPTIMIZERS`.

Importing this package doesn't import TensorFlow.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class OptimizerEntry:
    """What is known about an optimizer before TensorFlow is imported.

    Attributes:
        implementation: a function of `OptimizerConfig`, learning rate and variables to decay that
            returns a Keras optimizer, as 'module:function'.
        slots: number of float32 values it keeps per trained parameter.
        fixes_rates: whether some variables can have a constant learning rate.
        decays_everything: whether weight decay applies to all trained variables, those of
            normalization too.
        decays_in_update: whether it applies weight decay itself; otherwise the loss has an L2 term.
    """

    implementation: str
    slots: int
    decays_in_update: bool = False
    decays_everything: bool = False
    fixes_rates: bool = True


OPTIMIZERS: dict[str, OptimizerEntry] = {
    'momentum': OptimizerEntry('tf2.optimizers.builder:momentum', slots=1),
    'adam': OptimizerEntry('tf2.optimizers.builder:adam', slots=2),
    'lars': OptimizerEntry('tf2.optimizers.builder:lars', slots=1, decays_in_update=True),
    'lamb': OptimizerEntry(
        'tf2.optimizers.builder:lamb', slots=2, decays_in_update=True, fixes_rates=False
    ),
    'sgd': OptimizerEntry('tf2.optimizers.builder:sgd', slots=1, decays_everything=True),
}
