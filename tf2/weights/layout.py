"""Names of variables, and the layers of every ResNet with all their names."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from tf2.config import ModelConfig
from tf2.models.encoder import SimCLRModel
from tf2.models.published_names import encoder_layers, tf2_names
from tf2.models.resnet_sizes import BLOCKS_PER_GROUP, has_bottlenecks

ENCODER = 'model/resnet_model'
HEAD = 'model/_projection_head/linear_layers'
CLASSIFIER = 'model/supervised_head/linear_layer/dense'

CONV, GATE, NORM = 'conv', 'gate', 'norm'  # a gate is a convolution of squeeze-and-excitation
WORDS = {
    CONV: ('kernel',),
    GATE: ('kernel', 'bias'),
    NORM: ('gamma', 'beta', 'moving_mean', 'moving_variance'),
}


PARTS = ('backbone', 'projection_head', 'classifier')  # of a `SimCLRModel`


@dataclasses.dataclass(frozen=True)
class Naming:
    """Names of the variables of a model: prefixes, each followed by '/'.

    Attributes:
        encoder: of the encoder.
        head: of the projection head's layers, followed by their index from 0.
        classifier: of the linear classifier, followed by 'kernel' or 'bias'.
        variables: built model -> its variables by name.
    """

    encoder: str
    head: str
    classifier: str
    variables: Callable[[SimCLRModel], dict[str, tf.Variable]]


def own_variables(model: SimCLRModel) -> dict[str, tf.Variable]:
    """Object path in our checkpoints -> variable of the built `model`."""
    parts = ((part, getattr(model, part)) for part in PARTS)
    return {
        path: variable
        for part, module in parts
        if module is not None
        for path, variable in _variables_below(module, f'model/{part}', set())
    }


def _variables_below(node: object, path: str, seen: set[int]) -> Iterator[tuple[str, tf.Variable]]:
    """Each variable under the first path that leads to it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, tf.Variable):
        yield path, node
        return
    for name, child in tf.train.TrackableView.children(node).items():
        yield from _variables_below(child, f'{path}/{name}', seen)


PUBLISHED = Naming(ENCODER, HEAD, CLASSIFIER, tf2_names)
OWN = Naming('model/backbone', 'model/projection_head/blocks', 'model/classifier', own_variables)


@dataclasses.dataclass(frozen=True)
class Structure:
    """The layers of a ResNet, apart from their widths.

    Attributes:
        depth: of the ResNet.
        selective: whether it has selective kernels.
        deep_stem: whether its stem has three convolutions.
        excited: whether it has squeeze-and-excitation.
    """

    depth: int
    selective: bool
    deep_stem: bool
    excited: bool


@dataclasses.dataclass(frozen=True)
class EncoderLayer:
    """A layer of a ResNet.

    Attributes:
        name: object path in the published TF2 checkpoints, used throughout.
        own: object path in our checkpoints, relative to the encoder.
        kind: CONV, GATE or NORM.
    """

    name: str
    own: str
    kind: str


def structure_of(convolutions: int, excited: bool) -> Structure | None:
    """The structure with that many convolutions, not counting squeeze-and-excitation."""
    for depth in BLOCKS_PER_GROUP:
        plain = Structure(depth, False, False, excited)
        small = Structure(depth, True, False, excited)
        deep = Structure(depth, True, True, excited)
        for structure in (plain, small, deep) if has_bottlenecks(depth) else (plain,):
            if count_of(structure) == convolutions:
                return structure
    return None


def count_of(structure: Structure) -> int:
    """Number of convolutions, not counting squeeze-and-excitation."""
    in_block = 2
    if has_bottlenecks(structure.depth):
        in_block = 5 if structure.selective else 3  # a selective kernel takes three
    stem = 3 if structure.deep_stem else 1
    shortcuts = len(BLOCKS_PER_GROUP[structure.depth])
    return stem + shortcuts + in_block * sum(BLOCKS_PER_GROUP[structure.depth])


@functools.lru_cache
def layers_of(structure: Structure) -> tuple[EncoderLayer, ...]:
    """All layers with variables, in the published program's order of creation."""
    config = ModelConfig(
        resnet_depth=structure.depth,
        sk_ratio=0.0625 if structure.selective else 0.0,
        se_ratio=0.25 if structure.excited else 0.0,
        proj_head_mode='none',
    )
    # Not built, so no variables are created.
    model = SimCLRModel(config, 224 if structure.deep_stem else 32, None)
    paths = _object_paths(model.backbone)
    return tuple(
        EncoderLayer(name, paths[id(layer)], _kind(layer)) for name, layer in encoder_layers(model)
    )


def in_keras_order(layers: tuple[EncoderLayer, ...]) -> list[EncoderLayer]:
    """`layers` in the order in which Keras lists the published program's variables.

    This is the order of attributes, in which a basic block's shortcut comes last.
    """
    blocks = list(dict.fromkeys(block_of(layer.name) for layer in layers))

    def place(layer: EncoderLayer) -> tuple[int, bool]:
        return blocks.index(block_of(layer.name)), '/shortcut_layers/' in layer.name

    return sorted(layers, key=place)


def block_of(name: str) -> str:
    """The part of a layer's name that identifies its block; empty in the stem."""
    match = re.match(rf'{ENCODER}/block_groups/\d+/layers/\d+/', name)
    return match[0] if match else ''


def _object_paths(node: object, path: str = '') -> dict[int, str]:
    paths = {id(node): path}
    for name, child in tf.train.TrackableView.children(node).items():
        paths |= _object_paths(child, f'{path}/{name}' if path else name)
    return paths


def _kind(layer: tf.keras.layers.Layer) -> str:
    if not isinstance(layer, tf.keras.layers.Conv2D):
        return NORM
    return GATE if layer.use_bias else CONV
