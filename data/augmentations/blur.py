"""Gaussian blur of half of the images, each with its own sigma (SimCLR appendix A)."""

from __future__ import annotations

import tensorflow as tf

from data.randomness import uniform

_BLOCK = 56  # pixels blurred by one product: a quarter of the usual 224


def random_blur(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    kernel_size: int,
    probability: float = 0.5,
    sigma: tuple[float, float] = (0.1, 2.0),
) -> tf.Tensor:
    """Blurs an image with a probability, and with a random sigma.

    Defaults are those of SimCLR.

    Args:
        image: [h, w, 3] or [b, h, w, 3] float32 in [0, 1]; static h and w.
        seed: [2] or [b, 2] integers.
        kernel_size: width of the kernel in pixels, made odd; the paper takes 10% of the image's.
        probability: of an image to be blurred.
        sigma: range of the uniform standard deviation, in pixels.

    Returns:
        Tensor of `image`'s shape, float32 in [0, 1].
    """
    draws = uniform(seed, 2, 'blur')  # [..., 2]
    sigmas = sigma[0] + draws[..., 1] * (sigma[1] - sigma[0])
    chosen = draws[..., 0] < probability
    if image.shape.rank == 3:
        return tf.cond(
            chosen,
            lambda: gaussian_blur(image, sigmas, kernel_size=kernel_size),
            lambda: image,
        )
    # All images are blurred, since on accelerators shapes must not depend on values.
    blurred = gaussian_blur(image, sigmas, kernel_size=kernel_size)
    return tf.where(chosen[:, tf.newaxis, tf.newaxis, tf.newaxis], blurred, image)


def gaussian_blur(images: tf.Tensor, sigma: tf.Tensor, *, kernel_size: int) -> tf.Tensor:
    """Convolves each image with its own Gaussian, with zero padding.

    Args:
        images: [h, w, c] or [b, h, w, c] float32 in [0, 1]; static h, w and c.
        sigma: scalar or [b] float32, standard deviation in pixels.
        kernel_size: the kernel reaches kernel_size // 2 pixels to each side.

    Returns:
        Tensor of `images`' shape, float32 in [0, 1].
    """
    height, width, channels = images.shape[-3:]
    batch = [-1] * (images.shape.rank - 3)
    radius = kernel_size // 2
    band = _band(sigma, radius)
    # With the channels in the middle, plain matrix products blur both rows and columns.
    swap = [*range(len(batch) + 1), len(batch) + 2, len(batch) + 1]
    images = tf.reshape(tf.transpose(images, swap), [*batch, height, channels * width])
    rows = [tf.matmul(weights, part) for weights, part in _blocks(images, -2, band, radius)]
    images = tf.reshape(tf.concat(rows, axis=-2), [*batch, height * channels, width])
    columns = [
        tf.matmul(part, weights, transpose_b=True)
        for weights, part in _blocks(images, -1, band, radius)
    ]
    images = tf.reshape(tf.concat(columns, axis=-1), [*batch, height, channels, width])
    return tf.clip_by_value(tf.transpose(images, swap), 0.0, 1.0)


def _band(sigma: tf.Tensor, radius: int) -> tf.Tensor:
    """[..., _BLOCK, _BLOCK + 2 · radius]: a normalized Gaussian, shifted by one in each row."""
    sigma = sigma[..., tf.newaxis]
    taps = tf.range(-radius, radius + 1, dtype=tf.float32)
    norm = tf.reduce_sum(tf.exp(-(taps**2) / (2 * sigma**2)), axis=-1)  # [...]
    to = tf.range(_BLOCK, dtype=tf.float32)
    of = tf.range(-radius, _BLOCK + radius, dtype=tf.float32)
    distance = of - to[:, tf.newaxis]
    weights = tf.exp(-(distance**2) / (2 * sigma[..., tf.newaxis] ** 2))
    weights = tf.where(tf.abs(distance) <= radius, weights, 0.0)
    return weights / norm[..., tf.newaxis, tf.newaxis]


def _blocks(
    images: tf.Tensor, axis: int, band: tf.Tensor, radius: int
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """For each block along `axis`: weights, and the part of `images` that they are applied to.

    A single matrix for the whole length would be mostly zeros.
    """
    length = images.shape[axis]
    paddings = [[0, 0] for _ in images.shape]
    paddings[axis] = [radius, radius]
    images, blocks = tf.pad(images, paddings), []
    for start in range(0, length, _BLOCK):
        size = min(_BLOCK, length - start)
        end = start + size + 2 * radius
        part = images[..., start:end, :] if axis == -2 else images[..., start:end]
        blocks.append((band[..., :size, : size + 2 * radius], part))
    return blocks
