"""The range of floating-point images, one for the whole data set."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from common.errors import UserError
from data.images import RANGES, ROUNDING

IMAGES_SAMPLED = 256


def check_integers(name: str, given: str) -> None:
    """Raises UserError if a range is given for images that are integers."""
    if given != 'auto':
        raise UserError(
            f'--image_range={given} is for floating-point images; those of {name} are integers, '
            'whose type gives their range. Leave it out.'
        )


def find_range(name: str, split: str, images: tf.data.Dataset) -> str:
    """Infers the range of a data set from its first images.

    Args:
        name: of the data set, for the message.
        split: of `images`, for the message.
        images: decoded, of a floating-point dtype, in a fixed order.

    Returns:
        Key of `RANGES`: 0..1 if all values are in it, else 0..255, else -1..1.

    Raises:
        UserError: if none of them fits.
    """
    first = images.take(IMAGES_SAMPLED)
    first = first.map(lambda image: (tf.reduce_min(image), tf.reduce_max(image)))
    found = list(first.as_numpy_iterator())
    if not found:
        return '0..1'
    least, most = (float(part(values)) for part, values in zip((np.min, np.max), zip(*found)))
    for image_range in ('0..1', '0..255', '-1..1'):
        black, white = RANGES[image_range]
        slack = ROUNDING * (white - black)
        if least >= black - slack and most <= white + slack:  # False for NaN
            return image_range
    raise UserError(
        f'Floating-point images must be in {", ".join(RANGES)}; found values from {least:g} to '
        f'{most:g} in {split!r} of {name}. Scale them to one of these, without normalizing them.'
    )
