"""Checkpoints: what is restored, what is left alone, and what does not fit."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from settings import UserError
from tf2.checkpoints import Checkpoints, load_model
from tf2.files import step_of


def dense(units: int = 2, seed: int = 0, more: bool = False) -> tf.keras.Model:
    """A small model; another seed gives other weights."""
    kernel = tf.keras.initializers.RandomNormal(seed=seed)
    layers = [tf.keras.layers.Dense(units, kernel_initializer=kernel)]
    layers += [tf.keras.layers.Dense(2)] if more else []
    model = tf.keras.Sequential(layers)
    model.build([None, 3])
    return model


def optimizer_of(model: tf.keras.Model, momentum: float = 0.0) -> tf.keras.optimizers.Optimizer:
    optimizer = tf.keras.optimizers.SGD(1.0, momentum=0.9, jit_compile=False)
    optimizer.build(model.trainable_variables)
    for variable in optimizer.momentums:
        variable.assign_add(tf.fill(variable.shape, momentum))
    return optimizer


def checkpoints(
    folder: pathlib.Path, model: tf.keras.Model, momentum: float = 0.0
) -> tuple[Checkpoints, tf.keras.optimizers.Optimizer]:
    optimizer = optimizer_of(model, momentum)
    return Checkpoints(str(folder), model, tf.Module(), optimizer, keep=5), optimizer


def test_a_new_folder_has_nothing_to_resume(tmp_path: pathlib.Path) -> None:
    saved, _ = checkpoints(tmp_path / 'new', dense())
    assert saved.latest is None
    assert saved.resume() is None
    assert not (tmp_path / 'new').exists()


def test_resume_restores_model_and_optimizer(tmp_path: pathlib.Path) -> None:
    model, other = dense(seed=0), dense(seed=1)
    path = checkpoints(tmp_path, model, momentum=0.5)[0].save(12)
    saved, optimizer = checkpoints(tmp_path, other)
    assert saved.resume() == path == saved.latest
    np.testing.assert_array_equal(other.layers[0].kernel, model.layers[0].kernel)
    np.testing.assert_array_equal(optimizer.momentums[0], np.full([3, 2], 0.5))


@pytest.mark.smoke
def test_loading_a_model_takes_its_weights_and_nothing_else(tmp_path: pathlib.Path) -> None:
    model, other = dense(seed=0), dense(seed=1)
    path = checkpoints(tmp_path, model, momentum=0.5)[0].save(12)
    optimizer = optimizer_of(other, momentum=0.25)
    assert load_model(path, other) == 12
    np.testing.assert_array_equal(other.layers[0].kernel, model.layers[0].kernel)
    np.testing.assert_array_equal(optimizer.momentums[0], np.full([3, 2], 0.25))


@pytest.mark.parametrize('other', [{'units': 4}, {'more': True}], ids=['shape', 'layers'])
def test_another_architecture_is_refused_in_one_line(tmp_path: pathlib.Path, other: dict) -> None:
    path = checkpoints(tmp_path, dense())[0].save(3)
    for restore in (
        lambda: load_model(path, dense(**other)),
        checkpoints(tmp_path, dense(**other))[0].resume,
    ):
        with pytest.raises(UserError, match=re.escape(f'{path} must hold')) as refused:
            restore()
        assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
    ('path', 'step'), [('ckpt-0', 0), ('/runs/a-1/ckpt-250', 250), ('gs://bucket/ckpt-7', 7)]
)
def test_the_step_is_read_off_the_name(path: str, step: int) -> None:
    assert step_of(path) == step
