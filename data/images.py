"""From whatever a file or a feature holds to what every augmentation takes: RGB in [0, 1]."""

from __future__ import annotations

import tensorflow as tf

from settings import UserError


def to_rgb(image: tf.Tensor) -> tf.Tensor:
    """Converts a decoded image to float32 RGB in [0, 1].

    Grey is repeated, alpha is dropped. Unsigned 16-bit values are divided by 65,535, other
    integers by 255. Floating-point images are taken as they are if they lie in [0, 1] and
    divided by 255 if any value is larger.

    Args:
        image: [h, w] or [h, w, c] with c from 1 to 4 (grey, grey + alpha, RGB, RGBA); any real
            dtype.

    Returns:
        [h, w, 3] float32.

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
    # A gather serves every channel count, also one that is known only when the file was read.
    is_colour = tf.shape(image)[-1] >= 3
    kept = tf.where(is_colour, [0, 1, 2], [0, 0, 0])
    image = tf.gather(_to_unit_range(image), kept, axis=-1)
    image.set_shape([None, None, 3])
    return image


def _to_unit_range(image: tf.Tensor) -> tf.Tensor:
    if image.dtype == tf.bool:
        return tf.cast(image, tf.float32)
    if image.dtype.is_floating:
        image = tf.cast(image, tf.float32)
        image = tf.where(tf.reduce_max(image) > 1.0, image / 255.0, image)
        return tf.clip_by_value(image, 0.0, 1.0)
    largest = 65535.0 if image.dtype == tf.uint16 else 255.0
    return tf.cast(image, tf.float32) / largest


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes to a square (bicubic); clipped, because bicubic interpolation overshoots.

    Args:
        image: [h, w, 3] float32 in [0, 1].
        size: height and width wanted, in pixels.

    Returns:
        [size, size, 3] float32 in [0, 1].
    """
    image = tf.image.resize(image, [size, size], method=tf.image.ResizeMethod.BICUBIC)
    return tf.clip_by_value(image, 0.0, 1.0)
