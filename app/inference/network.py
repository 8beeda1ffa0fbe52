"""The trained network that `--checkpoint` names, and its endpoints as vectors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from app import assembly
from app.config.schema import Config, with_values
from app.experiment import with_weights
from common.errors import UserError
from tf2.features import LOGITS
from tf2.models.encoder import SimCLRModel
from tf2.weights import Report, Weights


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that is used as it is.

    Attributes:
        weights: what `--checkpoint` names.
        model: with these weights.
        report: what of them was loaded.
        selector: the layer of the projection head that the classifier reads; None if nothing tells.
    """

    weights: Weights
    model: SimCLRModel
    report: Report
    selector: int | None


def with_architecture(config: Config, given: Mapping[str, Any]) -> tuple[Config, Weights]:
    """Opens `--checkpoint`; returns `config` with its architecture.

    Args:
        config: all settings.
        given: those of them that were given, which the weights must not contradict.

    Raises:
        UserError: if there are no such weights, or they contradict what was given.
    """
    config, weights = with_weights(config, given)
    if 'ft_proj_selector' not in given and weights.selector is not None:
        config = with_values(config, ft_proj_selector=weights.selector)
    return config, weights


def load_network(
    config: Config, given: Mapping[str, Any], weights: Weights, head_layers: int
) -> Network:
    """Builds the network; to be called within the strategy's scope.

    Args:
        config: from `with_architecture`; `mixed_precision` is no longer 'auto'.
        given: settings that were given.
        weights: from `with_architecture`.
        head_layers: how many layers of the projection head are needed, -1 for all.

    Raises:
        UserError: if not all that is needed can be loaded.
    """
    model = assembly.network(config, weights.num_classes)
    report = weights.load_into(model, head_layers=head_layers)
    selector = config.model.ft_proj_selector
    told = 'ft_proj_selector' in given or weights.selector is not None or not weights.head_layers
    return Network(weights, model, report, selector if told else None)


def check_layer(network: Network, layer: str) -> int:
    """The width of the embedding; to be called within the strategy's scope.

    Raises:
        UserError: if the network has no endpoint `layer`; lists those it has.
    """
    size = network.model.image_size
    endpoints = network.model(tf.keras.Input([size, size, 3]), training=False)
    if layer not in endpoints:
        found = ' (this checkpoint has no classifier)' if layer == LOGITS else ''
        raise UserError(
            f'--layer must be one of {", ".join(endpoints)}; found {layer!r}{found}. Choose one.'
        )
    if layer == LOGITS:
        check_classifier(network)
    return endpoints[layer].shape[-1]


def check_classifier(network: Network) -> None:
    """Raises UserError if the weights have no classifier whose logits can be computed."""
    weights, report = network.weights, network.report
    path = weights.path
    if weights.num_classes is None:
        raise UserError(
            f'--checkpoint={path} must have a classifier; found none in this {weights.format}. '
            'Fine-tune it first, or choose another one.'
        )
    if network.selector is None:
        raise UserError(
            f'--checkpoint={path} must tell which layer of the projection head its classifier '
            f'reads; this {weights.format} does not. Name it with --ft_proj_selector, 0 for the '
            "encoder's output."
        )
    if any(reason.startswith('classifier') for reason in (*report.left_out, *report.missing)):
        raise UserError(
            f'--checkpoint={path} must have a classifier that reads layer '
            f'{network.selector} of its projection head; found: {report.line()}. '
            'Name another one with --ft_proj_selector.'
        )


def fingerprint(model: SimCLRModel, strategy: tf.distribute.Strategy) -> str:
    """A hash of the encoder's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for variable in model.backbone.variables:
        # To read the whole variable could take all workers.
        own, *_ = strategy.experimental_local_results(variable)
        digest.update(own.numpy().tobytes())
    return digest.hexdigest()[:16]


def layers_needed(layer: str, config: Config) -> int:
    """How many layers of the projection head `layer` depends on, -1 for all of them."""
    if layer == LOGITS:
        return config.model.ft_proj_selector
    return -1 if layer == 'proj_head_output' else 0


def pooled(endpoint: tf.Tensor) -> tf.Tensor:
    """[b, d] float32: feature maps [b, h, w, d] are averaged over space, tokens [b, n, d] too."""
    endpoint = tf.cast(endpoint, tf.float32)
    return tf.reduce_mean(endpoint, axis=list(range(1, endpoint.shape.rank - 1)))
