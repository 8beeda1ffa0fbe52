"""Runs methods on the small networks of golden files: dense encoders, a few training steps."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest
import tensorflow as tf

from tests.support import GOLDEN, mirrored
from tests.toys import DenseEncoder
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.methods import make_head
from tf2.methods.base import Method, build
from tf2.models import BACKBONES, BackboneEntry
from tf2.models.encoder import SimCLRModel, build_model
from tf2.optimizers import builder
from tf2.trainer import Penalty, Trainer

# Makes a method, its optimizer and the L2 term of the loss.
Make: TypeAlias = Callable[[], tuple[Method, builder.Optimizer, Penalty]]
STEPS = 5
INPUTS = (1, 2, 3)  # as images: the six numbers of a row are two pixels


def golden(name: str) -> dict[str, np.ndarray]:
    """Arrays of a file in tests/golden/methods."""
    with np.load(GOLDEN / 'methods' / f'{name}.npz') as file:
        return dict(file)


@contextlib.contextmanager
def dense_encoder(*widths: int, last_relu: bool) -> Iterator[None]:
    """Registers `DenseEncoder` as the backbone 'dense'."""
    entry = BackboneEntry('tests.toys:DenseEncoder', 'tests.toys:count_blocks')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, 'dense', entry)
        patch.setattr(DenseEncoder, 'widths', widths)
        patch.setattr(DenseEncoder, 'last_relu', last_relu)
        yield


def method_of(name: str, model: ModelConfig, learning: LearningConfig, replicas: int = 1) -> Method:
    """A method with the backbone 'dense' and no classifier."""
    model = dataclasses.replace(model, backbone='dense')
    network = SimCLRModel(model, 1, None, replicas=replicas, make_head=make_head(name))
    return build(build_model(network), learning)


def assign(pairs: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray], start: str) -> None:
    """Gives variables the values whose keys are `start` and their own."""
    for key, variable in pairs.items():
        variable.assign(values[start + key].reshape(variable.shape))


def compare(pairs: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray], start: str) -> None:
    """Compares variables with the values whose keys are `start` and their own."""
    for key, variable in pairs.items():
        expected = values[start + key].reshape(variable.shape)
        np.testing.assert_allclose(variable, expected, rtol=5e-4, atol=5e-4, err_msg=key)


def batches_of(values: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The golden file's batches of two views."""
    return [
        {
            'views': tuple(
                values[f'x{view}_{step}'].astype(np.float32).reshape(-1, *INPUTS) for view in (1, 2)
            ),
            'label': np.full(len(values['x1_0']), -1, np.int32),
        }
        for step in range(STEPS)
    ]


def losses_of(
    make: Make,
    batches: Sequence[Mapping[str, Any]],
    *,
    replicas: int = 1,
    eager: bool = False,
) -> tuple[Method, list[dict[str, float]]]:
    """Trains step by step, in a graph unless `eager`.

    Args:
        make: called within the strategy's scope.
        batches: global ones.
        replicas: on as many logical CPUs.
        eager: whether to run the operations one by one, on one replica.

    Returns:
        The method, trained, and the metrics of each step.
    """
    strategy = mirrored(replicas)
    size = len(batches[0]['label'])
    with strategy.scope():
        method, optimizer, penalty = make()
        trainer = Trainer(method, optimizer, penalty, TrainConfig(train_batch_size=size))
    joined = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)
    dataset = tf.data.Dataset.from_tensor_slices(joined).batch(size, drop_remainder=True)
    found = []
    if eager:
        for batch in dataset:
            with strategy.scope():
                result = strategy.run(trainer.replica_step, (batch,))
            found.append(result.numpy()[:-2])
    else:
        iterator = iter(strategy.experimental_distribute_dataset(dataset))
        found = [trainer._run_steps(iterator, tf.constant(1))[0].numpy() for _ in batches]
    return method, [dict(zip(trainer.metrics, metrics, strict=True)) for metrics in found]


def check_resuming(make: Make, batches: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> None:
    """Checks that a run restored from a checkpoint goes on as if it had not been interrupted."""
    whole, expected = losses_of(make, batches, eager=True)
    parts = []

    def kept() -> tuple[Method, builder.Optimizer, Penalty]:
        parts.append(make())
        return parts[0]

    def checkpoint(method: Method, optimizer: builder.Optimizer, _: Penalty) -> Any:
        return tf.train.Checkpoint(objective=method, optimizer=optimizer)

    def restored() -> tuple[Method, builder.Optimizer, Penalty]:
        again = make()
        builder.create_variables(again[1], again[0].trainable_variables)
        checkpoint(*again).restore(path).assert_existing_objects_matched()
        return again

    losses_of(kept, batches[:2], eager=True)
    path = checkpoint(*parts[0]).save(str(folder / 'ckpt'))
    resumed, found = losses_of(restored, batches[2:], eager=True)
    assert found == expected[2:]
    for variable, other in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(variable, other)
