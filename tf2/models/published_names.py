"""Names of our variables in the published TensorFlow 2 checkpoints of SimCLR.

Those of squeeze-and-excitation are assumed: no published file with it was available.
"""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from tf2.models.encoder import SimCLRModel
from tf2.models.heads import DenseBN
from tf2.models.layers import ConvBN
from tf2.models.resnet import Block, SelectiveKernel, Stem

Layer = tf.keras.layers.Layer
Named = tuple[str, Layer]


def tf2_names(model: SimCLRModel) -> dict[str, tf.Variable]:
    """Object path in the published TF2 checkpoints -> variable of the built `model`."""
    return _variables(
        [
            *encoder_layers(model),
            *_prefixed('model/_projection_head/linear_layers', _tf2_head_layers(model)),
            *_classifier_layers(model),
        ]
    )


def encoder_layers(model: SimCLRModel) -> list[Named]:
    """The encoder's layers that have variables, with their TF2 object paths, in order of creation.

    Args:
        model: built or not.
    """
    return list(_prefixed('model/resnet_model', _encoder_layers(model)))


def _variables(layers: list[Named]) -> dict[str, tf.Variable]:
    return {
        f'{name}/{_last_word(variable)}': variable
        for name, layer in layers
        for variable in layer.variables
    }


def _last_word(variable: tf.Variable) -> str:
    return variable.name.rsplit('/', 1)[-1].split(':')[0]


def _prefixed(prefix: str, layers: Iterator[Named]) -> Iterator[Named]:
    return ((f'{prefix}/{name}', layer) for name, layer in layers)


def _encoder_layers(model: SimCLRModel) -> Iterator[Named]:
    yield from _prefixed('initial_conv_relu_max_pool', _stem_layers(model.backbone.stem))
    for group_index, group in enumerate(model.backbone.groups):
        for block_index, block in enumerate(group):
            prefix = f'block_groups/{group_index}/layers/{block_index}'
            yield from _prefixed(prefix, _block_layers(block))


def _stem_layers(stem: Stem) -> Iterator[Named]:
    for index, unit in enumerate(stem.before):
        yield from _unit(unit, 2 * index)
    first = 2 * len(stem.before)
    yield f'{first}/conv2d', stem.conv.conv
    yield f'{first + 2}/bn', stem.bn  # the layer in between marks an endpoint


def _block_layers(block: Block) -> Iterator[Named]:
    basic = len(block.residual) == 2
    if block.shortcut:
        # In ResNet-D's shortcut, pooling comes first, after padding if it is strided.
        first = len(block.shortcut.pool.layers) if block.shortcut.pool else 0
        name = 'shortcut_layers' if basic else 'projection_layers'
        yield from _prefixed(name, _unit(block.shortcut.projection, first))
    name, index = ('conv2d_bn_layers', 0) if basic else ('conv_relu_dropblock_layers', 0)
    for layer in block.residual:
        if isinstance(layer, SelectiveKernel):
            yield from _prefixed(f'{name}/{index}', _selective_kernel_layers(layer))
            index += 2
        else:
            yield from _prefixed(name, _unit(layer, index))
            index += 2 if basic else 3  # bottlenecks have a place for DropBlock after each BN
    if block.excite:
        place = 'se_layer' if basic else f'{name}/{index}'
        yield f'{place}/se_reduce', block.excite.reduce
        yield f'{place}/se_expand', block.excite.expand


def _selective_kernel_layers(layer: SelectiveKernel) -> Iterator[Named]:
    yield 'conv2d_fixed_padding/conv2d', layer.branches.conv.conv
    yield 'batch_norm_relu/bn', layer.branches.bn
    yield 'conv2d_0', layer.squeeze.conv.conv
    yield 'batch_norm_relu_1/bn', layer.squeeze.bn
    yield 'conv2d_1', layer.expand.conv


def _unit(unit: ConvBN, index: int) -> Iterator[Named]:
    yield f'{index}/conv2d', unit.conv.conv
    yield f'{index + 1}/bn', unit.bn


def _tf2_head_layers(model: SimCLRModel) -> Iterator[Named]:
    for index, block in enumerate(model.projection_head.blocks):
        if isinstance(block, DenseBN):  # no published head has other layers
            yield f'{index}/dense', block.dense
            yield f'{index}/bn_relu/bn', block.bn


def _classifier_layers(model: SimCLRModel) -> list[Named]:
    name = 'model/supervised_head/linear_layer/dense'
    return [(name, model.classifier)] if model.classifier else []
