"""Colour distortion: jitter in random order, then grey (SimCLR appendix A, arXiv:2002.05709)."""

from __future__ import annotations

import tensorflow as tf

from data.randomness import uniform

JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
_OPERATIONS = 4
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as tf.image.rgb_to_grayscale


def distort_color(
    image: tf.Tensor, seed: tf.Tensor, *, strength: float, brightness: str = 'multiply'
) -> tf.Tensor:
    """Jitters the colours with probability 0.8, then makes the image grey with probability 0.2.

    Args:
        image: [h, w, 3] or [b, h, w, 3] float32 in [0, 1].
        seed: [2] or [b, 2] integers.
        strength: s; brightness, contrast and saturation vary by 0.8 s, hue by 0.2 s.
        brightness: 'multiply' (SimCLRv2) or 'add' (SimCLRv1).

    Returns:
        Tensor of `image`'s shape, float32 in [0, 1].
    """
    if image.shape.rank == 3:
        batch, seeds = image[tf.newaxis], seed[tf.newaxis]
        return distort_color(batch, seeds, strength=strength, brightness=brightness)[0]
    image = jitter(image, seed, strength=strength, brightness=brightness)
    becomes_grey = uniform(seed, 1, 'grey') < GREY_PROBABILITY  # [b, 1]
    return tf.where(becomes_grey[:, :, tf.newaxis, tf.newaxis], grey(image), image)


def grey(image: tf.Tensor) -> tf.Tensor:
    """The image's luma in all three channels; [..., 3] float32 → [..., 3] float32."""
    luma = tf.reduce_sum(image * tf.constant(_LUMA), axis=-1, keepdims=True)
    return tf.repeat(luma, 3, axis=-1)


def jitter(images: tf.Tensor, seeds: tf.Tensor, *, strength: float, brightness: str) -> tf.Tensor:
    """Brightness, contrast, saturation and hue, in an order that every image draws for itself.

    Args:
        images: [b, h, w, 3] float32 in [0, 1].
        seeds: [b, 2] integers.
        strength: as in `distort_color`.
        brightness: as in `distort_color`.

    Returns:
        [b, h, w, 3] float32 in [0, 1].
    """
    amounts = _draw_amounts(seeds, strength, brightness)  # [b, 4]
    order = tf.argsort(uniform(seeds, _OPERATIONS, 'jitter order'), axis=-1)  # [b, 4]
    left_alone = uniform(seeds, 1, 'jitter') >= JITTER_PROBABILITY  # [b, 1]
    order = tf.where(left_alone, _OPERATIONS, order)
    adjust_brightness = _brighten if brightness == 'multiply' else _lighten
    operations = (adjust_brightness, _contrast, _saturate, _turn_hue)
    for turn in range(_OPERATIONS):
        images = _apply_chosen(images, amounts, order[:, turn], operations)
    return images


def _draw_amounts(seeds: tf.Tensor, strength: float, brightness: str) -> tf.Tensor:
    """[b, 4]: brightness factor (or summand), contrast and saturation factor, hue summand."""
    wide = 0.8 * strength
    # A factor below 0 would turn the image into its negative.
    low = [max(0.0, 1 - wide), max(0.0, 1 - wide), max(0.0, 1 - wide), -0.2 * strength]
    high = [1 + wide, 1 + wide, 1 + wide, 0.2 * strength]
    if brightness == 'add':
        low[0], high[0] = -wide, wide
    share = uniform(seeds, _OPERATIONS, 'jitter amounts')
    return tf.constant(low) + share * (tf.constant(high) - tf.constant(low))


def _apply_chosen(images, amounts, chosen, operations) -> tf.Tensor:
    """Applies `operations[chosen[i]]` to image i; where there is no such operation, nothing.

    The batch is dealt out by operation, so that each image is worked on once per turn.
    """
    count = len(operations) + 1
    shares = tf.dynamic_partition(images, chosen, count)
    places = tf.dynamic_partition(tf.range(tf.shape(images)[0]), chosen, count)
    for which, operation in enumerate(operations):
        amount = tf.gather(amounts[:, which], places[which])[:, tf.newaxis, tf.newaxis, tf.newaxis]
        shares[which] = tf.clip_by_value(operation(shares[which], amount), 0.0, 1.0)
    return tf.ensure_shape(tf.dynamic_stitch(places, shares), images.shape)


def _brighten(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return images * factor


def _lighten(images: tf.Tensor, summand: tf.Tensor) -> tf.Tensor:
    return images + summand


def _contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)  # [b, 1, 1, 3]
    return mean + (images - mean) * factor


def _saturate(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    # Saturation in HSV is s = (max - min) / max. Scaling it moves each channel away from the
    # largest one, which stays; s is at most 1, so the smallest channel stops at 0.
    largest = tf.reduce_max(images, axis=-1, keepdims=True)
    smallest = tf.reduce_min(images, axis=-1, keepdims=True)
    limit = tf.math.divide_no_nan(largest, largest - smallest)
    # Where all channels are equal there is nothing to scale.
    return largest - (largest - images) * tf.minimum(factor, limit)


def _turn_hue(images: tf.Tensor, summand: tf.Tensor) -> tf.Tensor:
    hue, saturation, value = tf.split(tf.image.rgb_to_hsv(images), 3, axis=-1)
    return tf.image.hsv_to_rgb(
        tf.concat([tf.math.floormod(hue + summand, 1.0), saturation, value], axis=-1)
    )
