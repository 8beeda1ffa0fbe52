"""Which precision is chosen, and a step in float16, whose loss is scaled."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored, on_replicas
from tests.tf2.test_compiled_step import MODEL
from tf2 import distribution, precision
from tf2.config import LearningConfig, OptimizerConfig, TrainConfig
from tf2.methods.simclr import SimCLR
from tf2.models.encoder import SimCLRModel, build_model
from tf2.optimizers import builder
from tf2.trainer import Penalty, Trainer


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('flags : fpu avx512f avx512_bf16\n', 'bfloat16'),
        ('processor : 0\nflags\t\t: fpu amx_bf16 amx_tile\n', 'bfloat16'),
        ('model name : avx512_bf16\nflags : fpu avx512f\n', 'float32'),
        ('', 'float32'),
        (None, 'float32'),
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, text: str | None, expected: str
) -> None:
    info = tmp_path / 'cpuinfo'
    if text is not None:
        info.write_text(text)
    monkeypatch.setattr(precision, 'CPU_INFO', info)
    assert precision.choose('auto', mirrored(1)) == expected
    assert precision.choose('float16', mirrored(1)) == 'float16'


@pytest.mark.parametrize(
    ('capabilities', 'expected'),
    [([(8, 0)], 'bfloat16'), ([(9, 0), (7, 5)], 'float32'), ([None], 'float32')],
)
def test_gpus_compute_in_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capabilities: list, expected: str
) -> None:
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: capabilities)
    monkeypatch.setattr(
        tf.config.experimental,
        'get_device_details',
        lambda gpu: {'compute_capability': gpu} if gpu else {},
    )
    assert precision.choose('auto', mirrored(1)) == expected


def test_workers_compute_in_bfloat16_if_all_of_them_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / 'cpuinfo').write_text('flags : avx512_bf16\n')
    monkeypatch.setattr(precision, 'CPU_INFO', tmp_path / 'cpuinfo')
    votes = []
    monkeypatch.setattr(distribution, 'all_agree', lambda _, agrees: bool(votes.append(agrees)))
    assert precision.choose('auto', mirrored(1)) == 'float32'
    assert votes == [True]


def test_products_are_for_bfloat16_on_cpus() -> None:
    assert precision.uses_filter_products('bfloat16', mirrored(2))
    assert not precision.uses_filter_products('float32', mirrored(2))
    assert not precision.uses_filter_products('float16', mirrored(2))


def trainer_in_float16(replicas: int) -> tuple[Trainer, builder.Optimizer]:
    tf.keras.utils.set_random_seed(0)
    model = build_model(
        SimCLRModel(MODEL, 8, 3, replicas=replicas, precision='float16', detach_classifier=True)
    )
    config = OptimizerConfig(optimizer='momentum')
    optimizer = builder.build(config, 0.1, [], scales_loss=True)
    return Trainer(SimCLR(model, LearningConfig()), optimizer, Penalty(), TrainConfig()), optimizer


@pytest.mark.parametrize('replicas', [1, 2])
def test_an_update_that_overflows_is_left_out_and_counted(plain: None, replicas: int) -> None:
    strategy = mirrored(replicas)
    with strategy.scope():
        trainer, optimizer = trainer_in_float16(replicas)
    weights = trainer._method.model.trainable_variables
    views = tf.random.stateless_uniform([2, replicas, 8, 8, 8, 3], [0, 0])

    def step(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        return trainer.replica_step({'views': (first, second), 'label': tf.zeros([8], tf.int32)})

    run = on_replicas(strategy, step)
    before = [weight.numpy() for weight in weights]
    with strategy.scope():
        optimizer._loss_scale._current_loss_scale.assign(1e30)
    run(*views)
    for weight, value in zip(weights, before):
        np.testing.assert_array_equal(weight, value)
    assert trainer.step == 1
    assert float(optimizer.loss_scale) == pytest.approx(5e29)
    with strategy.scope():
        optimizer._loss_scale._current_loss_scale.assign(8.0)
    run(*views)
    assert trainer.step == 2
    assert any((weight.numpy() != value).any() for weight, value in zip(weights, before))
    assert all(np.isfinite(weight).all() for weight in weights)
