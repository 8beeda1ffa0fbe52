"""Converts images of any format and dtype to what every augmentation takes: RGB in [0, 1]."""

from __future__ import annotations

import tensorflow as tf

from common.errors import LINE_BEGINS, LINE_ENDS, UserError

# Value of --image_range -> values of black and white in floating-point images.
RANGES = {'0..1': (0.0, 1.0), '-1..1': (-1.0, 1.0), '0..255': (0.0, 255.0)}
ROUNDING = 1e-3  # tolerance for values outside of a range, as a share of it
_PNG, _GIF = (int.from_bytes(magic, 'big', signed=True) for magic in (b'\x89PNG', b'GIF8'))


def check_size(encoded: tf.Tensor, most: int, name: str | tf.Tensor) -> tf.Tensor:
    """Limits the number of pixels of an image file by its header, before it is decoded.

    Args:
        encoded: scalar string, the bytes of a PNG, JPEG, GIF or BMP file.
        most: largest number of pixels; 0 for no limit.
        name: of the image, for the message.

    Returns:
        `encoded`. The graph fails with a one-line message if the image has more pixels.
    """
    if not most:
        return encoded
    size = _size_in_header(encoded)
    refusal = _refuse_unless(
        tf.reduce_prod(tf.cast(size, tf.int64)) <= most,
        *('Images must have at most ', f'{most:,}', ' pixels (--max_pixels); ', name, ' has ('),
        *(size, '), height and width. Remove it, or raise the limit.'),
    )
    with tf.control_dependencies([refusal]):
        return tf.identity(encoded)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _size_in_header(encoded: tf.Tensor) -> tf.Tensor:
    """[2] int32, height and width; zeros if this is no image, which decoding will report."""
    head = tf.io.decode_raw(encoded, tf.int32, little_endian=False, fixed_length=28)

    def of_others() -> tf.Tensor:
        data = tf.cast(tf.io.decode_raw(encoded, tf.uint8, fixed_length=28), tf.int32)
        gif = tf.stack([data[8] + 256 * data[9], data[6] + 256 * data[7]])
        bmp = tf.io.decode_raw(encoded, tf.int16, fixed_length=28)
        bmp = tf.bitcast(tf.stack([bmp[11:13], bmp[9:11]]), tf.int32)
        is_bmp = (data[0] == ord('B')) & (data[1] == ord('M'))
        return tf.where(head[0] == _GIF, gif, tf.where(is_bmp, tf.abs(bmp), 0))

    return tf.cond(
        head[0] == _PNG,
        lambda: tf.reverse(head[4:6], [0]),
        lambda: tf.cond(
            tf.io.is_jpeg(encoded), lambda: tf.image.extract_jpeg_shape(encoded)[:2], of_others
        ),
    )


def _refuse_unless(condition: tf.Tensor, *words: str | tf.Tensor) -> tf.Operation | None:
    """An operation that fails with a one-line message, made of `words`, unless `condition`."""
    return tf.raw_ops.Assert(
        condition=condition, data=[LINE_BEGINS, *words, LINE_ENDS], summarize=3
    )


def to_rgb(image: tf.Tensor, image_range: str = '0..1', name: str | tf.Tensor = 'one') -> tf.Tensor:
    """Brings a decoded image to three channels: gray is repeated, alpha is dropped.

    Args:
        image: [h, w] or [h, w, c] with c from 1 to 4 (gray, gray + alpha, RGB, RGBA); any real
            dtype.
        image_range: key of RANGES, for floating-point images.
        name: of the image, for messages.

    Returns:
        [h, w, 3], either integers as stored, for `to_unit_range`, or float32 in [0, 1]. The graph
        fails with a one-line message if an image turns out to have more channels, or a
        floating-point one is not within `image_range`, apart from rounding.

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
            'Choose a data set of gray or color images.'
        )
    if channels != 3:
        # A gather works for every channel count, even if it is unknown until the image is read.
        count = tf.shape(image)[-1]
        refusal = _refuse_unless(
            count <= 4,
            *('Images must have 1 to 4 channels; ', name, ' has ', count, '. Leave it out.'),
        )
        with tf.control_dependencies([refusal]):
            colors = tf.where(count >= 3, [0, 1, 2], [0, 0, 0])
        image = tf.gather(image, colors, axis=-1)
        image.set_shape([None, None, 3])
    return _from_range(image, image_range, name) if image.dtype.is_floating else image


def _from_range(image: tf.Tensor, image_range: str, name: str | tf.Tensor) -> tf.Tensor:
    """Scales a floating-point `image` from its range to [0, 1], float32."""
    image = tf.cast(image, tf.float32)
    black, white = RANGES[image_range]
    slack = ROUNDING * (white - black)
    least, most = tf.reduce_min(image), tf.reduce_max(image)
    refusal = _refuse_unless(
        (least >= black - slack) & (most <= white + slack),  # False for NaN
        *('Images must be in ', image_range, ', the range of the first ones or of --image_range; '),
        *(name, ' has values from ', least, ' to ', most, '. Give the --image_range of all.'),
    )
    with tf.control_dependencies([refusal]):
        return tf.clip_by_value((image - black) / (white - black), 0.0, 1.0)


def to_unit_range(image: tf.Tensor) -> tf.Tensor:
    """Converts the result of `to_rgb`, or a part of it, to float32 in [0, 1].

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
    """Resizes to a square (bicubic), and clips what bicubic interpolation overshoots.

    Args:
        image: [h, w, 3] float32 in [0, 1], or integers as `to_unit_range` takes them.
        size: height and width of the result, in pixels.

    Returns:
        [size, size, 3] float32 in [0, 1].
    """
    image = to_unit_range(image)
    image = tf.image.resize(image, [size, size], method=tf.image.ResizeMethod.BICUBIC)
    return tf.clip_by_value(image, 0.0, 1.0)
