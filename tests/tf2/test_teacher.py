"""Teachers of every kind: what they compute, in which mode, and what is refused."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

import hub_export
from app.config.resolution import from_values
from app.run_folder import write_flags
from common.errors import UserError
from hub_export import publish
from tests.support import mirrored, no_checker, run_on_replicas
from tf2.config import ModelConfig
from tf2.models.encoder import SimCLRModel, build_model
from tf2.teacher import Teacher, open_teacher

pytestmark = pytest.mark.usefixtures('shallow')

IMAGES = tf.random.stateless_uniform([4, 8, 8, 3], [1, 2])
CLASSES = 5


def student_of(selector: int = 1, classes: int | None = CLASSES) -> SimCLRModel:
    tf.keras.utils.set_random_seed(3)
    config = ModelConfig(resnet_depth=18, width_multiplier=0.0625, ft_proj_selector=selector)
    model = build_model(SimCLRModel(config, 8, classes))
    for variable in model.variables:  # so that every layer tells, statistics too
        noise = tf.random.uniform(variable.shape, 0.3, 0.7)
        variable.assign(noise if variable.shape.rank == 1 else variable + noise / 50)
    return model


def run_folder(folder: pathlib.Path, model: SimCLRModel) -> str:
    """A model_dir as a fine-tuning run leaves it."""
    config = from_values(
        {
            'train_mode': 'finetune',
            'image_size': 8,
            'resnet_depth': 18,
            'width_multiplier': 0.0625,
            'ft_proj_selector': model.config.ft_proj_selector,
        }
    )
    folder.mkdir()
    write_flags(str(folder), config, {'num_classes': model.num_classes})
    checkpoint = tf.train.Checkpoint(model=model)
    tf.train.CheckpointManager(checkpoint, str(folder), 1, None, 'ckpt').save(7)
    return str(folder)


def exported(folder: pathlib.Path, model: SimCLRModel) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, '_checker', no_checker)
        return hub_export.export_module(
            model,
            str(folder),
            7,
            image_size=8,
            decode=lambda encoded: tf.ensure_shape(
                tf.image.resize(tf.io.decode_png(encoded, channels=3) / 255, [8, 8]), [8, 8, 3]
            ),
            weight_decay=0.0,
            keep=1,
        )


def opened(path: str) -> Teacher:
    return open_teacher(path, precision='float32')


@pytest.mark.parametrize('write', [run_folder, exported])
def test_models_of_this_program_teach_in_inference_mode(
    write: Callable, tmp_path: pathlib.Path
) -> None:
    model = student_of()
    teacher = opened(write(tmp_path / 'teacher', model))
    assert (teacher.num_classes, teacher.image_size) == (CLASSES, 8)
    expected = model(IMAGES, training=False)['logits_sup']
    for _ in range(2):  # no statistic moves
        np.testing.assert_allclose(teacher.logits(IMAGES), expected, rtol=1e-4, atol=1e-5)


class Module(tf.Module):
    """A classifier whose answer tells in which mode it was asked: its mean color, or zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(2.0)

    def answer(self, images: tf.Tensor, learns: bool) -> tf.Tensor:
        color = tf.reduce_mean(images, [1, 2])
        return tf.zeros_like(color) if learns else color * self.scale


SPEC = tf.TensorSpec([None, None, None, 3])


class WithTraining(Module):
    @tf.function(input_signature=None)
    def __call__(self, images: tf.Tensor, training: bool = True) -> dict[str, tf.Tensor]:
        return {'logits_sup': self.answer(images, training), 'final_avg_pool': images}


class WithTrainable(Module):
    @tf.function(input_signature=None)
    def __call__(self, images: tf.Tensor, trainable: bool = True) -> dict[str, tf.Tensor]:
        return {'logits_sup': self.answer(images, trainable)}


class Plain(Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 3])])
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return self.answer(images, False)


class Embedding(Module):
    @tf.function(input_signature=[SPEC])
    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {'final_avg_pool': self.answer(images, False)}


def saved(folder: pathlib.Path, module: Module, **signatures: object) -> str:
    if isinstance(module, (WithTraining, WithTrainable)):
        for mode in (True, False):  # the wrong one first
            module.__call__.get_concrete_function(SPEC, mode)
    tf.saved_model.save(module, str(folder), signatures=signatures or None)
    return str(folder)


@pytest.mark.parametrize(
    ('kind', 'size'), [(WithTraining, None), (WithTrainable, None), (Plain, 6)]
)
def test_modules_of_others_are_called_as_their_signature_says(
    kind: type, size: int | None, tmp_path: pathlib.Path
) -> None:
    teacher = opened(saved(tmp_path / 'm', kind()))
    assert (teacher.num_classes, teacher.image_size) == (3, size)
    images = tf.random.stateless_uniform([4, size or 8, size or 8, 3], [1, 2])
    expected = 2 * tf.reduce_mean(images, [1, 2])
    np.testing.assert_allclose(teacher.logits(images), expected, rtol=1e-5)


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_signature_alone_suffices(wrapped: bool, tmp_path: pathlib.Path) -> None:
    module = Module()

    @tf.function(input_signature=[SPEC])
    def serve(images: tf.Tensor) -> tf.Tensor | dict[str, tf.Tensor]:
        logits = module.answer(images, False)
        return {'logits_sup': logits, 'more': images} if wrapped else logits

    teacher = opened(saved(tmp_path / 'm', module, serving_default=serve))
    np.testing.assert_allclose(
        teacher.logits(IMAGES), 2 * tf.reduce_mean(IMAGES, [1, 2]), rtol=1e-5
    )


@pytest.mark.parametrize('write', [run_folder, lambda f, m: saved(f, WithTraining())])
def test_a_teacher_teaches_on_every_replica(write: Callable, tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / 'teacher', student_of())
    expected = opened(path).logits(IMAGES)
    strategy = mirrored(2)
    with strategy.scope():
        teacher = opened(path)
    found = run_on_replicas(strategy, teacher.logits, np.split(IMAGES.numpy(), 2))
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-5)


def without_classifier(folder: pathlib.Path) -> str:
    return run_folder(folder, student_of(0, None))


def without_record(folder: pathlib.Path) -> str:
    path = run_folder(folder, student_of())
    (folder / 'flags.json').unlink()
    return path


@pytest.mark.parametrize(
    ('write', 'words'),
    [
        (lambda folder: str(folder), '--teacher=.*nothing there'),
        (without_classifier, 'must have a classifier; found none'),
        (without_record, 'which layer its classifier reads'),
        (lambda folder: saved(folder, Embedding()), "'logits_sup'; found final_avg_pool"),
        (lambda folder: saved(folder, Module()), 'found nothing that takes images'),
    ],
    ids=['nothing', 'no classifier', 'no record', 'no logits', 'no function'],
)
def test_models_without_logits_are_refused(
    write: Callable, words: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        opened(write(tmp_path / 'teacher'))
    assert '--checkpoint' not in str(caught.value)


def test_a_damaged_module_is_refused(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path / 'm', Plain())
    (tmp_path / 'm' / 'saved_model.pb').write_bytes(b'not a module')
    with pytest.raises(UserError, match='should be a SavedModel that TensorFlow can load'):
        opened(path)
