"""Convolution with padding that doesn't depend on the image size."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Positions of an 8 x 8 map. On a CPU with AVX512-BF16, matrix products were faster than oneDNN's
# gradient of the kernel for maps up to this size, and slower for larger ones.
SMALL_MAP = 64
# Channels that oneDNN's kernels process at once with AVX512. With fewer channels, its gradient of a
# strided 1x1 kernel writes past the end of its memory (TensorFlow 2.15.1).
VECTOR = 16

Gradients = tuple[tf.Tensor, tf.Tensor]


def fixed_padding(kernel_size: int) -> list[list[int]]:
    """Paddings of [b, h, w, c]: (k - 1) // 2 before and the rest after, whatever h and w are."""
    before = (kernel_size - 1) // 2
    after = kernel_size - 1 - before
    return [[0, 0], [before, after], [before, after], [0, 0]]


def convolve(
    images: tf.Tensor, kernel: tf.Tensor, strides: int, *, filter_products: bool = False
) -> tf.Tensor:
    """Convolves after `fixed_padding`, which at stride 1 is SAME padding.

    Args:
        images: [b, h, w, c].
        kernel: [k, k, c, f], of the dtype of `images`.
        strides: in both directions.
        filter_products: whether to compute the gradient of the kernel by matrix products if the
            result is a small map (`SMALL_MAP`), where oneDNN uses a CPU's bfloat16 poorly. Equal up
            to rounding.

    Returns:
        [b, ceil(h / strides), ceil(w / strides), f], of that dtype.
    """
    size = kernel.shape[0]
    padding = 'SAME' if strides == 1 or size == 1 else 'VALID'
    if padding == 'VALID':
        # oneDNN has no gradients for explicit padding.
        images = tf.pad(images, fixed_padding(size))
    if size == 1 and strides > 1 and images.shape[-1] < VECTOR:
        images, strides = (
            images[:, ::strides, ::strides],
            1,
        )  # all it reads
    if not (filter_products and size > 1 and _gives_small_map(images, size, strides, padding)):
        return tf.nn.conv2d(images, kernel, strides, padding)

    @tf.custom_gradient
    def convolved(
        images: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
        def gradients(errors: tf.Tensor) -> Gradients:
            of_images = tf.compat.v1.nn.conv2d_backprop_input(
                tf.shape(images), kernel, errors, [1, strides, strides, 1], padding
            )
            padded = tf.pad(images, fixed_padding(size)) if padding == 'SAME' else images
            return of_images, filter_gradient(padded, errors, size, strides)

        return tf.nn.conv2d(images, kernel, strides, padding), gradients

    return convolved(images, kernel)


def _gives_small_map(images: tf.Tensor, kernel_size: int, strides: int, padding: str) -> bool:
    """Whether the result is a small map, according to static shapes."""
    _, height, width, _ = images.shape
    if height is None or width is None:
        return False
    lost = kernel_size - 1 if padding == 'VALID' else 0
    return -(-(height - lost) // strides) * -(-(width - lost) // strides) <= SMALL_MAP


def filter_gradient(
    images: tf.Tensor, errors: tf.Tensor, kernel_size: int, strides: int
) -> tf.Tensor:
    """The gradient of a convolution's kernel, by one matrix product per position in it.

    Args:
        images: [b, h, w, c], already padded; static except b.
        errors: [b, h', w', f], gradient of the result; static except b.
        kernel_size: k.
        strides: of the convolution.

    Returns:
        [k, k, c, f].
    """
    channels, filters = images.shape[-1], errors.shape[-1]
    columns = tf.reshape(errors, [-1, filters])  # [b h' w', f]
    products = [
        tf.matmul(tf.reshape(part, [-1, channels]), columns, transpose_a=True)
        for part in _parts(images, errors.shape[1], errors.shape[2], kernel_size, strides)
    ]
    return tf.reshape(tf.stack(products), [kernel_size, kernel_size, channels, filters])


def _parts(
    images: tf.Tensor, height: int, width: int, kernel_size: int, strides: int
) -> list[tf.Tensor]:
    """What each position in the kernel reads, row by row: [b, height, width, c] each."""
    _, rows, columns, channels = images.shape
    missing = [[0, 0], [0, -rows % strides], [0, -columns % strides], [0, 0]]
    whole = tf.pad(images, missing) if rows % strides or columns % strides else images
    # An axis for the offset within a stride, because strided slices are slow.
    rows, columns = (-(-length // strides) for length in (rows, columns))
    split = tf.reshape(whole, [-1, rows, strides, columns, strides, channels])
    return [
        split[
            :,
            i // strides : i // strides + height,
            i % strides,
            j // strides : j // strides + width,
            j % strides,
        ]
        for i in range(kernel_size)
        for j in range(kernel_size)
    ]
