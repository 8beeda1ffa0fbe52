"""Color distortion: jitter in random order, then gray (SimCLR appendix A, arXiv:2002.05709)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from data.randomness import uniform

_OPERATIONS = 4
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as tf.image.rgb_to_grayscale
_TINY = 1e-20  # avoids a division by 0
# For red, green and blue: center, sign and offset in clip(offset + sign * |hue - center|).
_SHARES_OF_SPAN = ((3.0, 2.0, 4.0), (1.0, -1.0, -1.0), (-1.0, 2.0, 2.0))

# (planes of the three channels, amount) → planes
Operation: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """The draws for an image or, with a first axis [b], for a batch.

    Attributes:
        operations: the four operations of the jitter.
        amounts: [..., 4] float32, one for each operation.
        order: [..., 4] int32, numbers of the operations in the order in which they are applied.
        jitters: [...] bool, whether they are applied.
        becomes_gray: [...] bool.
    """

    operations: Sequence[Operation]
    amounts: tf.Tensor
    order: tf.Tensor
    jitters: tf.Tensor
    becomes_gray: tf.Tensor


def distort_color(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    strength: float,
    brightness: str = 'multiply',
    strengths: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2),
    probability: float = 0.8,
    gray_probability: float = 0.2,
) -> tf.Tensor:
    """Jitters colors with a probability, then makes the image gray with another.

    Defaults are those of SimCLR.

    Args:
        image: [h, w, 3] or [b, h, w, 3] float32 in [0, 1].
        seed: [2] or [b, 2] integers.
        strength: s, multiplies `strengths`.
        brightness: 'multiply' (SimCLRv2) or 'add' (SimCLRv1).
        strengths: of brightness, contrast, saturation and hue jitter, at s = 1.
        probability: of an image to be jittered.
        gray_probability: of an image to become gray.

    Returns:
        Tensor of `image`'s shape, float32 in [0, 1].
    """
    brighten = _brighten if brightness == 'multiply' else _lighten
    drawn = _Drawn(
        operations=(brighten, _contrast, _saturate, _turn_hue),
        amounts=_draw_amounts(seed, [strength * wide for wide in strengths], brightness),
        order=tf.argsort(uniform(seed, _OPERATIONS, 'jitter order'), axis=-1),
        jitters=uniform(seed, 1, 'jitter')[..., 0] < probability,
        # The stream's name decides the draws, so it stays as it was first spelled.
        becomes_gray=uniform(seed, 1, 'grey')[..., 0] < gray_probability,
    )
    return (_distort_one if image.shape.rank == 3 else _distort_batch)(image, drawn)


def _distort_one(image: tf.Tensor, drawn: _Drawn) -> tf.Tensor:
    """Distorts one image, [h, w, 3]: computes only the operations that it has drawn."""

    def take_turn(turn: tf.Tensor, planes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        branches = [
            functools.partial(_apply, operation, planes, drawn.amounts[which])
            for which, operation in enumerate(drawn.operations)
        ]
        return turn + 1, tf.switch_case(drawn.order[turn], branches)

    turns = tf.where(drawn.jitters, _OPERATIONS, 0)
    # With one plane per channel, operations vectorize over pixels.
    planes = tf.transpose(image, [2, 0, 1])
    _, planes = tf.while_loop(lambda turn, _: turn < turns, take_turn, (0, planes))
    planes = tf.cond(drawn.becomes_gray, lambda: gray(planes), lambda: planes)
    return tf.transpose(planes, [1, 2, 0])


def _distort_batch(images: tf.Tensor, drawn: _Drawn) -> tf.Tensor:
    """Distorts a batch, [b, h, w, 3]: computes everything and selects what each image has drawn.

    On accelerators shapes must not depend on values, and arithmetic is cheap.
    """

    def for_images(numbers: tf.Tensor) -> tf.Tensor:
        return numbers[:, tf.newaxis, tf.newaxis]  # [b, 1, 1], broadcasts to [3, b, h, w]

    def take_turn(turn: tf.Tensor, planes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen, result = tf.gather(drawn.order, turn, axis=-1), planes
        for which, operation in enumerate(drawn.operations):
            adjusted = _apply(operation, planes, for_images(drawn.amounts[:, which]))
            result = tf.where(for_images(drawn.jitters & (chosen == which)), adjusted, result)
        return turn + 1, result

    planes = tf.transpose(images, [3, 0, 1, 2])
    _, planes = tf.while_loop(lambda turn, _: turn < _OPERATIONS, take_turn, (0, planes))
    planes = tf.where(for_images(drawn.becomes_gray), gray(planes), planes)
    return tf.ensure_shape(tf.transpose(planes, [1, 2, 3, 0]), images.shape)


def gray(planes: tf.Tensor) -> tf.Tensor:
    """The image's luma in all three channels; [3, ...] float32 → [3, ...] float32."""
    red, green, blue = (weight * plane for weight, plane in zip(_LUMA, tf.unstack(planes)))
    return tf.broadcast_to(red + green + blue, tf.shape(planes))


def _draw_amounts(seeds: tf.Tensor, wide: Sequence[float], brightness: str) -> tf.Tensor:
    """[..., 4]: brightness factor (or summand), contrast and saturation factor, hue summand."""
    *factors, hue = wide
    # A factor below 0 would turn the image into its negative.
    low = [*(max(0.0, 1 - factor) for factor in factors), -hue]
    high = [*(1 + factor for factor in factors), hue]
    if brightness == 'add':
        low[0], high[0] = -factors[0], factors[0]
    share = uniform(seeds, _OPERATIONS, 'jitter amounts')
    return tf.constant(low) + share * (tf.constant(high) - tf.constant(low))


def _apply(operation: Operation, planes: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    return _clip(operation(planes, amount))


def _clip(planes: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(planes, 0.0, 1.0)


def _brighten(planes: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return planes * factor


def _lighten(planes: tf.Tensor, summand: tf.Tensor) -> tf.Tensor:
    return planes + summand


def _contrast(planes: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    # The mean of each channel, in two steps: shorter sums round less.
    mean = tf.reduce_mean(tf.reduce_mean(planes, axis=-1, keepdims=True), axis=-2, keepdims=True)
    return mean + (planes - mean) * factor


def _saturate(planes: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    # Saturation in HSV is s = (max - min) / max. Scaling it moves each channel away from the
    # largest one, which stays; s is at most 1, so the smallest channel stops at 0.
    largest, smallest = _extremes(planes)
    limit = largest / tf.maximum(largest - smallest, _TINY)
    return largest - (largest - planes) * tf.minimum(factor, limit)


def _turn_hue(planes: tf.Tensor, summand: tf.Tensor) -> tf.Tensor:
    red, green, blue = tf.unstack(planes)
    largest, smallest = _extremes(planes)
    span = largest - smallest
    # In sixths of the circle: 0 at red, 2 at green, 4 at blue.
    per_span = 1 / tf.maximum(span, _TINY)
    past_red = tf.where(green == largest, 2 + (blue - red) * per_span, 4 + (red - green) * per_span)
    hue = tf.where(red == largest, (green - blue) * per_span, past_red) + 6 * summand
    hue -= 6 * tf.floor(hue / 6)
    # A channel has the whole span within a sixth of its own hue, falls within the next sixth, and
    # is the smallest beyond. Red is where the circle wraps around.
    place = [-1] + [1] * (planes.shape.rank - 1)
    center, sign, offset = (tf.reshape(tf.constant(row), place) for row in _SHARES_OF_SPAN)
    return smallest + span * _clip(offset + sign * tf.abs(hue - center))


def _extremes(planes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The largest and the smallest channel of each pixel."""
    red, green, blue = tf.unstack(planes)
    largest = tf.maximum(tf.maximum(red, green), blue)
    return largest, tf.minimum(tf.minimum(red, green), blue)
