"""Helpers for several tests: golden files, the golden weight formula, replicas on logical CPUs."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from app import train
from app.report import runs
from data.sources import tfds
from tf2.methods.base import Batch, Method, Terms
from tf2.models import BACKBONES, resnet
from tf2.weights.layout import layers_of

GOLDEN = pathlib.Path(__file__).parent / 'golden'


def formula_weight(key: str, shape: Sequence[int]) -> np.ndarray:
    """The weights that the golden figures were made with, by a variable's key and shape."""
    base = np.random.RandomState(zlib.crc32(key.encode()) % 2**31).randn(251).astype(np.float32)

    def pattern(scale: float) -> np.ndarray:
        return (np.resize(base, int(np.prod(shape))) * np.float32(scale)).reshape(shape)

    role = key.rsplit('/', 1)[-1]
    if role == 'gamma':
        return 1 + pattern(0.1)
    if role in ('beta', 'moving_mean', 'bias'):
        return pattern(0.1)
    if role == 'moving_variance':
        return 1 + np.abs(pattern(0.1))
    return pattern(np.sqrt(1 / np.prod(shape[:-1])))


def assign_formula_weights(variables: Mapping[str, tf.Variable]) -> None:
    """Assigns `formula_weight` to variables, given by their golden keys."""
    for key, variable in variables.items():
        variable.assign(formula_weight(key, variable.shape))


def no_checker() -> contextlib.AbstractContextManager[Callable[[str, str], None]]:
    """A replacement for `hub_export.publish._checker`, whose process takes seconds."""
    return contextlib.nullcontext(lambda path, reference: None)


@contextlib.contextmanager
def bare_runs() -> Iterator[None]:
    """Runs write neither modules nor sample views, which take as long as all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.hub_export, 'export_module', lambda *_, **__: 'nowhere')
        patch.setattr(train, '_write_sample_views', lambda *_: None)
        yield


_report = train._report


def without_reports() -> None:
    """From now on, runs end without a report, which takes longer than a tiny run."""
    train._report = lambda experiment, planned: None


@contextlib.contextmanager
def with_reports() -> Iterator[None]:
    """Runs end with a report, as they do outside of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, '_report', _report)
        yield


@contextlib.contextmanager
def labels_read_once() -> Iterator[None]:
    """Reads the labels of a split of a TFDS data set once, where many runs count the same ones."""
    kept: dict[tuple[str, str, str], list[np.ndarray]] = {}
    read = tfds._labels

    def labels(builder: Any, split: str, label: Any) -> Iterator[np.ndarray]:
        key = (str(builder.data_path), split, label.key)
        if key not in kept:
            kept[key] = list(read(builder, split, label))
        return iter(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds, '_labels', labels)
        yield


@contextlib.contextmanager
def shallow_resnet_18() -> Iterator[None]:
    """Reduces ResNet-18 to one block in each group, which halves the time to trace it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS_PER_GROUP, 18, (1, 1, 1, 1))
        _forget_networks()
        yield
    _forget_networks()


def _forget_networks() -> None:
    """Empties caches of facts about networks."""
    layers_of.cache_clear()
    runs.parameters_of.cache_clear()


@contextlib.contextmanager
def plain_networks() -> Iterator[None]:
    """Replaces ResNets by five convolutions, where a test is about runs and not about networks.

    Flags stay the same, and the network is traced several times faster.
    """
    plain = dataclasses.replace(
        BACKBONES['resnet'], implementation='tests.toys:PlainNetwork', published=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, 'resnet', plain)
        _forget_networks()
        yield
    _forget_networks()


@contextlib.contextmanager
def run_eagerly() -> Iterator[None]:
    """Runs operations one by one. For a few steps with a small batch, a graph takes longer."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """A MirroredStrategy on logical CPUs, or the one-device strategy for one replica."""
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy('/cpu:0')
    # TensorFlow's collective groups are per process: a second strategy of another size would clash
    # with the first. Reducing on one device needs no group.
    return tf.distribute.MirroredStrategy(
        [f'/cpu:{i}' for i in range(replicas)], tf.distribute.ReductionToOneDevice()
    )


def on_replicas(
    strategy: tf.distribute.Strategy, function: Callable[..., Any]
) -> Callable[..., list[Any]]:
    """Runs `function` in a graph, which is traced once.

    Returns:
        A function of shares, replica r taking the r-th element of each: the result of every
        replica, in their order, with arrays for tensors.
    """
    replicas = strategy.num_replicas_in_sync
    run = tf.function(lambda *values: strategy.run(function, values), autograph=False)

    def of_replica(results: Any, index: int) -> Any:
        return tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[index].numpy(), results
        )

    def results_of(*shares: Sequence[Any]) -> list[Any]:
        distributed = [
            strategy.experimental_distribute_values_from_function(
                lambda context, share=share: tf.constant(share[context.replica_id_in_sync_group])
            )
            for share in shares
        ]
        results = run(*distributed)
        return [of_replica(results, index) for index in range(replicas)]

    return results_of


def run_on_replicas(
    strategy: tf.distribute.Strategy, function: Callable[..., Any], *shares: Sequence[Any]
) -> list[Any]:
    """Calls `on_replicas` once."""
    return on_replicas(strategy, function)(*shares)


def loss_of(method: Method, batch: Batch, training: bool = True) -> Terms:
    """The loss and metrics of a step, as the training loop computes them."""
    outputs = method.forward(batch['views'], training)
    return method.loss(outputs, method.targets(batch), batch)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference, divided by the largest expected magnitude."""
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
