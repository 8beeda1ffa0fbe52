"""Layers that encoders and heads share: padding, batch normalization, convolution."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf2 import collectives
from tf2.config import NORM_VECTOR
from tf2.models import convolution
from tf2.models.convolution import fixed_padding

Layer = tf.keras.layers.Layer
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Norm:
    """Settings of the layers of a network.

    Attributes:
        momentum: of the moving batch statistics.
        synchronized: whether statistics are taken over all replicas. Leave it off on a single
            replica: the fused kernel is much faster.
        parts: number of parts, of equal size and in the order of the rows, into which a replica's
            batch is divided; each has statistics of its own. More than 1 excludes `synchronized`.
        dtype: Keras dtype policy, such as 'float32' or 'mixed_bfloat16'.
        filter_products: see `convolution.convolve`.
    """

    momentum: float = 0.9
    synchronized: bool = False
    parts: int = 1
    dtype: str = 'float32'
    filter_products: bool = False


class BatchNorm(Layer):
    """Batch normalization over all axes but the last (Ioffe & Szegedy 2015, arXiv:1502.03167).

    As in the published weights, the moving variance averages the biased batch variance. (Keras's
    fused layer first multiplies it by n / (n - 1), which matters for small batches.) With
    `trainable = False` the layer uses its moving statistics and doesn't update them. Statistics are
    float32 whatever the compute dtype.

    Args:
        norm: momentum, synchronization and dtype policy.
        center: whether there is a beta.
        scale: whether there is a gamma.
        zero_gamma: whether gamma starts at 0, so that a residual block starts as its shortcut.
    """

    def __init__(
        self, norm: Norm, *, center: bool = True, scale: bool = True, zero_gamma: bool = False
    ) -> None:
        super().__init__(dtype=norm.dtype)
        self.norm = norm
        self.center = center
        self.scale = scale
        self.zero_gamma = zero_gamma

    def build(self, shape: tf.TensorShape) -> None:
        """Creates gamma, beta and the moving statistics, each [c] float32."""
        channels = shape[-1]

        def weight(name: str, start: str, **kwargs: object) -> tf.Variable:
            return self.add_weight(
                name, [channels], tf.float32, start, experimental_autocast=False, **kwargs
            )

        # Each replica has its own moving statistics; reading them, as a checkpoint does, returns
        # the mean over replicas.
        moving = {
            'trainable': False,
            'synchronization': tf.VariableSynchronization.ON_READ,
            'aggregation': tf.VariableAggregation.MEAN,
        }
        self.gamma = weight('gamma', 'zeros' if self.zero_gamma else 'ones') if self.scale else None
        self.beta = weight('beta', 'zeros') if self.center else None
        self.moving_mean = weight('moving_mean', 'zeros', **moving)
        self.moving_variance = weight('moving_variance', 'ones', **moving)
        super().build(shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalizes `inputs` [..., c]; the result has their shape and dtype."""
        images = inputs if inputs.shape.rank == 4 else inputs[:, None, None]  # [b, h, w, c]
        if not (training and self.trainable):
            outputs, *_ = self._fused(images, self.moving_mean, self.moving_variance)
        elif self._across_replicas():
            exact = tf.cast(images, tf.float32)  # cast once: the backward pass keeps it
            mean, variance = self._global_moments(exact)
            outputs = tf.cast(self._normalize(exact, mean, variance), images.dtype)
            self._update(mean, variance)
        else:
            outputs, mean, variance = self._by_parts(images)
            count = tf.cast(tf.reduce_prod(tf.shape(images)[:3]), tf.float32) / self.norm.parts
            self._update(mean, variance * (count - 1) / count)
        return outputs if inputs.shape.rank == 4 else outputs[:, 0, 0]

    def _across_replicas(self) -> bool:
        return (
            self.norm.synchronized and tf.distribute.get_replica_context().num_replicas_in_sync > 1
        )

    def _factor(self) -> tf.Tensor:
        return self.gamma if self.scale else tf.ones(self.moving_mean.shape)

    def _offset(self) -> tf.Tensor:
        return self.beta if self.center else tf.zeros(self.moving_mean.shape)

    def _fused(
        self, images: tf.Tensor, mean: tf.Tensor | None = None, variance: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The fused kernel: normalized images, mean, and variance times n / (n - 1).

        Statistics are those of the batch unless `mean` and `variance` [c] are given.
        """
        training = mean is None
        dtype = images.dtype
        if images.shape[-1] % NORM_VECTOR:
            images = tf.cast(images, tf.float32)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=self._factor(),
            offset=self._offset(),
            mean=tf.zeros([0]) if training else mean,
            variance=tf.zeros([0]) if training else variance,
            epsilon=EPSILON,
            exponential_avg_factor=1.0,
            is_training=training,
        )
        return tf.cast(outputs, dtype), mean, variance

    def _by_parts(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`_fused` for each part of the batch; mean and variance are means over the parts."""
        parts = self.norm.parts
        if parts == 1:
            return self._fused(images)
        outputs, means, variances = zip(*map(self._fused, tf.split(images, parts)))
        return tf.concat(outputs, 0), tf.add_n(means) / parts, tf.add_n(variances) / parts

    def _normalize(self, images: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        """Normalizes float32 `images` [b, h, w, c]; gradients flow through the statistics [c]."""
        scale = self._factor() * tf.math.rsqrt(variance + EPSILON)
        shift = self._offset() - mean * scale
        return images * scale + shift

    def _global_moments(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance [c] over the float32 batches, of equal size, of all replicas."""
        mean, variance = tf.nn.moments(images, [0, 1, 2])
        local = tf.stack([mean, variance + tf.square(mean)])  # [2, c]
        mean, square = tf.unstack(collectives.mean_over_replicas(local))
        return mean, tf.nn.relu(square - tf.square(mean))

    def _update(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        rate = 1 - self.norm.momentum
        self.moving_mean.assign_sub((self.moving_mean - tf.stop_gradient(mean)) * rate)
        self.moving_variance.assign_sub((self.moving_variance - tf.stop_gradient(variance)) * rate)


class FixedPadding(Layer):
    """Pads (k - 1) // 2 before and the rest after, whatever the image size.

    SAME padding of a strided convolution depends on the image size. This doesn't, so features are
    aligned between sizes.
    """

    def __init__(self, kernel_size: int, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        self.paddings = fixed_padding(kernel_size)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Pads `images` [b, h, w, c] with zeros to [b, h + k - 1, w + k - 1, c]."""
        return tf.pad(images, self.paddings)


class Conv(Layer):
    """Convolution without bias: SAME padding at stride 1, else fixed padding."""

    def __init__(self, filters: int, kernel_size: int, strides: int, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        self.conv = PaddedConv2D(
            filters,
            kernel_size,
            strides,
            padding='same',
            use_bias=False,
            kernel_initializer=tf.keras.initializers.VarianceScaling(2.0),
            dtype=norm.dtype,
        )
        self.conv.filter_products = norm.filter_products

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Maps [b, h, w, c] to [b, ceil(h / strides), ceil(w / strides), filters]."""
        return self.conv(images)


class PaddedConv2D(tf.keras.layers.Conv2D):
    """Keras's layer with `convolution.convolve`."""

    filter_products = False

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return convolution.convolve(
            inputs,
            tf.convert_to_tensor(kernel),
            self.strides[0],
            filter_products=self.filter_products,
        )


class ConvBN(Layer):
    """Convolution, batch normalization and, unless `relu` is off, a ReLU."""

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int,
        norm: Norm,
        *,
        relu: bool = True,
        zero_gamma: bool = False,
    ) -> None:
        super().__init__(dtype=norm.dtype)
        self.conv = Conv(filters, kernel_size, strides, norm)
        self.bn = BatchNorm(norm, zero_gamma=zero_gamma)
        self.relu = relu

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [b, h, w, c] to [b, ceil(h / strides), ceil(w / strides), filters]."""
        normalized = self.bn(self.conv(images), training=training)
        return tf.nn.relu(normalized) if self.relu else normalized
