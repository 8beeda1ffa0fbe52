"""Gaussian blur of half of the images, each with its own width (SimCLR appendix A)."""

from __future__ import annotations

import tensorflow as tf

from data.randomness import uniform

PROBABILITY = 0.5
_SIGMA = (0.1, 2.0)


def random_blur(image: tf.Tensor, seed: tf.Tensor, *, kernel_size: int) -> tf.Tensor:
    """Blurs with probability 0.5 and sigma uniform in [0.1, 2], drawn image by image.

    Args:
        image: [h, w, 3] or [b, h, w, 3] float32 in [0, 1]; static h and w.
        seed: [2] or [b, 2] integers.
        kernel_size: width of the kernel in pixels, made odd; the paper takes 10% of the image's.

    Returns:
        Tensor of `image`'s shape, float32 in [0, 1].
    """
    if image.shape.rank == 3:
        return random_blur(image[tf.newaxis], seed[tf.newaxis], kernel_size=kernel_size)[0]
    draws = uniform(seed, 2, 'blur')  # [b, 2]
    sigma = _SIGMA[0] + draws[:, 1] * (_SIGMA[1] - _SIGMA[0])
    # Only the chosen images are computed.
    chosen = tf.where(draws[:, 0] < PROBABILITY)  # [blurred, 1]
    blurred = gaussian_blur(
        tf.gather_nd(image, chosen), tf.gather_nd(sigma, chosen), kernel_size=kernel_size
    )
    return tf.tensor_scatter_nd_update(image, chosen, blurred)


def gaussian_blur(images: tf.Tensor, sigma: tf.Tensor, *, kernel_size: int) -> tf.Tensor:
    """Convolves each image with its own Gaussian; beyond the border the images are 0.

    Args:
        images: [b, h, w, c] float32 in [0, 1]; static h, w and c.
        sigma: [b] float32, standard deviation in pixels.
        kernel_size: the kernel reaches kernel_size // 2 pixels to each side.

    Returns:
        [b, h, w, c] float32 in [0, 1].
    """
    _, height, width, channels = images.shape
    radius = kernel_size // 2
    rows = tf.reshape(images, [-1, height, width * channels])
    rows = tf.matmul(_blur_matrix(sigma, height, radius), rows)  # [b, h, w·c]
    columns = tf.transpose(tf.reshape(rows, [-1, height, width, channels]), [0, 2, 1, 3])
    columns = tf.reshape(columns, [-1, width, height * channels])
    columns = tf.matmul(_blur_matrix(sigma, width, radius), columns)  # [b, w, h·c]
    columns = tf.reshape(columns, [-1, width, height, channels])
    return tf.clip_by_value(tf.transpose(columns, [0, 2, 1, 3]), 0.0, 1.0)


def _blur_matrix(sigma: tf.Tensor, length: int, radius: int) -> tf.Tensor:
    """[b, length, length]: a one-dimensional convolution with a normalised Gaussian as a matrix."""
    sigma = sigma[:, tf.newaxis]
    taps = tf.range(-radius, radius + 1, dtype=tf.float32)
    norm = tf.reduce_sum(tf.exp(-(taps**2) / (2 * sigma**2)), axis=-1)  # [b]
    place = tf.range(length, dtype=tf.float32)
    distance = place[:, tf.newaxis] - place  # [length, length]
    weights = tf.exp(-(distance**2) / (2 * sigma[..., tf.newaxis] ** 2))
    weights = tf.where(tf.abs(distance) <= radius, weights, 0.0)
    return weights / norm[:, tf.newaxis, tf.newaxis]
