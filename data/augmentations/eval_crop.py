"""The evaluation view: a central crop."""

from __future__ import annotations

import tensorflow as tf

from common.limits import SMALL_IMAGE
from data.images import resize

_SHARE = 0.875


def eval_crop(image: tf.Tensor, seed: tf.Tensor | None = None, *, size: int) -> tf.Tensor:
    """Crops the central square, 87.5% of the shorter side, and resizes it (bicubic).

    Views of 32 pixels or less show the whole image, since such data sets have no margin around the
    object (SimCLR appendix B.9, arXiv:2002.05709).

    Args:
        image: [h, w, 3] float32 in [0, 1], or integers as stored: only the crop is converted.
        seed: not read; nothing here is random.
        size: height and width of the result, in pixels.

    Returns:
        [size, size, 3] float32 in [0, 1].
    """
    del seed
    if size > SMALL_IMAGE:
        image = _central_square(image)
    return resize(image, size)


def _central_square(image: tf.Tensor) -> tf.Tensor:
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.cast(tf.math.rint(_SHARE * shorter), tf.int32)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return image[top : top + side, left : left + side]
