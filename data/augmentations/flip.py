"""Horizontal flip of some images (SimCLR appendix A, arXiv:2002.05709)."""

from __future__ import annotations

import tensorflow as tf

from data.randomness import uniform


def random_flip(image: tf.Tensor, seed: tf.Tensor, *, probability: float = 0.5) -> tf.Tensor:
    """Mirrors an image left to right with a probability.

    Args:
        image: [h, w, 3] or [b, h, w, 3].
        seed: [2] or [b, 2] integers.
        probability: of an image to be mirrored.

    Returns:
        Tensor of `image`'s shape and dtype.
    """
    flipped = uniform(seed, 1, 'flip')[..., tf.newaxis, tf.newaxis] < probability  # [..., 1, 1, 1]
    return tf.where(flipped, tf.reverse(image, axis=[-2]), image)
