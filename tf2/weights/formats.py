"""Maps variables to keys of a checkpoint, for all formats.

If a record gives the architecture, variables are named by their object paths in our checkpoints
(`OWN`). Otherwise the network is a ResNet, whatever the format, and variables are named by their
object paths in the published TF2 checkpoints (`PUBLISHED`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from common.errors import UserError
from tf2.models.resnet_sizes import RESNET_DEPTHS
from tf2.weights.layout import (
    CLASSIFIER,
    CONV,
    ENCODER,
    GATE,
    HEAD,
    NORM,
    OWN,
    PARTS,
    PUBLISHED,
    WORDS,
    EncoderLayer,
    Naming,
    Structure,
    block_of,
    in_keras_order,
    layers_of,
    structure_of,
)

Shapes = Mapping[str, tuple[int, ...]]
Layers = dict[str, dict[str, str]]  # layer -> word, such as 'kernel' -> key in the file

OURS = 'checkpoint of this program'
TF1 = 'official TF1 checkpoint'
TF2 = 'official TF2 checkpoint'
SAVED_MODEL = 'official TF2 SavedModel'

NOTHING: Mapping[str, str] = MappingProxyType({})
SUFFIX = '/.ATTRIBUTES/VARIABLE_VALUE'
LISTED = 'trainable_variables_list'
WORD = '(kernel|bias|gamma|beta|moving_mean|moving_variance)'


@dataclasses.dataclass(frozen=True)
class Contents:
    """The variables of a model in a checkpoint.

    Attributes:
        format: OURS, TF1, TF2 or SAVED_MODEL.
        naming: of the variables.
        structure: of the ResNet; None if a record gives the architecture.
        keys: variable -> key in the file.
        shapes: variable -> shape.
        not_weights: the other keys: optimizer slots, averages, memory, counters.
    """

    format: str
    naming: Naming
    structure: Structure | None
    keys: Mapping[str, str]
    shapes: Shapes
    not_weights: tuple[str, ...]


@dataclasses.dataclass
class _Parts:
    """Layers as a format names them; those of the encoder are sorted by name or number."""

    encoder: Layers = dataclasses.field(default_factory=dict)
    head: Layers = dataclasses.field(default_factory=dict)  # '<index>/<dense or bn_relu/bn>'
    classifier: dict[str, str] = dataclasses.field(default_factory=dict)


def own_keys(shapes: Shapes, graph: TrackableObjectGraph | None) -> dict[str, str]:
    """Variable, named by `OWN`, -> key in a checkpoint of ours; empty for any other.

    Args:
        shapes: key -> shape of everything in the file.
        graph: its object graph. It is needed because exported modules store a variable under
            another of its paths.
    """
    if graph is None:
        return {}
    roots = {child.local_name: child.node_id for child in graph.nodes[0].children}
    if 'model' not in roots:
        return {}
    model = {child.local_name: child.node_id for child in graph.nodes[roots['model']].children}
    return {
        name: key
        for part in PARTS
        if 'backbone' in model and part in model
        for name, key in _below(graph, model[part], f'model/{part}', {roots['model']})
        if key in shapes
    }


def recorded_contents(own: Mapping[str, str], shapes: Shapes) -> Contents:
    """The contents of a checkpoint of ours whose architecture is recorded.

    Args:
        own: see `own_keys`.
        shapes: key -> shape of everything in the file.
    """
    return _of_keys(OURS, OWN, None, own, shapes)


def contents_of(path: str, shapes: Shapes, own: Mapping[str, str] = NOTHING) -> Contents:
    """The contents of a checkpoint of a ResNet, in any format.

    Args:
        path: for messages.
        shapes: key -> shape of everything in the file.
        own: see `own_keys`.

    Raises:
        UserError: if it is of another kind of model, or part of the encoder is missing.
    """
    if own:
        parts, pair, form = _matched(own, OWN_PATTERNS), _by_own_name, OURS
    elif any(key.startswith(f'{LISTED}/') for key in shapes):
        parts, pair, form = _listed_parts(path, shapes), _in_keras_order, SAVED_MODEL
    elif any(key.startswith(f'{ENCODER}/') for key in shapes):
        parts, pair, form = _matched(_stripped(shapes), TF2_PATTERNS), _by_name, TF2
    else:
        names = {key: key for key in shapes}
        parts, pair, form = _matched(names, TF1_PATTERNS), _in_creation_order, TF1
    if not parts.encoder:
        raise UserError(_other_kind(path, shapes))
    return _contents(path, form, parts, pair, shapes)


def _contents(path: str, form: str, parts: _Parts, pair: Callable, shapes: Shapes) -> Contents:
    kinds = {name: _kind(words, shapes) for name, words in parts.encoder.items()}
    found = list(kinds.values())
    structure = structure_of(found.count(CONV), GATE in found)
    if structure is None:
        depths = ', '.join(str(depth) for depth in RESNET_DEPTHS)
        raise UserError(
            f'--checkpoint={path} should hold a complete encoder, a ResNet {depths}; found '
            f'{found.count(CONV)} convolutions, which none of them has. Choose another one.'
        )
    pairs = pair(layers_of(structure), parts.encoder, kinds, shapes)
    keys = _encoder_keys(path, structure, pairs, parts.encoder)
    keys |= {
        f'{HEAD}/{layer}/{word}': key
        for layer, words in sorted(parts.head.items(), key=lambda item: _numbers(item[0]))
        for word, key in words.items()
    }
    keys |= {f'{CLASSIFIER}/{word}': key for word, key in parts.classifier.items()}
    return _of_keys(form, PUBLISHED, structure, keys, shapes)


def _of_keys(
    form: str,
    naming: Naming,
    structure: Structure | None,
    keys: Mapping[str, str],
    shapes: Shapes,
) -> Contents:
    used = set(keys.values())
    rest = tuple(sorted(key for key in shapes if key not in used))
    found = {name: shapes[key] for name, key in keys.items()}
    return Contents(form, naming, structure, keys, found, rest)


def _kind(words: Mapping[str, str], shapes: Shapes) -> str:
    if 'kernel' not in words:
        return NORM
    # No other convolution of the encoder has a bias.
    return GATE if 'bias' in words else CONV


def _encoder_keys(
    path: str, structure: Structure, pairs: Mapping[str, str], encoder: Layers
) -> dict[str, str]:
    """Variable -> key of a complete encoder; raises UserError if a variable is missing."""
    keys, missing = {}, []
    for layer in layers_of(structure):
        words = encoder.get(pairs.get(layer.name, ''), {})
        keys |= {f'{layer.name}/{word}': words[word] for word in WORDS[layer.kind] if word in words}
        missing += [f'{layer.name}/{word}' for word in WORDS[layer.kind] if word not in words]
    if missing:
        raise UserError(
            f'--checkpoint={path} should hold a complete encoder; found one without {len(missing)} '
            f'of the variables of a ResNet-{structure.depth}, such as {missing[0]}. '
            'Choose another one.'
        )
    return keys


def _other_kind(path: str, shapes: Shapes) -> str:
    keys = sorted(shapes)
    found = ', '.join(keys[:3]) if keys else 'no variable at all'
    return (
        f'--checkpoint={path} should hold a SimCLR model: keys such as {ENCODER}/…, '
        f'model/backbone/… or base_model/…; found another kind: {found}. Choose another one.'
    )


# Our own and the official checkpoints, whose keys name the layer.


def _stripped(shapes: Shapes) -> dict[str, str]:
    return {key.removesuffix(SUFFIX): key for key in shapes}


def _below(
    graph: TrackableObjectGraph, node_id: int, path: str, seen: set[int]
) -> Iterator[tuple[str, str]]:
    """(Object path, key) of the variables below a node, each under its first path."""
    if node_id in seen:
        return
    seen.add(node_id)
    node = graph.nodes[node_id]
    for attribute in node.attributes:
        yield path, attribute.checkpoint_key
    for child in node.children:
        yield from _below(graph, child.node_id, f'{path}/{child.local_name}', seen)


@dataclasses.dataclass(frozen=True)
class _Patterns:
    encoder: str  # groups: layer, word
    head: str  # groups: index, dense or not, word
    classifier: str  # group: word


OWN_PATTERNS = _Patterns(
    rf'model/backbone/(.+)/{WORD}',
    rf'model/projection_head/blocks/(\d+)/(dense|bn)/{WORD}',
    rf'model/classifier/{WORD}',
)
TF2_PATTERNS = _Patterns(
    rf'({ENCODER}/.+)/{WORD}',
    rf'{HEAD}/(\d+)/(dense|bn_relu/bn)/{WORD}',
    rf'{CLASSIFIER}/{WORD}',
)
TF1_PATTERNS = _Patterns(
    rf'base_model/(.+)/{WORD}',
    rf'head_contrastive/n?l_(\d+)/(dense|batch_normalization)(?:_\d+)?/{WORD}',
    rf'head_supervised/linear_layer/dense(?:_\d+)?/{WORD}',
)


def _matched(names: Mapping[str, str], patterns: _Patterns) -> _Parts:
    """Divides name -> key into parts. Slots have longer names, which don't match."""
    parts = _Parts()
    for name in sorted(names, key=_numbers):
        if match := re.fullmatch(patterns.encoder, name):
            parts.encoder.setdefault(match[1], {})[match[2]] = names[name]
        elif match := re.fullmatch(patterns.head, name):
            layer = 'dense' if match[2] == 'dense' else 'bn_relu/bn'
            parts.head.setdefault(f'{match[1]}/{layer}', {})[match[3]] = names[name]
        elif match := re.fullmatch(patterns.classifier, name):
            parts.classifier[match[1]] = names[name]
    return parts


def _numbers(name: str) -> list[tuple[str, int]]:
    """Sort key that puts 'conv2d' before 'conv2d_2', and that before 'conv2d_10'."""
    pieces = [re.fullmatch(r'(.*?)_?(\d*)', piece) for piece in name.split('/')]
    # TF1 and Keras append _1, _2, …; the 2d of conv2d belongs to the word.
    return [(piece[1], int(piece[2] or 0)) for piece in pieces]


def _by_name(
    layers: tuple[EncoderLayer, ...], encoder: Layers, kinds: Mapping[str, str], shapes: Shapes
) -> dict[str, str]:
    """Pairs layers by name, but gates by block: their published names are uncertain."""
    pairs = {layer.name: layer.name for layer in layers if layer.kind != GATE}
    wanted = _by_block(layer.name for layer in layers if layer.kind == GATE)
    found = _by_block(name for name in encoder if kinds[name] == GATE)
    for block, names in wanted.items():
        pairs |= dict(zip(names, _reduce_first(found.get(block, []), encoder, shapes)))
    return pairs


def _by_block(names: Iterable[str]) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def _by_own_name(layers: tuple[EncoderLayer, ...], *_: object) -> dict[str, str]:
    return {layer.name: layer.own for layer in layers}


def _in_creation_order(
    layers: tuple[EncoderLayer, ...], encoder: Layers, kinds: Mapping[str, str], shapes: Shapes
) -> dict[str, str]:
    """Pairs the n-th convolution with the n-th, the n-th gate with the n-th, and so on."""
    pairs = {}
    for kind in WORDS:
        wanted = [layer.name for layer in layers if layer.kind == kind]
        found = [name for name in encoder if kinds[name] == kind]
        if kind == GATE:
            twos = [found[i : i + 2] for i in range(0, len(found), 2)]
            found = [name for two in twos for name in _reduce_first(two, encoder, shapes)]
        pairs |= dict(zip(wanted, found))
    return pairs


def _in_keras_order(
    layers: tuple[EncoderLayer, ...], encoder: Layers, kinds: Mapping[str, str], shapes: Shapes
) -> dict[str, str]:
    return _in_creation_order(tuple(in_keras_order(layers)), encoder, kinds, shapes)


def _reduce_first(gates: list[str], encoder: Layers, shapes: Shapes) -> list[str]:
    """The two gates of a block: first the one that reduces, then the one that expands."""

    def place(name: str) -> tuple[bool, bool]:
        channels, filters = shapes[encoder[name]['kernel']][2:]
        return channels < filters, 'expand' in name

    return sorted(gates, key=place)


# Official SavedModels, which hold lists of variables.


def _listed_parts(path: str, shapes: Shapes) -> _Parts:
    """Layers of an official SavedModel, from two kinds of lists.

    `trainable_variables_list` holds encoder, head and classifier. The moving statistics are in the
    `variables` of encoder and head. These lists start with the part's trainable variables, so the
    smallest index of a statistic is their number.
    """
    trainable = _numbered_keys(shapes, LISTED)
    encoder_moving = _numbered_keys(shapes, f'{ENCODER}/variables')
    head_moving = _numbered_keys(shapes, 'model/_projection_head/variables')
    split = min(encoder_moving, default=0)
    end = split + min(head_moving, default=0)
    if sorted(trainable) != list(range(len(trainable))) or split > len(trainable):
        raise UserError(
            f'--checkpoint={path} should list the trainable variables of an encoder, 0 to '
            f'{max(split, len(trainable)) - 1}; found {len(trainable)} of them. Choose another one.'
        )
    keys = [trainable[index] for index in range(len(trainable))]
    parts = _Parts(encoder=_listed_encoder(keys[:split], _values(encoder_moving), shapes))
    parts.head = _listed_head(keys[split:end], _values(head_moving), shapes)
    parts.classifier = dict(zip(('kernel', 'bias'), keys[end:]))
    return parts


def _numbered_keys(shapes: Shapes, prefix: str) -> dict[int, str]:
    pattern = re.compile(rf'{re.escape(prefix)}/(\d+){re.escape(SUFFIX)}')
    matches = [pattern.fullmatch(key) for key in shapes]
    return {int(match[1]): match[0] for match in matches if match}


def _values(numbered: Mapping[int, str]) -> list[str]:
    return [numbered[index] for index in sorted(numbered)]


def _listed_encoder(keys: list[str], moving: list[str], shapes: Shapes) -> Layers:
    """Each kernel is followed by its bias, by gamma and beta, or by nothing."""
    encoder: Layers = {}
    norms = 0
    starts = [index for index, key in enumerate(keys) if len(shapes[key]) == 4]
    for start, end in zip(starts, [*starts[1:], len(keys)]):
        layer = encoder[f'{start}'] = {'kernel': keys[start]}
        if end - start == 2:
            layer['bias'] = keys[start + 1]
        elif end - start == 3:
            statistics = moving[2 * norms : 2 * norms + 2]
            encoder[f'{start + 1}'] = dict(zip(WORDS[NORM], [*keys[start + 1 : end], *statistics]))
            norms += 1
    return encoder


def _listed_head(keys: list[str], moving: list[str], shapes: Shapes) -> Layers:
    """Gamma and beta, which the last layer lacks, come before the kernel."""
    head: Layers = {}
    ends = [index for index, key in enumerate(keys) if len(shapes[key]) == 2]
    for index, (start, end) in enumerate(zip([0, *(end + 1 for end in ends)], ends)):
        head[f'{index}/dense'] = {'kernel': keys[end]}
        statistics = dict(zip(WORDS[NORM][2:], moving[2 * index : 2 * index + 2]))
        head[f'{index}/bn_relu/bn'] = {**dict(zip(WORDS[NORM], keys[start:end])), **statistics}
    return head
