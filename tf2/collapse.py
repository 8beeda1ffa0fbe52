"""Whether the representation or the projection collapses: whether all images get the same one.

The measure is that of SimSiam (arXiv:2011.10566, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf2 import collectives

# Below this share of 1 / sqrt(width), rows count as collapsed. On the bundled images, untrained
# ResNets have 0.5 in the representation, and methods without negatives 0.6 or more in the
# projection. SimSiam without its stop-gradient falls from 1 to 0.3 within 150 steps there, while
# the representation stays at 0.5.
LOWEST = {'representation': 0.1, 'projection': 0.3}


def metric_of(name: str) -> str:
    """The metric that tells the spread of 'representation' or 'projection'."""
    return f'{name}_spread'


def measure(watched: Mapping[str, str], outputs: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """`spreads` of outputs of a step, by metric; call in replica context.

    Args:
        watched: see `Method.watched`.
        outputs: of `Method.forward`. Of a tuple, one for each view, the first counts.
    """
    found = [outputs[key] for key in watched.values()]
    rows = [each[0] if isinstance(each, tuple) else each for each in found]
    return dict(zip(map(metric_of, watched), spreads(rows), strict=True))


def spreads(rows: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Standard deviations over the global batch of rows scaled to length 1; call on a replica.

    Args:
        rows: [b, d] float32 each, this replica's; the widths d may differ.

    Returns:
        Of each of `rows`, the mean over its d columns, relative to 1 / sqrt(d): about 1 if the rows
        point anywhere, 0 if all point the same way; float32 scalars, the same on all replicas.
    """
    if not rows:
        return []
    units = tf.concat([tf.math.l2_normalize(tf.stop_gradient(each), -1) for each in rows], -1)
    local = tf.stack([tf.reduce_mean(units, 0), tf.reduce_mean(units**2, 0)])
    mean, square = tf.unstack(collectives.mean_over_replicas(local))
    # The difference's rounding error is far below what counts as a collapse.
    deviations = tf.sqrt(tf.nn.relu(square - mean**2))
    widths = [each.shape[-1] for each in rows]
    parts = zip(tf.split(deviations, widths), widths)
    return [tf.reduce_mean(part) * float(width) ** 0.5 for part, width in parts]


class Watch:
    """Tells a collapse once, when it is first seen."""

    def __init__(self) -> None:
        self._told = False

    def message(self, step: int, means: Mapping[str, float]) -> str | None:
        """A line for the user at the first collapse, else None.

        Args:
            step: number of updates done.
            means: metric -> mean over the latest updates.
        """
        spread = {name: means[metric_of(name)] for name in LOWEST if metric_of(name) in means}
        collapsed = [name for name, value in spread.items() if value < LOWEST[name]]
        if self._told or not collapsed:
            return None
        self._told = True
        values = ', '.join(f'{metric_of(name)} is {spread[name]:.2g}' for name in collapsed)
        return (
            f'Step {step}: the {collapsed[0]} has collapsed: all images get about the same one. '
            f'{values}; untrained networks have 0.5 or more. Try a lower --learning_rate, a larger '
            '--train_batch_size, or another --method.'
        )
