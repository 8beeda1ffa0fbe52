"""The registry of augmentations: name → what it does to an image under a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from data.augmentations.blur import random_blur
from data.augmentations.color import distort_color
from data.augmentations.eval_crop import eval_crop
from data.augmentations.flip import random_flip
from data.augmentations.random_crop import random_crop
from data.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One entry of the registry.

    Attributes:
        apply: (image, seed, config) → image. float32 RGB in [0, 1] in and out, but what crops also
            takes integers as they are stored; `seed` is a pair of integers and fixes every draw.
        takes_batches: whether `apply` also takes [b, h, w, 3] images of one size with [b, 2]
            seeds, gives the same as one image at a time, and XLA compiles both.
    """

    apply: Callable[[tf.Tensor, tf.Tensor, DataConfig], tf.Tensor]
    takes_batches: bool


def _crop(image: tf.Tensor, seed: tf.Tensor, config: DataConfig) -> tf.Tensor:
    return random_crop(image, seed, size=config.image_size, min_area=config.crop_min_area)


def _eval_crop(image: tf.Tensor, seed: tf.Tensor, config: DataConfig) -> tf.Tensor:
    del seed  # Nothing is left to chance.
    return eval_crop(image, size=config.image_size)


def _flip(image: tf.Tensor, seed: tf.Tensor, config: DataConfig) -> tf.Tensor:
    del config  # Has no setting.
    return random_flip(image, seed)


def _color(image: tf.Tensor, seed: tf.Tensor, config: DataConfig) -> tf.Tensor:
    # Strength 0 turns the distortion off, grey included.
    if config.color_jitter_strength == 0:
        return image
    brightness = config.color_jitter_brightness
    return distort_color(image, seed, strength=config.color_jitter_strength, brightness=brightness)


def _blur(image: tf.Tensor, seed: tf.Tensor, config: DataConfig) -> tf.Tensor:
    kernel_size = config.image_size // 10
    # A kernel of one pixel changes nothing.
    if not config.use_blur or kernel_size < 2:
        return image
    return random_blur(image, seed, kernel_size=kernel_size)


AUGMENTATIONS: dict[str, Augmentation] = {
    'crop': Augmentation(_crop, takes_batches=False),
    'eval_crop': Augmentation(_eval_crop, takes_batches=False),
    'flip': Augmentation(_flip, takes_batches=True),
    'color': Augmentation(_color, takes_batches=True),
    'blur': Augmentation(_blur, takes_batches=True),
}
