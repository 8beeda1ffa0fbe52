"""A small model, and a module exported from it for all tests that only read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import tensorflow as tf

from hub_export import export_module, publish
from tests.support import no_checker, plain_networks, shallow_resnet_18
from tf2.config import ModelConfig
from tf2.models.encoder import SimCLRModel, build_model

SIZE = 28
CLASSES = 5
WEIGHT_DECAY = 0.5
CONFIG = ModelConfig(resnet_depth=18, width_multiplier=0.25)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Encoded bytes -> [SIZE, SIZE, 3] float32 in [0, 1]."""
    image = tf.io.decode_image(encoded, 3, tf.float32, expand_animations=False)
    return tf.image.resize(image, [SIZE, SIZE])


def lively_model(
    seed: int = 0, num_classes: int | None = CLASSES, config: ModelConfig = CONFIG, **kwargs: object
) -> SimCLRModel:
    """A model with random gammas: new residual blocks have a gamma of 0, which hides weights."""
    tf.keras.utils.set_random_seed(seed)
    model = build_model(SimCLRModel(config, SIZE, num_classes, **kwargs))
    for index, variable in enumerate(model.variables):
        noise = tf.random.stateless_uniform(variable.shape, [seed, index], 0.01, 0.1)
        variable.assign(tf.convert_to_tensor(variable) + noise)
    return model


def random_images(size: int = SIZE, batch: int = 3) -> tf.Tensor:
    """[batch, size, size, 3] float32 in [0, 1]."""
    return tf.random.stateless_uniform([batch, size, size, 3], [1, size])


@dataclasses.dataclass(frozen=True)
class Exported:
    """A module and the model it came from."""

    model: SimCLRModel
    path: str


def export(model: SimCLRModel, root: str, step: int, keep: int = 0) -> str:
    """Exports with the settings of these tests."""
    return export_module(
        model,
        root,
        step,
        image_size=SIZE,
        decode=decode,
        weight_decay=WEIGHT_DECAY,
        keep=keep,
    )


@pytest.fixture(scope='module', autouse=True)
def shallow() -> Iterator[None]:
    with shallow_resnet_18():
        yield


@pytest.fixture(scope='session')
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A ResNet, exported without the checking process."""
    # Fixtures of the session run before those of a file.
    with shallow_resnet_18(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, '_checker', no_checker)
        model = lively_model(detach_classifier=True)
        return Exported(model, export(model, str(tmp_path_factory.mktemp('modules')), 12))


@pytest.fixture(scope='session')
def checked(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A few convolutions, exported with the real check."""
    with plain_networks():
        model = lively_model(detach_classifier=True)
        return Exported(model, export(model, str(tmp_path_factory.mktemp('modules')), 12))


@pytest.fixture
def small() -> Iterator[None]:
    """Replaces ResNets by a few convolutions in a test that isn't about the network."""
    with plain_networks():
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`export` without the checking process, which takes seconds."""
    monkeypatch.setattr(publish, '_checker', no_checker)
    return export
