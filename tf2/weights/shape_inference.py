"""Infers the settings of a ResNet from the shapes in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import UserError
from tf2.models.resnet_sizes import GROUP_FILTERS, MIN_SK_FILTERS, has_bottlenecks
from tf2.weights.formats import Contents
from tf2.weights.layout import ENCODER, GATE, HEAD, block_of, layers_of

STEM = f'{ENCODER}/initial_conv_relu_max_pool/0/conv2d/kernel'
PUBLISHED_SK_RATIO = 0.0625  # SimCLRv2, section 3 (arXiv:2006.10029)


def infer(path: str, contents: Contents) -> dict[str, Any]:
    """Settings of encoder and projection head, as fields of `ModelConfig`.

    A head without its last layer is taken to be one layer longer; `proj_out_dim` is then unknown.

    Args:
        path: for messages.
        contents: of the checkpoint.

    Raises:
        UserError: if no settings give these channels.
    """
    return {**infer_encoder(path, contents), **_head(contents)}


def infer_encoder(path: str, contents: Contents) -> dict[str, Any]:
    """Settings of the encoder alone.

    Several ratios may give the same shapes: then it is the published one, or else the shortest
    number.

    Args:
        path: for messages.
        contents: of the checkpoint.

    Raises:
        UserError: if no settings give these channels.
    """
    structure = contents.structure
    filters = _filters(contents)
    squeezed = _squeezed(contents) if structure.selective else None
    gated = _gated(contents) if structure.excited else None
    found: dict[str, Any] = {
        'resnet_depth': structure.depth,
        'width_multiplier': _width(filters),
        'sk_ratio': _sk_ratio(filters, squeezed) if squeezed else 0.0,
        'se_ratio': _se_ratio(filters, gated) if gated else 0.0,
    }
    odd = [name for name, value in found.items() if value is None]
    if odd:
        raise UserError(
            f'--checkpoint={path} should hold an encoder whose channels double from group to '
            f'group; found {filters} channels, which no {odd[0]} gives. Choose another one.'
        )
    return found


def is_for_small_images(contents: Contents) -> bool:
    """Whether the encoder's stem keeps the resolution."""
    return not contents.structure.deep_stem and contents.shapes[STEM][0] == 3


def class_count(contents: Contents) -> int | None:
    """Number of classes of the linear classifier; None without one."""
    kernel = contents.shapes.get(f'{contents.naming.classifier}/kernel')
    return kernel[-1] if kernel else None


def head_layer_count(contents: Contents) -> int:
    """Number of layers of the projection head, from the first on."""
    count = 0
    while any(name.startswith(f'{contents.naming.head}/{count}/') for name in contents.shapes):
        count += 1
    return count


def head_is_whole(contents: Contents) -> bool:
    """Whether the head's last layer, which has no beta, is there; True if there is no head.

    Always True for runs of ours.
    """
    if contents.structure is None:
        return True
    last = head_layer_count(contents) - 1
    return f'{HEAD}/{last}/bn_relu/bn/beta' not in contents.shapes


def same_width(first: float, second: float) -> bool:
    """Whether both width multipliers give the same channels."""
    return widths(first) == widths(second)


def widths(multiplier: float) -> list[int]:
    """Filters of the four groups."""
    return [int(filters * multiplier) for filters in GROUP_FILTERS]


def sk_widths(filters: list[int], ratio: float) -> list[int]:
    """Filters in the bottlenecks of selective kernels, by group."""
    return [max(int(count * ratio), MIN_SK_FILTERS) for count in filters]


def se_widths(filters: list[int], ratio: float) -> list[int]:
    """Filters in the bottlenecks of squeeze-and-excitation, by group."""
    return [max(int(count * ratio), 1) for count in filters]


def _width(filters: list[int]) -> float | int | None:
    # The widest group determines a fraction most precisely.
    found = _shortest(filters[-1] / GROUP_FILTERS[-1], lambda width: widths(width) == filters)
    return int(found) if found is not None and found == int(found) else found


def _sk_ratio(filters: list[int], squeezed: list[int]) -> float | None:
    def fits(ratio: float) -> bool:
        return sk_widths(filters, ratio) == squeezed

    least = _least_ratio(filters, squeezed, MIN_SK_FILTERS)
    return PUBLISHED_SK_RATIO if fits(PUBLISHED_SK_RATIO) else _shortest(least, fits)


def _se_ratio(filters: list[int], gated: list[int]) -> float | None:
    least = _least_ratio(filters, gated, 1)
    return _shortest(least, lambda ratio: se_widths(filters, ratio) == gated)


def _least_ratio(filters: list[int], reduced: list[int], minimum: int) -> float:
    """The smallest ratio that may give `reduced`, or any one if all are at `minimum`."""
    ratios = [r / f for r, f in zip(reduced, filters) if r > minimum]
    return max(ratios, default=minimum / filters[-1])


def _shortest(least: float, fits: Callable[[float], bool]) -> float | None:
    """A number that fits, `least` or slightly above, with few digits if possible."""
    rounded = [math.ceil(least * 10**digits) / 10**digits for digits in range(1, 7)]
    exact = [least] if len(str(least)) <= len('0.0625') else []
    candidates = [*exact, *rounded, least, math.nextafter(least, math.inf)]
    return next((number for number in candidates if fits(number)), None)


def _filters(contents: Contents) -> list[int]:
    """Filters of the four groups: those of the first convolution of their first block."""
    bottleneck = has_bottlenecks(contents.structure.depth)
    path = 'conv_relu_dropblock_layers' if bottleneck else 'conv2d_bn_layers'
    return [_first(contents, group, f'{path}/0/conv2d') for group in range(len(GROUP_FILTERS))]


def _squeezed(contents: Contents) -> list[int]:
    path = 'conv_relu_dropblock_layers/3/conv2d_0'
    return [_first(contents, group, path) for group in range(len(GROUP_FILTERS))]


def _first(contents: Contents, group: int, layer: str) -> int:
    return contents.shapes[f'{ENCODER}/block_groups/{group}/layers/0/{layer}/kernel'][-1]


def _gated(contents: Contents) -> list[int]:
    gates = [layer.name for layer in layers_of(contents.structure) if layer.kind == GATE]
    first = {block_of(name): name for name in reversed(gates)}
    blocks = [f'{ENCODER}/block_groups/{group}/layers/0/' for group in range(len(GROUP_FILTERS))]
    return [contents.shapes[f'{first[block]}/kernel'][-1] for block in blocks]


def _head(contents: Contents) -> Mapping[str, Any]:
    layers = head_layer_count(contents)
    if layers == 0:
        return {'proj_head_mode': 'none'}
    if not head_is_whole(contents):
        return {'proj_head_mode': 'nonlinear', 'num_proj_layers': layers + 1}
    out_dim = contents.shapes[f'{HEAD}/{layers - 1}/dense/kernel'][-1]
    if layers == 1:
        return {'proj_head_mode': 'linear', 'proj_out_dim': out_dim}
    return {'proj_head_mode': 'nonlinear', 'num_proj_layers': layers, 'proj_out_dim': out_dim}
