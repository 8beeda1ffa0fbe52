"""Grayscale for some images, apart from the color jitter (MoCo's program, arXiv:1911.05722)."""

from __future__ import annotations

import tensorflow as tf

from data.augmentations.color import gray
from data.randomness import uniform


def random_gray(image: tf.Tensor, seed: tf.Tensor, *, probability: float = 0.2) -> tf.Tensor:
    """Makes an image gray with a probability.

    Args:
        image: [h, w, 3] or [b, h, w, 3] float32 in [0, 1].
        seed: [2] or [b, 2] integers.
        probability: of an image to become gray.

    Returns:
        Tensor of `image`'s shape, float32 in [0, 1].
    """
    # The stream of the color distortion, so that both make the same images gray.
    chosen = uniform(seed, 1, 'grey')[..., tf.newaxis, tf.newaxis] < probability  # [..., 1, 1, 1]
    planes = gray(tf.stack(tf.unstack(image, axis=-1)))  # [3, ...]
    return tf.where(chosen, tf.stack(tf.unstack(planes), -1), image)
