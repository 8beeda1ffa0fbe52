"""A plain Keras counterpart of the training step, as in a user's own script.

It is not part of the program; `steps` and `start` time it for comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf2.models.resnet_sizes import BLOCKS_PER_GROUP, GROUP_FILTERS

layers = tf.keras.layers
ABSENT = -1e9


def network(depth: int, width: float, size: int, classes: int) -> tf.keras.Model:
    """A ResNet of basic or bottleneck blocks with projection head and classifier.

    Maps [b, size, size, 3] to projections [b, 128] and logits [b, classes], float32.
    """
    images = tf.keras.Input([size, size, 3])
    hidden = _stem(images, int(64 * width), size)
    for group, filters in enumerate(GROUP_FILTERS):
        for position in range(BLOCKS_PER_GROUP[depth][group]):
            strides = 2 if group and not position else 1
            hidden = _block(hidden, int(filters * width), strides, depth >= 50, not position)
    features = layers.GlobalAveragePooling2D(dtype='float32')(hidden)
    projections = features
    for units in (features.shape[-1], features.shape[-1], 128):
        projections = layers.Dense(units, use_bias=False)(projections)
        projections = layers.BatchNormalization(fused=False)(projections)
        projections = layers.ReLU()(projections) if units != 128 else projections
    logits = layers.Dense(classes, dtype='float32')(tf.stop_gradient(features))
    return tf.keras.Model(images, [tf.cast(projections, tf.float32), logits])


def _stem(images: tf.Tensor, filters: int, size: int) -> tf.Tensor:
    if size <= 32:
        return _conv(images, filters, 3, 1)
    return layers.MaxPool2D(3, 2, 'same')(_conv(images, filters, 7, 2))


def _conv(
    images: tf.Tensor, filters: int, kernel: int, strides: int, relu: bool = True
) -> tf.Tensor:
    hidden = layers.Conv2D(filters, kernel, strides, 'same', use_bias=False)(images)
    hidden = layers.BatchNormalization()(hidden)
    return layers.ReLU()(hidden) if relu else hidden


def _block(
    images: tf.Tensor, filters: int, strides: int, bottleneck: bool, project: bool
) -> tf.Tensor:
    channels = 4 * filters if bottleneck else filters
    if bottleneck:
        hidden = _conv(_conv(images, filters, 1, 1), filters, 3, strides)
        hidden = _conv(hidden, channels, 1, 1, relu=False)
    else:
        hidden = _conv(_conv(images, filters, 3, strides), channels, 3, 1, relu=False)
    shortcut = _conv(images, channels, 1, strides, relu=False) if project else images
    return layers.ReLU()(hidden + shortcut)


def contrast(projections: tf.Tensor, temperature: float = 0.1) -> tf.Tensor:
    """NT-Xent with all similarities in one matrix: [2b, d], first views first, to a scalar."""
    rows = tf.math.l2_normalize(projections, -1)
    count = tf.shape(rows)[0]
    logits = tf.matmul(rows, rows, transpose_b=True) / temperature  # [2b, 2b]
    logits = tf.linalg.set_diag(logits, tf.fill([count], ABSENT))
    partners = tf.math.floormod(tf.range(count) + count // 2, count)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(partners, logits)
    return 2 * tf.reduce_mean(losses)


def step_of(
    depth: int, width: float, size: int, classes: int, precision: str
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A compiled step of momentum SGD: views [2b, size, size, 3] and labels [b] to the loss."""
    policy = 'float32' if precision == 'float32' else f'mixed_{precision}'
    tf.keras.mixed_precision.set_global_policy(policy)
    model = network(depth, width, size, classes)
    tf.keras.mixed_precision.set_global_policy('float32')
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9, jit_compile=False)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def step(views: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            projections, logits = model(views, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.tile(labels, [2]), logits)
            loss = contrast(projections) + tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    return step
