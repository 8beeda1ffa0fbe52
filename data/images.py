"""From whatever a file or a feature holds to what every augmentation takes: RGB in [0, 1]."""

from __future__ import annotations

import tensorflow as tf

from settings import UserError


def to_rgb(image: tf.Tensor) -> tf.Tensor:
    """Brings a decoded image to three channels: grey is repeated, alpha is dropped.

    Args:
        image: [h, w] or [h, w, c] with c from 1 to 4 (grey, grey + alpha, RGB, RGBA); any real
            dtype.

    Returns:
        [h, w, 3] of integers as they are stored, which `to_unit_range` takes, or float32 in
        [0, 1]. Floating-point images are taken as they are if they lie in [0, 1] and divided by
        255 if any value is larger.

    Raises:
        UserError: if the image has another rank or number of channels.
    """
    image = tf.convert_to_tensor(image)
    if image.shape.rank == 2:
        image = image[..., tf.newaxis]
    channels = image.shape[-1] if image.shape.rank == 3 else None
    if image.shape.rank not in (None, 3) or channels not in (None, 1, 2, 3, 4):
        raise UserError(
            f'Images must be [height, width, 1 to 4 channels]; found {image.shape}. '
            'Choose a data set of grey or colour images.'
        )
    if channels != 3:
        # A gather serves every channel count, also one that is known only when the file was read.
        is_colour = tf.shape(image)[-1] >= 3
        image = tf.gather(image, tf.where(is_colour, [0, 1, 2], [0, 0, 0]), axis=-1)
        image.set_shape([None, None, 3])
    if image.dtype.is_floating:
        image = tf.cast(image, tf.float32)
        scale = tf.where(tf.reduce_max(image) > 1.0, 255.0, 1.0)
        image = tf.clip_by_value(image / scale, 0.0, 1.0)
    return image


def to_unit_range(image: tf.Tensor) -> tf.Tensor:
    """Float32 in [0, 1] of what `to_rgb` gives, or of a part of it.

    Unsigned 16-bit values are divided by 65,535, other integers by 255.

    Args:
        image: [..., 3] of integers or booleans, or float32 in [0, 1].

    Returns:
        [..., 3] float32.
    """
    if image.dtype.is_floating:
        return image
    image, dtype = tf.cast(image, tf.float32), image.dtype
    if dtype == tf.bool:
        return image
    return image / (65535.0 if dtype == tf.uint16 else 255.0)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes to a square (bicubic); clipped, because bicubic interpolation overshoots.

    Args:
        image: [h, w, 3] float32 in [0, 1], or integers as `to_unit_range` takes them.
        size: height and width wanted, in pixels.

    Returns:
        [size, size, 3] float32 in [0, 1].
    """
    image = to_unit_range(image)
    image = tf.image.resize(image, [size, size], method=tf.image.ResizeMethod.BICUBIC)
    return tf.clip_by_value(image, 0.0, 1.0)
