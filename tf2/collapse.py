"""Whether the representation collapses: whether all images get the same one.

The measure is that of SimSiam (arXiv:2011.10566, section 4.1).
"""

from __future__ import annotations

import tensorflow as tf

from tf2 import collectives

METRIC = 'representation_spread'
# Below this share of 1 / sqrt(width) the representation counts as collapsed. Untrained ResNets have
# 0.5 of it on the bundled images.
COLLAPSED = 0.1


def spread(rows: tf.Tensor) -> tf.Tensor:
    """Standard deviation over the global batch of the rows, scaled to length 1; call on a replica.

    Args:
        rows: [b, d] float32, this replica's.

    Returns:
        Its mean over the d columns, relative to 1 / sqrt(d): about 1 if the rows point anywhere, 0
        if all point the same way; float32 scalar, the same on all replicas.
    """
    units = tf.math.l2_normalize(tf.stop_gradient(rows), -1)
    local = tf.stack([tf.reduce_mean(units, 0), tf.reduce_mean(units**2, 0)])  # [2, d]
    mean, square = tf.unstack(collectives.mean_over_replicas(local))
    # The difference's rounding error is far below what counts as a collapse.
    deviation = tf.sqrt(tf.nn.relu(square - mean**2))  # [d]
    return tf.reduce_mean(deviation) * float(rows.shape[-1]) ** 0.5


class Watch:
    """Tells a collapse once, when it is first seen."""

    def __init__(self) -> None:
        self._told = False

    def message(self, step: int, found: float | None) -> str | None:
        """A line for the user at the first collapse, else None.

        Args:
            step: number of updates done.
            found: mean `spread` of the latest updates; None if it isn't measured.
        """
        if self._told or found is None or found >= COLLAPSED:
            return None
        self._told = True
        return (
            f'Step {step}: the representation has collapsed: all images get about the same one. '
            f'{METRIC} is {found:.2g}; untrained networks have about 0.5. Try a lower '
            '--learning_rate, a larger --train_batch_size, or another --method.'
        )
