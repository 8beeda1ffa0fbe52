"""Passes of views of several sizes through a network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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
