"""Builds the object that is saved: a copy of a model that takes images or encoded files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import tensorflow as tf

from tf2.models.encoder import SimCLRModel
from tf2.models.kernels import kernel_layers, kernel_of

Endpoints: TypeAlias = Mapping[str, tf.Tensor]
Decode: TypeAlias = Callable[[tf.Tensor], tf.Tensor]

IMAGES = tf.TensorSpec([None, None, None, 3], tf.float32, 'images')
BYTES = tf.TensorSpec([None], tf.string, 'bytes')


def plain_copy(model: SimCLRModel, image_size: int) -> SimCLRModel:
    """A copy of `model` on one CPU, in float32, whose classifier passes gradients to the encoder.

    Args:
        model: built; under a distribution strategy or not.
        image_size: height and width in pixels that it was built for.

    Returns:
        A built model with the same weights. Nothing in it is frozen.

    Raises:
        ValueError: within a strategy's scope, or if `model` doesn't have the variables its
            configuration asks for.
    """
    if tf.distribute.has_strategy():
        raise ValueError('A model is exported outside of strategy.scope(); found a scope.')
    with tf.device('/cpu:0'):
        copy = SimCLRModel(model.config, image_size, model.num_classes, make_head=model.make_head)
        # Creates the variables. With no image this takes less than tracing, as `build_model` does.
        copy(tf.zeros([0, image_size, image_size, 3]))
        _copy_weights(model, copy)
    return copy


def _copy_weights(source: SimCLRModel, target: SimCLRModel) -> None:
    """Copies each variable to the one at the same path in the model.

    The order of `variables` can't be used, because it depends on what is frozen.
    """
    sources, targets = _variables_by_path(source), _variables_by_path(target)
    if sources.keys() != targets.keys():
        differing = ', '.join(sorted(sources.keys() ^ targets.keys()))
        raise ValueError(f'Expected the same variables in model and copy; differing: {differing}.')
    for path, variable in targets.items():
        value = sources[path].numpy()
        if value.shape != variable.shape:
            raise ValueError(
                f'{path}: expected shape {variable.shape}, found {value.shape}. '
                'Is image_size the one the model was built for?'
            )
        variable.assign(value)


def _variables_by_path(node: tf.Module, path: str = 'model') -> dict[str, tf.Variable]:
    if isinstance(node, tf.Variable):
        return {path: node}
    found: dict[str, tf.Variable] = {}
    for name, child in tf.train.TrackableView.children(node).items():
        found |= _variables_by_path(child, f'{path}/{name}')
    return found


def build_module(
    model: SimCLRModel, image_size: int, decode: Decode, weight_decay: float
) -> tuple[tf.train.Checkpoint, dict[str, tf.types.experimental.ConcreteFunction]]:
    """Wraps `model` for `tf.saved_model.save`.

    Args:
        model: built outside of any strategy.
        image_size: pixels of the images `decode` returns.
        decode: maps encoded bytes, a string scalar, to an image [image_size, image_size, 3]
            float32 in [0, 1].
        weight_decay: factor of the L2 term in `regularization_losses`.

    Returns:
        The object, with the attributes that TensorFlow Hub's "Reusable SavedModel" interface asks
        for, and its signatures by name.
    """
    infer = _forward(model, training=False)

    @tf.function(input_signature=[BYTES], autograph=False)
    def decode_and_infer(encoded: tf.Tensor) -> Endpoints:
        image = tf.TensorSpec([image_size, image_size, 3], tf.float32)
        return infer(tf.map_fn(decode, encoded, fn_output_signature=image))  # [b, h, w, 3] in

    # A Checkpoint, so that the saved variables are also a checkpoint of the model. Restoring that
    # expects the counter too.
    root = tf.train.Checkpoint(model=_skeleton(model, {}))
    root.save_counter.assign(0)
    root.variables = list(model.variables)
    root.trainable_variables = list(model.trainable_variables)
    root.regularization_losses = _regularization_losses(model, weight_decay)
    root.__call__ = _callable(infer, _forward(model, training=True))
    signatures = {
        'serving_default': infer,
        'encoded_images': decode_and_infer.get_concrete_function(),
    }
    return root, signatures


def _forward(model: SimCLRModel, *, training: bool) -> tf.types.experimental.ConcreteFunction:
    # With AutoGraph, tracing would take three times as long. A concrete function, because saving
    # would trace any other function again.
    forward = tf.function(lambda images: model(images, training=training), autograph=False)
    return forward.get_concrete_function(IMAGES)


def _callable(
    infer: tf.types.experimental.ConcreteFunction, train: tf.types.experimental.ConcreteFunction
) -> tf.types.experimental.GenericFunction:
    """One function that takes `training` or `trainable`, traced for each combination.

    The traces only call `infer` or `train`, so the network is stored once for each mode.
    """

    @tf.function(autograph=False)
    def call(images: tf.Tensor, training: bool = False, trainable: bool = False) -> Endpoints:
        return train(images) if training or trainable else infer(images)

    for training in (False, True):
        for trainable in (False, True):
            call.get_concrete_function(IMAGES, training=training, trainable=trainable)
    return call


def _regularization_losses(
    model: SimCLRModel, weight_decay: float
) -> list[tf.types.experimental.GenericFunction]:
    """A function that returns weight_decay * sum over kernels of |w|^2 / 2; none without decay."""
    kernels = [kernel_of(layer) for layer in kernel_layers(model)]

    @tf.function(input_signature=[], autograph=False)
    def loss() -> tf.Tensor:
        return weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])

    return [loss] if weight_decay else []


def _skeleton(node: tf.Module, done: dict[int, tf.Module]) -> tf.Module:
    """The variables of `node` in modules with the same names, without Keras.

    A SavedModel of Keras layers contains several traces of each, many times the size of the
    network. Restoring a checkpoint needs only the names.
    """
    if isinstance(node, tf.Variable):
        return node
    if id(node) not in done:
        done[id(node)] = tf.Module()
        for name, child in tf.train.TrackableView.children(node).items():
            setattr(done[id(node)], name, _skeleton(child, done))
    return done[id(node)]
