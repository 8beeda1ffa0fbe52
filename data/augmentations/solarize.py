"""Solarization of some images: bright pixels become dark (BYOL, appendix B, arXiv:2006.07733)."""

from __future__ import annotations

import tensorflow as tf

from data.randomness import uniform


def random_solarize(
    image: tf.Tensor, seed: tf.Tensor, *, threshold: float = 0.5, probability: float = 0.2
) -> tf.Tensor:
    """Inverts values of at least `threshold`, x → 1 - x, with a probability.

    Args:
        image: [h, w, 3] or [b, h, w, 3] float32 in [0, 1].
        seed: [2] or [b, 2] integers.
        threshold: smallest value that is inverted.
        probability: of an image to be solarized.

    Returns:
        Tensor of `image`'s shape, float32 in [0, 1].
    """
    draws = uniform(seed, 1, 'solarize')[..., tf.newaxis, tf.newaxis]  # [..., 1, 1, 1]
    chosen = draws < probability
    return tf.where(chosen & (image >= threshold), 1 - image, image)
