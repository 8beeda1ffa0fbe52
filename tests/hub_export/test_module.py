"""Outputs and attributes of an exported module."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub

from common.errors import UserError
from hub_export import ModuleRecord, read_record
from hub_export.module import plain_copy
from tests.hub_export.conftest import (
    CLASSES,
    CONFIG,
    SIZE,
    WEIGHT_DECAY,
    Exported,
    decode,
    lively_model,
    random_images,
)
from tests.support import mirrored, run_on_replicas
from tf2.config import ModelConfig
from tf2.models import resnet
from tf2.models.encoder import SimCLRModel, build_model

ENDPOINTS = {
    'initial_conv',
    'initial_max_pool',
    'block_group1',
    'block_group2',
    'block_group3',
    'block_group4',
    'final_avg_pool',
    'proj_head_input',
    'proj_head_output',
    'logits_sup',
}


@pytest.fixture(scope='module')
def module(exported: Exported) -> tf.Module:
    """The module as loaded, for tests that don't train it."""
    return hub.load(exported.path)


def assert_same(
    found: Mapping[str, tf.Tensor], expected: Mapping[str, tf.Tensor], rtol: float = 1e-5
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        target = tf.cast(value, tf.float32).numpy()
        scale = np.max(np.abs(target))
        np.testing.assert_allclose(found[name], target, atol=rtol * scale, rtol=0, err_msg=name)


@pytest.mark.smoke
def test_computes_what_the_model_does(exported: Exported, module: tf.Module) -> None:
    images = random_images()
    expected = exported.model(images, training=False)
    assert expected.keys() == ENDPOINTS
    for found in (
        module(images),
        module(images.numpy()),
        module(images, training=False),
        module(images, trainable=False),
        module.signatures['serving_default'](images=images),
    ):
        assert_same(found, expected)
        assert all(value.dtype == tf.float32 for value in found.values())


@pytest.mark.parametrize('shape', [(1, 32, 32, 3), (2, 65, 40, 3)])
def test_takes_any_image_size(
    exported: Exported, module: tf.Module, shape: tuple[int, ...]
) -> None:
    images = tf.random.stateless_uniform(shape, [0, 1])
    assert_same(module(images), exported.model(images, training=False))


@pytest.mark.parametrize('flags', [{'training': True}, {'trainable': True}])
def test_training_mode_uses_and_updates_batch_statistics(
    exported: Exported, flags: dict[str, bool]
) -> None:
    module, images = tf.saved_model.load(exported.path), random_images()
    model = plain_copy(exported.model, SIZE)
    inference = module(images)['final_avg_pool']
    assert_same(module(images, **flags), model(images, training=True), rtol=1e-4)
    for found, expected in zip(module.variables, model.variables):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(module(images)['final_avg_pool'] - inference)) > 1e-3


def test_gradients_of_the_classifier_reach_the_encoder(exported: Exported) -> None:
    module = tf.saved_model.load(exported.path)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(module(random_images(), training=True)['logits_sup']))
    gradients = tape.gradient(loss, list(module.trainable_variables))
    reached = [gradient is not None and np.any(gradient) for gradient in gradients]
    kernels = [v for v, r in zip(module.trainable_variables, reached) if r and v.shape.rank == 4]
    assert len(kernels) == 1 + 8 + 4  # stem, two in each of four blocks, shortcuts


def test_encoded_images_are_decoded(exported: Exported, module: tf.Module) -> None:
    pixels = np.random.RandomState(0).randint(256, size=[2, 40, 31, 3]).astype(np.uint8)
    encoded = tf.stack([tf.io.encode_png(pixels[0]), tf.io.encode_jpeg(pixels[1])])
    found = module.signatures['encoded_images'](bytes=encoded)
    images = tf.stack([decode(image) for image in encoded])  # [2, SIZE, SIZE, 3]
    assert_same(found, exported.model(images, training=False))


def test_variables_and_regularization_loss(exported: Exported, module: tf.Module) -> None:
    model = exported.model
    assert len(module.variables) == len(model.variables)
    trainable = [variable.shape for variable in model.trainable_variables]
    assert [variable.shape for variable in module.trainable_variables] == trainable
    kernels = [v for v in model.trainable_variables if v.shape.rank > 1]
    expected = WEIGHT_DECAY * sum(float(np.sum(np.square(v.numpy()))) / 2 for v in kernels)
    (loss,) = module.regularization_losses
    np.testing.assert_allclose(loss(), expected, rtol=1e-5)


def test_the_variables_are_a_checkpoint_of_the_model(exported: Exported) -> None:
    record = read_record(exported.path)
    assert record == ModuleRecord(CONFIG, SIZE, CLASSES, 12)
    model = build_model(SimCLRModel(record.model, record.image_size, record.num_classes))
    status = tf.train.Checkpoint(model=model).restore(f'{exported.path}/variables/variables')
    status.assert_existing_objects_matched()
    images = random_images()
    assert_same(model(images, training=False), exported.model(images, training=False))


def test_an_error_names_a_folder_without_record(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match='found no'):
        read_record(str(tmp_path))


def test_exports_of_two_models_are_independent(
    small: None, tmp_path: pathlib.Path, unchecked: Callable[..., str]
) -> None:
    models = [lively_model(seed, None) for seed in (1, 2)]
    paths = [unchecked(model, str(tmp_path / str(i)), 1) for i, model in enumerate(models)]
    images = random_images()
    for model, path in zip(models, paths):
        found = tf.saved_model.load(path)(images)
        assert 'proj_head_output' in found and 'logits_sup' not in found
        assert_same(found, model(images, training=False))


def test_the_weights_of_a_frozen_layer_are_copied_to_that_layer(exported: Exported) -> None:
    model = lively_model()
    model.backbone.stem.trainable = False  # which moves its variables within model.variables
    images = random_images()
    assert_same(plain_copy(model, SIZE)(images), model(images, training=False))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_copies_a_model_from_replicas(small: None, precision: str) -> None:
    with mirrored(2).scope():
        model = lively_model(3, replicas=2, precision=precision, detach_classifier=True)
    images = random_images()
    rtol = 1e-5 if precision == 'float32' else 0.05
    copy = plain_copy(model, SIZE)
    assert_same(copy(images, training=False), model(images, training=False), rtol)
    for found, expected in zip(copy.variables, model.variables):
        assert found.dtype == tf.float32
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_moving_statistics_of_replicas_are_averaged(small: None) -> None:
    strategy = mirrored(2)
    with strategy.scope():
        model = lively_model(config=dataclasses.replace(CONFIG, global_bn=False), replicas=2)
    shares = [random_images(), 0.2 * random_images()]
    run_on_replicas(strategy, lambda images: model(images, training=True)['logits_sup'], shares)
    first, second = (value.numpy() for value in model.backbone.blocks[0][0].bn.moving_mean.values)
    assert np.max(np.abs(first - second)) > 1e-2
    found = plain_copy(model, SIZE).backbone.blocks[0][0].bn.moving_mean.numpy()
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-5, atol=1e-6)


def test_a_module_from_replicas(
    small: None, tmp_path: pathlib.Path, unchecked: Callable[..., str]
) -> None:
    with mirrored(2).scope():
        model = lively_model(4, replicas=2)
    images = random_images()
    module = tf.saved_model.load(unchecked(model, str(tmp_path), 1))
    assert_same(module(images, trainable=False), model(images, training=False))


def test_a_strategy_scope_and_another_stem_are_refused(exported: Exported) -> None:
    with mirrored(2).scope(), pytest.raises(ValueError, match='outside of strategy'):
        plain_copy(exported.model, SIZE)
    with pytest.raises(ValueError, match=r'expected shape \(7, 7, 3, 16\), found \(3, 3, 3, 16\)'):
        plain_copy(exported.model, 224)


def test_another_architecture(
    tmp_path: pathlib.Path, unchecked: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resnet.BLOCKS_PER_GROUP, 50, (1, 1, 1, 1))
    config = dataclasses.replace(CONFIG, resnet_depth=50, sk_ratio=0.0625, se_ratio=0.25)
    check_export(config, tmp_path, unchecked)


def test_a_network_without_head(
    small: None, tmp_path: pathlib.Path, unchecked: Callable[..., str]
) -> None:
    config = dataclasses.replace(CONFIG, proj_head_mode='none')
    check_export(config, tmp_path, unchecked)


def check_export(config: ModelConfig, folder: pathlib.Path, export: Callable[..., str]) -> None:
    """The module computes what the model does, and its variables are a checkpoint of it."""
    model = lively_model(config=config)
    path = export(model, str(folder), 1)
    images = random_images(batch=2)
    assert_same(tf.saved_model.load(path)(images), model(images, training=False), rtol=1e-4)
    status = tf.train.Checkpoint(model=model).restore(f'{path}/variables/variables')
    status.assert_existing_objects_matched()
