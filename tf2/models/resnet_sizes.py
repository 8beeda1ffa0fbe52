"""Sizes of the ResNets, and checks of their settings. Imports no TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import UserError

if TYPE_CHECKING:
    from tf2.config import ModelConfig

# Depth of a ResNet -> blocks in each of its groups.
BLOCKS_PER_GROUP = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
RESNET_DEPTHS = tuple(BLOCKS_PER_GROUP)
GROUP_FILTERS = (64, 128, 256, 512)
STEM_FILTERS = 64
MIN_SK_FILTERS = 32


def has_bottlenecks(depth: int) -> bool:
    """Whether a ResNet of this depth has bottleneck blocks: from 50 layers on."""
    return depth >= 50


def feature_width(depth: int, width_multiplier: float) -> int:
    """Channels of the representation."""
    return (4 if has_bottlenecks(depth) else 1) * int(GROUP_FILTERS[-1] * width_multiplier)


def count_groups(config: ModelConfig) -> int:
    """Number of block groups."""
    return len(BLOCKS_PER_GROUP[config.resnet_depth])


def check_settings(config: ModelConfig) -> None:
    """Raises UserError if the settings contradict each other, or a layer would vanish."""
    if config.sk_ratio > 0 and not has_bottlenecks(config.resnet_depth):
        raise UserError(
            f'--sk_ratio needs bottleneck blocks, --resnet_depth 50 or more; found depth '
            f'{config.resnet_depth} with sk_ratio {config.sk_ratio}.'
        )
    if int(STEM_FILTERS * config.width_multiplier) < 2:
        raise UserError(
            f'--width_multiplier must be at least 0.03125, which leaves the first layer 2 '
            f'channels; found {config.width_multiplier}.'
        )
