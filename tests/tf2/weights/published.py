"""Checkpoints as the published programs write them: their shapes, spelled out, and their files."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tests.support import GOLDEN, formula_weight

Shapes = dict[str, tuple[int, ...]]

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
SUFFIX = '/.ATTRIBUTES/VARIABLE_VALUE'
TRAINABLE = ('kernel', 'bias', 'gamma', 'beta')


def golden_shapes(case: str) -> Shapes:
    """Key -> shape of a golden model, in the order of the Keras layers' attributes."""
    described = json.loads((GOLDEN / 'models' / case / 'variables.json').read_text())
    return {key: tuple(shape) for key, shape in described['variables'].items()}


def shapes(
    depth: int,
    width: float = 1,
    sk: float = 0,
    se: float = 0,
    *,
    small: bool = False,
    head: int = 3,
    out: int = 128,
    classes: int | None = 1000,
) -> Shapes:
    """As `golden_shapes`, written from the papers' description and not from the models."""
    filters = [int(count * width) for count in (64, 128, 256, 512)]
    layers = [*_stem(filters[0], small, sk > 0)]
    bottleneck, channels = depth >= 50, filters[0]
    for group, (count, blocks) in enumerate(zip(filters, BLOCKS[depth])):
        for block in range(blocks):
            path = f'block_groups/{group}/layers/{block}'
            made = (_bottleneck if bottleneck else _basic)(count, channels, block == 0, group, sk)
            layers += [(f'{path}/{name}', words) for name, words in made]
            channels = 4 * count if bottleneck else count
            if se:
                place = f'conv_relu_dropblock_layers/{8 if sk else 9}' if bottleneck else 'se_layer'
                squeezed = max(1, int(count * se))
                gate = {'kernel': (1, 1, channels, squeezed), 'bias': (squeezed,)}
                layers.append((f'{path}/{place}/se_reduce', gate))
                gate = {'kernel': (1, 1, squeezed, channels), 'bias': (channels,)}
                layers.append((f'{path}/{place}/se_expand', gate))
    named = [(f'model/resnet_model/{name}', words) for name, words in layers]
    for index in range(head):
        last = index == head - 1
        units = out if last else channels
        path = f'model/_projection_head/linear_layers/{index}'
        norm = _norm(units)
        if last:
            del norm['beta']
        named += [(f'{path}/bn_relu/bn', norm), (f'{path}/dense', {'kernel': (channels, units)})]
    if classes:
        dense = {'kernel': (channels, classes), 'bias': (classes,)}
        named.append(('model/supervised_head/linear_layer/dense', dense))
    return {f'{name}/{word}': shape for name, words in named for word, shape in words.items()}


def _norm(channels: int) -> Shapes:
    return dict.fromkeys(('gamma', 'beta', 'moving_mean', 'moving_variance'), (channels,))


def _conv(size: int, channels: int, filters: int) -> Shapes:
    return {'kernel': (size, size, channels, filters)}


def _stem(width: int, small: bool, deep: bool) -> Iterator[tuple[str, Shapes]]:
    convs = [(7, 3, width)]
    if small:
        convs = [(3, 3, width)]
    elif deep:
        convs = [(3, 3, width // 2), (3, width // 2, width // 2), (3, width // 2, width)]
    for index, conv in enumerate(convs):
        last = index == len(convs) - 1
        yield f'initial_conv_relu_max_pool/{2 * index}/conv2d', _conv(*conv)
        yield f'initial_conv_relu_max_pool/{2 * index + 1 + last}/bn', _norm(conv[-1])


def _basic(
    filters: int, channels: int, first: bool, group: int, sk: float
) -> Iterator[tuple[str, Shapes]]:
    for index, incoming in ((0, channels), (2, filters)):
        yield f'conv2d_bn_layers/{index}/conv2d', _conv(3, incoming, filters)
        yield f'conv2d_bn_layers/{index + 1}/bn', _norm(filters)
    if first:
        yield 'shortcut_layers/0/conv2d', _conv(1, channels, filters)
        yield 'shortcut_layers/1/bn', _norm(filters)


def _bottleneck(
    filters: int, channels: int, first: bool, group: int, sk: float
) -> Iterator[tuple[str, Shapes]]:
    if first:
        place = (2 if group else 1) if sk else 0
        yield f'projection_layers/{place}/conv2d', _conv(1, channels, 4 * filters)
        yield f'projection_layers/{place + 1}/bn', _norm(4 * filters)
    path = 'conv_relu_dropblock_layers'
    yield f'{path}/0/conv2d', _conv(1, channels, filters)
    yield f'{path}/1/bn', _norm(filters)
    if sk:
        squeezed = max(32, int(filters * sk))
        yield f'{path}/3/conv2d_fixed_padding/conv2d', _conv(3, filters, 2 * filters)
        yield f'{path}/3/batch_norm_relu/bn', _norm(2 * filters)
        yield f'{path}/3/conv2d_0', _conv(1, filters, squeezed)
        yield f'{path}/3/batch_norm_relu_1/bn', _norm(squeezed)
        yield f'{path}/3/conv2d_1', _conv(1, squeezed, 2 * filters)
    else:
        yield f'{path}/3/conv2d', _conv(3, filters, filters)
        yield f'{path}/4/bn', _norm(filters)
    place = 5 if sk else 6
    yield f'{path}/{place}/conv2d', _conv(1, filters, 4 * filters)
    yield f'{path}/{place + 1}/bn', _norm(4 * filters)


# The spellings of the formats: name -> key.


def tf2_keys(names: Mapping[str, object]) -> dict[str, str]:
    return {name: f'{name}{SUFFIX}' for name in names}


def tf1_keys(names: Mapping[str, object]) -> dict[str, str]:
    """Numbers the encoder's layers in order of creation, shortcuts first."""
    counts = {'conv2d': 0, 'batch_normalization': 0}
    numbered: dict[str, str] = {}
    created = sorted(names, key=_creation(names))
    for layer in dict.fromkeys(name.rpartition('/')[0] for name in created):
        if layer.startswith('model/resnet_model'):
            kind = 'conv2d' if f'{layer}/kernel' in names else 'batch_normalization'
            numbered[layer] = f'base_model/{kind}_{counts[kind]}'.removesuffix('_0')
            counts[kind] += 1
    for name in names:
        layer = name.rpartition('/')[0]
        if match := re.fullmatch(r'model/_projection_head/linear_layers/(\d+)/(.*)', layer):
            kind = 'dense' if match[2] == 'dense' else 'batch_normalization'
            numbered[layer] = f'head_contrastive/nl_{match[1]}/{kind}'
        elif layer.startswith('model/supervised_head'):
            numbered[layer] = 'head_supervised/linear_layer/dense'
    return {
        name: f'{numbered[name.rpartition("/")[0]]}/{name.rpartition("/")[2]}' for name in names
    }


def _creation(names: Mapping[str, object]) -> object:
    blocks = {name: _block(name) for name in names}
    order = list(dict.fromkeys(blocks.values()))
    return lambda name: (order.index(blocks[name]), 'shortcut_layers' not in name)


def _block(name: str) -> str:
    match = re.match(r'.*/block_groups/\d+/layers/\d+', name)
    return match[0] if match else name.split('/')[1]


def saved_model_keys(names: Mapping[str, object]) -> dict[str, str]:
    """Trainable variables in one list; moving statistics in that of their part."""
    trainable = [name for name in names if name.rpartition('/')[2] in TRAINABLE]
    keys = {name: f'trainable_variables_list/{i}{SUFFIX}' for i, name in enumerate(trainable)}
    for part in ('model/resnet_model', 'model/_projection_head'):
        here = [name for name in names if name.startswith(part)]
        ordered = [n for n in here if n in keys] + [n for n in here if n not in keys]
        keys |= {n: f'{part}/variables/{i}{SUFFIX}' for i, n in enumerate(ordered) if n not in keys}
    return keys


def write(prefix: pathlib.Path, values: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint that has no object graph."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=[''] * len(values),
        tensors=[tf.constant(value) for value in values.values()],
    )


def formula_values(shapes: Shapes, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Key -> golden weights, drawn by the names in `shapes`."""
    return {keys[name]: formula_weight(name, shape) for name, shape in shapes.items()}
