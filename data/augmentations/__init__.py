"""The registry of augmentations: name → function and arguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from common.views import Op
from data.augmentations.blur import random_blur
from data.augmentations.color import distort_color
from data.augmentations.eval_crop import eval_crop
from data.augmentations.flip import random_flip
from data.augmentations.gray import random_gray
from data.augmentations.random_crop import random_crop
from data.augmentations.solarize import random_solarize
from data.config import DataConfig


def _nothing(config: DataConfig, size: int) -> dict[str, Any]:
    del config, size
    return {}


def _never(config: DataConfig, size: int) -> bool:
    del config, size
    return False


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One entry of the registry.

    Attributes:
        apply: (image, seed, **arguments) → image, float32 RGB in [0, 1]. Crops also take integers
            as stored. `seed` is a pair of integers and determines every draw.
        takes_batches: whether `apply` also takes [b, h, w, 3] images with [b, 2] seeds, with the
            same result as one image at a time, and compiles with XLA.
        settings: (config, size of the view in pixels) → arguments for which a view has no value.
        is_off: (config, size of the view) → whether the settings turn it off in every view.
    """

    apply: Callable[..., tf.Tensor]
    takes_batches: bool
    settings: Callable[[DataConfig, int], dict[str, Any]] = _nothing
    is_off: Callable[[DataConfig, int], bool] = _never

    @property
    def arguments(self) -> set[str]:
        """Names of the arguments that an `Op` may carry."""
        parameters = inspect.signature(self.apply).parameters.values()
        return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _blur_width(size: int) -> int:
    """Width of the kernel: 10% of the image's (SimCLR, appendix A)."""
    return size // 10


AUGMENTATIONS: dict[str, Augmentation] = {
    'crop': Augmentation(
        random_crop,
        takes_batches=False,
        settings=lambda config, size: {'size': size, 'area': (config.crop_min_area, 1.0)},
    ),
    'eval_crop': Augmentation(
        eval_crop, takes_batches=False, settings=lambda config, size: {'size': size}
    ),
    'flip': Augmentation(random_flip, takes_batches=True),
    'color': Augmentation(
        distort_color,
        takes_batches=True,
        settings=lambda config, size: {
            'strength': config.color_jitter_strength,
            'brightness': config.color_jitter_brightness,
        },
        # Strength 0 turns off gray too.
        is_off=lambda config, size: config.color_jitter_strength == 0,
    ),
    'blur': Augmentation(
        random_blur,
        takes_batches=True,
        settings=lambda config, size: {'kernel_size': _blur_width(size)},
        # A kernel of one pixel changes nothing.
        is_off=lambda config, size: not config.use_blur or _blur_width(size) < 2,
    ),
    'gray': Augmentation(
        random_gray,
        takes_batches=True,
        is_off=lambda config, size: config.color_jitter_strength == 0,
    ),
    'solarize': Augmentation(random_solarize, takes_batches=True),
}


def apply_op(
    op: Op, image: tf.Tensor, seed: tf.Tensor, *, config: DataConfig, size: int
) -> tf.Tensor:
    """Applies `op` to an image, or to a batch if its entry takes batches.

    Args:
        op: its own arguments override the settings.
        image: [h, w, 3] or [b, h, w, 3].
        seed: [2] or [b, 2] integers.
        config: the settings.
        size: height and width of the view, in pixels.
    """
    entry, own = entry_of(op), dict(op.arguments)
    if entry.is_off(config, size):
        return image
    return entry.apply(image, seed, **{**entry.settings(config, size), **own})


def entry_of(op: Op) -> Augmentation:
    """The registry entry of an operation.

    Raises:
        ValueError: if there is no such operation, or it has no such argument.
    """
    if op.name not in AUGMENTATIONS:
        raise ValueError(f'Expected one of {", ".join(AUGMENTATIONS)}; found {op.name!r}.')
    entry = AUGMENTATIONS[op.name]
    unknown = sorted({name for name, _ in op.arguments} - entry.arguments)
    if unknown:
        raise ValueError(
            f'Expected arguments of {op.name} among {", ".join(sorted(entry.arguments))}; found '
            f'{", ".join(unknown)}.'
        )
    return entry
