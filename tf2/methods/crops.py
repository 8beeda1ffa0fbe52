"""Passes of global and local crops through a network, and which of them are compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf2.models.encoder import SimCLRModel


def encode(
    model: SimCLRModel, views: Sequence[tf.Tensor], training: bool
) -> dict[str, tuple[tf.Tensor, ...]]:
    """Runs `model` on all views: the encoder once for each size, the heads once on everything.

    So batch statistics of the encoder are those of one size, and statistics of the projection head
    those of all views, as in the published program of SwAV (arXiv:2006.09882).

    Args:
        model: built.
        views: [b, s, s, 3] float32 each; those of one size s follow each other.
        training: see `SimCLRModel.call`.

    Returns:
        'proj_head_input', 'proj_head_output' and, with a classifier, 'logits_sup': a tensor
        [b, ...] float32 for each view.
    """
    sizes = [list(group) for _, group in itertools.groupby(views, lambda view: view.shape[1])]
    if len(sizes) == 1:
        outputs = model(tf.concat(views, 0), training=training)
    else:
        passes = [model.backbone(tf.concat(size, 0), training=training) for size in sizes]
        features = tf.concat([outputs['final_avg_pool'] for outputs in passes], 0)
        outputs = model.heads(features, training)
    names = ['proj_head_input', 'proj_head_output', *(['logits_sup'] if model.classifier else [])]
    return {name: tuple(tf.split(outputs[name], len(views))) for name in names}


def in_turn(views: Sequence[tf.Tensor], count: int) -> list[Sequence[tf.Tensor]]:
    """The first `count` views one by one, and then all others at once."""
    return [views[number : number + 1] for number in range(count)] + (
        [views[count:]] if len(views) > count else []
    )


def predict(
    model: SimCLRModel,
    predictor: Callable[..., list[tf.Tensor]],
    views: Sequence[tf.Tensor],
    global_crops: int,
    training: bool,
) -> dict[str, Any]:
    """The forward pass of methods with a predictor: BYOL and SimSiam.

    Batch statistics are those of one global crop, as in the authors' programs, and of all local
    crops together.

    Args:
        model: built.
        predictor: maps projections [b, d] to the outputs of its layers.
        views: [b, s, s, 3] float32 each, global crops first.
        global_crops: their number.
        training: see `SimCLRModel.call`.

    Returns:
        'representation' of the first view, [b, d]; 'projections' and 'predictions' of each view;
        with a classifier, 'logits_sup' of each global crop.
    """
    projections, predictions, logits, first = [], [], [], None
    for group in in_turn(views, global_crops):
        outputs = model(tf.concat(group, 0), training=training)
        projected = outputs['proj_head_output']
        first = outputs['proj_head_input'] if first is None else first
        projections += tf.split(projected, len(group))
        predictions += tf.split(predictor(projected, training=training)[-1], len(group))
        if model.classifier is not None:
            logits += tf.split(outputs['logits_sup'], len(group))
    found = {
        'representation': first,
        'projections': tuple(projections),
        'predictions': tuple(predictions),
    }
    return found | ({'logits_sup': tuple(logits[:global_crops])} if logits else {})


def pairs(views: Sequence[tf.Tensor], global_crops: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Each pair of views of which one is a global crop at least; global crops come first."""
    for first in range(global_crops):
        for second in range(first + 1, len(views)):
            yield views[first], views[second]


def with_others(
    views: Sequence[tf.Tensor], targets: Sequence[tf.Tensor]
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Each view with each target of another view.

    Args:
        views: of all crops, global ones first.
        targets: of the global crops.
    """
    for place, view in enumerate(views):
        for other, target in enumerate(targets):
            if other != place:
                yield view, target
