"""ResNet encoders with width multiplier, selective kernels and squeeze-and-excitation.

He et al. 2016 (arXiv:1512.03385), in the variants of SimCLRv2 section 2 (arXiv:2006.10029).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from common.limits import SMALL_IMAGE
from tf2.config import ModelConfig
from tf2.models.layers import BatchNorm, Conv, ConvBN, FixedPadding, Layer, Norm
from tf2.models.resnet_sizes import (
    BLOCKS_PER_GROUP,
    GROUP_FILTERS,
    MIN_SK_FILTERS,
    STEM_FILTERS,
    feature_width,
    has_bottlenecks,
)


class SqueezeExcite(Layer):
    """Channel attention (Hu et al. 2018, arXiv:1709.01507, section 3)."""

    def __init__(self, block_filters: int, channels: int, ratio: float, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        squeezed = max(1, int(block_filters * ratio))

        def conv(filters: int) -> Layer:
            initializer = tf.keras.initializers.VarianceScaling(2.0)
            return tf.keras.layers.Conv2D(
                filters, 1, kernel_initializer=initializer, dtype=norm.dtype
            )

        self.reduce, self.expand = conv(squeezed), conv(channels)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Scales the channels of `images` [b, h, w, c]."""
        pooled = tf.reduce_mean(images, [1, 2], keepdims=True)  # [b, 1, 1, c]
        gates = self.expand(tf.nn.relu(self.reduce(pooled)))  # [b, 1, 1, c]
        return images * tf.sigmoid(gates)


class SelectiveKernel(Layer):
    """Two 3x3 convolutions mixed by attention (Li et al. 2019, arXiv:1903.06586).

    SimCLRv2 uses 3x3 kernels in both branches, so a single convolution computes both.
    """

    def __init__(self, filters: int, strides: int, ratio: float, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        self.branches = ConvBN(2 * filters, 3, strides, norm)
        self.squeeze = ConvBN(max(int(filters * ratio), MIN_SK_FILTERS), 1, 1, norm)
        self.expand = Conv(2 * filters, 1, 1, norm)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [b, h, w, c] to [b, ceil(h / strides), ceil(w / strides), filters]."""
        branches = self.branches(images, training=training)  # [b, h, w, 2f]
        first, second = tf.split(branches, 2, axis=-1)  # [b, h, w, f] each
        pooled = tf.reduce_mean(first + second, [1, 2], keepdims=True)  # [b, 1, 1, f]
        scores = self.expand(self.squeeze(pooled, training=training))  # [b, 1, 1, 2f]
        weights = tf.nn.softmax(tf.stack(tf.split(scores, 2, axis=-1)), axis=0)  # [2, b, 1, 1, f]
        return first * weights[0] + second * weights[1]


class Shortcut(Layer):
    """Projection of a block's input; if `averaged`, that of ResNet-D.

    He et al. 2019 (arXiv:1812.01187) average before the 1x1 convolution instead of striding it.
    """

    def __init__(self, filters: int, strides: int, averaged: bool, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        self.pool = None
        if averaged:
            pool = tf.keras.layers.AveragePooling2D(
                2, strides, 'valid' if strides > 1 else 'same', dtype=norm.dtype
            )
            padding = [FixedPadding(2, norm)] if strides > 1 else []
            self.pool = tf.keras.Sequential([*padding, pool])
        self.projection = ConvBN(filters, 1, 1 if averaged else strides, norm, relu=False)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [b, h, w, c] to [b, ceil(h / strides), ceil(w / strides), filters]."""
        pooled = self.pool(images) if self.pool else images
        return self.projection(pooled, training=training)


class Block(Layer):
    """A residual block: basic (two 3x3) or bottleneck (1x1, 3x3, 1x1), post-activation."""

    def __init__(
        self,
        filters: int,
        strides: int,
        *,
        bottleneck: bool,
        project: bool,
        sk_ratio: float,
        se_ratio: float,
        norm: Norm,
    ) -> None:
        super().__init__(dtype=norm.dtype)
        channels = 4 * filters if bottleneck else filters
        self.shortcut = Shortcut(channels, strides, sk_ratio > 0, norm) if project else None
        if bottleneck:
            middle = (
                SelectiveKernel(filters, strides, sk_ratio, norm)
                if sk_ratio > 0
                else ConvBN(filters, 3, strides, norm)
            )
            last = ConvBN(channels, 1, 1, norm, relu=False, zero_gamma=True)
            self.residual = [ConvBN(filters, 1, 1, norm), middle, last]
        else:
            last = ConvBN(channels, 3, 1, norm, relu=False, zero_gamma=True)
            self.residual = [ConvBN(filters, 3, strides, norm), last]
        self.excite = SqueezeExcite(filters, channels, se_ratio, norm) if se_ratio > 0 else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [b, h, w, c] to [b, ceil(h / strides), ceil(w / strides), channels]."""
        shortcut = self.shortcut(images, training=training) if self.shortcut else images
        residual = images
        for layer in self.residual:
            residual = layer(residual, training=training)
        if self.excite:
            residual = self.excite(residual)
        return tf.nn.relu(shortcut + residual)


class Stem(Layer):
    """The first convolution: 3x3 for small images, else three 3x3 as in ResNet-D, or 7x7/2."""

    def __init__(self, width: int, *, small_images: bool, deep: bool, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        self.before: list[Layer] = []
        if small_images:
            self.conv = Conv(width, 3, 1, norm)
        elif deep:
            self.before = [ConvBN(width // 2, 3, 2, norm), ConvBN(width // 2, 3, 1, norm)]
            self.conv = Conv(width, 3, 1, norm)
        else:
            self.conv = Conv(width, 7, 2, norm)
        self.bn = BatchNorm(norm)
        pool = tf.keras.layers.MaxPool2D(3, 2, 'same', dtype=norm.dtype)
        self.pool = None if small_images else pool

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the endpoints 'initial_conv' (before BN) and 'initial_max_pool'."""
        for layer in self.before:
            images = layer(images, training=training)
        convolved = self.conv(images)
        activated = tf.nn.relu(self.bn(convolved, training=training))
        pooled = self.pool(activated) if self.pool else activated
        return {'initial_conv': convolved, 'initial_max_pool': pooled}


class ResNet(tf.keras.Model):
    """ResNet 18, 34, 50, 101, 152 or 200; see `tf2.models`.

    Args:
        config: `resnet_depth`, `width_multiplier`, `sk_ratio` and `se_ratio` are read.
        norm: normalization and dtype policy.
        image_size: in pixels; up to `SMALL_IMAGE` the stem keeps the resolution.

    Attributes:
        width: channels of the representation.
    """

    def __init__(self, config: ModelConfig, norm: Norm, image_size: int) -> None:
        super().__init__(dtype=norm.dtype)
        self.width = feature_width(config.resnet_depth, config.width_multiplier)
        self.stem = Stem(
            int(STEM_FILTERS * config.width_multiplier),
            small_images=image_size <= SMALL_IMAGE,
            deep=config.sk_ratio > 0,
            norm=norm,
        )
        self.groups = []
        blocks_per_group = BLOCKS_PER_GROUP[config.resnet_depth]
        for index, (filters, blocks) in enumerate(zip(GROUP_FILTERS, blocks_per_group)):
            group = [
                Block(
                    int(filters * config.width_multiplier),
                    2 if index > 0 and position == 0 else 1,
                    bottleneck=has_bottlenecks(config.resnet_depth),
                    project=position == 0,
                    sk_ratio=config.sk_ratio,
                    se_ratio=config.se_ratio,
                    norm=norm,
                )
                for position in range(blocks)
            ]
            self.groups.append(group)

    @property
    def blocks(self) -> Sequence[Sequence[Layer]]:
        """Stem and the four groups."""
        # Not an attribute, which would change the layers' names in checkpoints.
        return [[self.stem], *self.groups]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Runs the encoder.

        Args:
            images: [b, h, w, 3] float32 in [0, 1].
            training: whether batch statistics are used and the moving ones updated.

        Returns:
            'initial_conv', 'initial_max_pool', 'block_group1' to 'block_group4' [b, h, w, c] in
            the compute dtype, and 'final_avg_pool' [b, d] float32.
        """
        endpoints = self.stem(images, training=training)
        features = endpoints['initial_max_pool']
        for number, group in enumerate(self.groups, start=1):
            for block in group:
                features = block(features, training=training)
            endpoints[f'block_group{number}'] = features
        pooled = tf.reduce_mean(tf.cast(features, tf.float32), [1, 2])  # [b, d]
        return {**endpoints, 'final_avg_pool': pooled}
