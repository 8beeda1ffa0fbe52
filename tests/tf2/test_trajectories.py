"""Training steps against golden trajectories: losses by step, every variable's norm afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.support import GOLDEN, assign_formula_weights, mirrored
from tf2 import schedules
from tf2.config import ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.published_names import tf2_names
from tf2.objectives import OBJECTIVES
from tf2.optimizers import builder, decay
from tf2.trainer import Penalty, Trainer

LOSSES = ('contrast_loss', 'supervised_loss', 'weight_decay')


def golden_batch(replicas: int, views: int) -> dict:
    """The batch of the golden README, ordered so that replica r gets its rows of both views."""
    rng = np.random.RandomState(11)
    images = rng.rand(16, 32, 32, 3 * views).astype(np.float32)
    labels = rng.randint(0, 10, 16).astype(np.int32)
    return {'views': tuple(np.split(images, views, -1)), 'label': labels}


def build_trainer(golden: dict, replicas: int) -> tuple[Trainer, SimCLRModel]:
    flags = golden['flags']

    def section(kind: type) -> dict:
        return {name: flags[name] for name in kind.__dataclass_fields__ if name in flags}

    train = TrainConfig(**section(TrainConfig))
    config = OptimizerConfig(**section(OptimizerConfig))
    model = build_model(
        SimCLRModel(
            ModelConfig(**section(ModelConfig)), 32, 10, replicas=replicas, detach_classifier=True
        )
    )
    assign_formula_weights(tf2_names(model))
    objective = OBJECTIVES['pretrain'](model, ObjectiveConfig(**section(ObjectiveConfig)))
    decayed = decay.decayed_kernels(model.backbone) + decay.decayed_kernels(model.projection_head)
    rate = schedules.build(config, train, golden['num_examples'])
    optimizer = builder.build(config, rate, decayed)
    penalty = Penalty(config.weight_decay, [model.classifier.kernel])
    return Trainer(objective, optimizer, penalty, train), model


@pytest.mark.parametrize('name', ['pretrain_lars_1replica', 'pretrain_lars_2replicas_global_bn'])
def test_golden_trajectory(name: str) -> None:
    golden = json.loads((GOLDEN / 'trajectories' / f'{name}.json').read_text())
    strategy = mirrored(golden['replicas'])
    with strategy.scope():
        trainer, model = build_trainer(golden, golden['replicas'])
    batches = tf.data.Dataset.from_tensors(golden_batch(golden['replicas'], 2)).repeat()
    batches = batches.unbatch().batch(16, drop_remainder=True)
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    for losses in golden['per_step']:
        sums, done = trainer._run_steps(iterator, tf.constant(1))
        assert int(done) == 1
        found = dict(zip(trainer.metrics, sums.numpy(), strict=True))
        np.testing.assert_allclose([found[name] for name in LOSSES], losses, rtol=1e-4)
    for key, variable in tf2_names(model).items():
        norm = np.linalg.norm(variable.numpy())
        np.testing.assert_allclose(norm, golden['l2_norm_after_5_steps'][key], rtol=1e-3)
