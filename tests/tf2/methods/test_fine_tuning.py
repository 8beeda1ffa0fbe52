"""Fine-tuning: exactly which variables change in a step, and which statistics move."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import loss_of, mirrored, plain_networks, run_on_replicas
from tests.toys import PlainNetwork
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.methods.base import labeled_cross_entropy
from tf2.methods.fine_tuning import FineTuning
from tf2.models.encoder import SimCLRModel, build_model
from tf2.trainer import Penalty, Trainer

pytestmark = pytest.mark.usefixtures('shallow')

BATCH = {
    'views': (tf.random.stateless_uniform([6, 8, 8, 3], [1, 2]),),
    'label': tf.constant([0, 1, 2, 0, 1, -1]),
}
GROUPS = ('group0', 'group1', 'group2', 'group3')


@functools.cache
def network(selector: int, plain: bool) -> SimCLRModel:
    """A ResNet, or a plain network; tests train it further."""
    tf.keras.utils.set_random_seed(0)
    config = ModelConfig(resnet_depth=18, width_multiplier=0.125, ft_proj_selector=selector)
    with plain_networks() if plain else contextlib.nullcontext():
        model = build_model(SimCLRModel(config, 8, 3))
    for variable in model.variables:  # gammas of 0 would keep gradients from the blocks
        if 'gamma' in variable.name:
            variable.assign(tf.ones_like(variable))
    return model


def fine_tuning(selector: int, after_block: int, *, plain: bool = True) -> FineTuning:
    model = network(selector, plain)
    model.trainable = True  # what another test froze
    settings = LearningConfig(train_mode='finetune', fine_tune_after_block=after_block)
    return FineTuning(model, settings)


def parts(model: SimCLRModel) -> dict[str, list[tf.Variable]]:
    """Variables by part: stem, block groups, projection head layers, classifier."""
    backbone = model.backbone
    if isinstance(backbone, PlainNetwork):
        stem, *groups = backbone.blocks
    else:
        stem, *groups = [backbone.stem], *backbone.groups
    encoder = {
        name: [variable for block in group for variable in block.variables]
        for name, group in zip(('stem', *GROUPS), (stem, *groups), strict=True)
    }
    head = {f'head{k}': block.variables for k, block in enumerate(model.projection_head.blocks, 1)}
    classifier = {'classifier': model.classifier.variables}
    return {**encoder, **head, **classifier}


def is_statistic(variable: tf.Variable) -> bool:
    return 'moving_' in variable.name


def changed(method: FineTuning) -> tuple[set[str], set[str]]:
    """Parts of which every weight, and every BN statistic, changed in a step; no others may."""
    before = {part: [v.numpy() for v in vs] for part, vs in parts(method.model).items()}
    trainer = Trainer(method, tf.keras.optimizers.SGD(0.02), Penalty(), TrainConfig())
    trainer.replica_step(BATCH)
    moved: dict[bool, set[str]] = {True: set(), False: set()}
    for part, variables in parts(method.model).items():
        for kind in (True, False):
            differing = [
                not np.array_equal(old, new)
                for old, new in zip(before[part], variables, strict=True)
                if is_statistic(new) == kind
            ]
            assert len(set(differing)) <= 1, f'{part} changed in part: {differing}'
            if any(differing):
                moved[kind].add(part)
    return moved[False], moved[True]


@pytest.mark.parametrize('selector', [0, 1, 2, 3, -1])
@pytest.mark.parametrize('after_block', [-1, 0, 1, 2, 3, 4])
def test_exactly_what_is_not_frozen_changes(selector: int, after_block: int) -> None:
    check_what_changes(selector, after_block, plain=True)


@pytest.mark.parametrize(('selector', 'after_block'), [(0, -1), (1, 0), (3, 2), (-1, 4)])
def test_exactly_what_is_not_frozen_changes_in_a_resnet(selector: int, after_block: int) -> None:
    check_what_changes(selector, after_block, plain=False)


def check_what_changes(selector: int, after_block: int, *, plain: bool) -> None:
    encoder = set(GROUPS[max(after_block, 0) :])
    encoder |= {'stem'} if after_block == -1 else set()
    read = 3 if selector == -1 else selector
    head = {f'head{k}' for k in range(1, read + 1)} if after_block < 4 else set()
    weights, statistics = changed(fine_tuning(selector, after_block, plain=plain))
    assert weights == encoder | head | {'classifier'}
    assert statistics == encoder | head


def test_frozen_parts_use_their_statistics() -> None:
    method = fine_tuning(0, 4)
    trained = method.model(BATCH['views'][0], training=True)
    inferred = method.model(BATCH['views'][0], training=False)
    np.testing.assert_array_equal(trained['final_avg_pool'], inferred['final_avg_pool'])


def test_loss_is_the_mean_over_labeled_examples() -> None:
    method = fine_tuning(0, 4)
    terms = loss_of(method, BATCH, training=False)
    logits = method.model(BATCH['views'][0])['logits_sup'].numpy().astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = BATCH['label'].numpy()[:5]
    np.testing.assert_allclose(
        terms['supervised_loss'], -np.log(chances[np.arange(5), labels]).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(terms['supervised_acc'], (logits.argmax(1)[:5] == labels).mean())


def test_replicas_with_unequal_shares_of_the_labels_give_the_global_mean() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, -1, -1, -1, 1], np.int32)
    whole = labeled_cross_entropy(tf.constant(labels), tf.constant(logits))
    parts = run_on_replicas(
        mirrored(2), labeled_cross_entropy, np.split(labels, 2), np.split(logits, 2)
    )
    for name, value in whole.items():
        np.testing.assert_allclose(np.mean([part[name] for part in parts]), value, rtol=1e-5)


def test_labels_are_needed() -> None:
    model = build_model(SimCLRModel(ModelConfig(resnet_depth=18, width_multiplier=0.125), 8, None))
    with pytest.raises(UserError, match='needs labels'):
        FineTuning(model, LearningConfig(train_mode='finetune'))
