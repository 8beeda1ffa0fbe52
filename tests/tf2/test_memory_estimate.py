"""The estimate of memory, compared with built models and the step's graph."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tensorflow as tf

from benchmarks import scaling
from common.methods import MethodEntry
from tests.support import GOLDEN
from tf2 import memory_estimate
from tf2.config import LearningConfig, ModelConfig, OptimizerConfig
from tf2.memory_estimate import Network, Run
from tf2.methods import METHODS, make_head
from tf2.methods.byol import BYOL
from tf2.methods.fine_tuning import FineTuning
from tf2.methods.simclr import SimCLR
from tf2.methods.swav import SwAV
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.resnet_sizes import BLOCKS_PER_GROUP, RESNET_DEPTHS
from tf2.optimizers import OPTIMIZERS, builder


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves few blocks in the groups, two in one of them, which is faster to build."""
    for depth in RESNET_DEPTHS:
        monkeypatch.setitem(BLOCKS_PER_GROUP, depth, (2, 1, 1, 1))


def resnet(depth: int, width: float = 1, **settings: object) -> ModelConfig:
    return ModelConfig(resnet_depth=depth, width_multiplier=width, **settings)


def numbers(variables: list[tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in variables)


def built(config: ModelConfig, size: int, classes: int | None = 1000) -> SimCLRModel:
    with tf.Graph().as_default():  # in which variables hold nothing
        return build_model(SimCLRModel(config, size, classes))


def test_parameters_are_the_golden_ones() -> None:
    rows = json.loads((GOLDEN / 'parameter_counts.json').read_text())
    assert len(rows) > 10
    for row in rows:
        names = ('resnet_depth', 'width_multiplier', 'sk_ratio')
        network = Network(ModelConfig(**{name: row[name] for name in names}), 224, 1000)
        encoder = sum(network.encoder(), memory_estimate.Part())
        head = sum(network.head(), memory_estimate.Part())
        assert encoder.parameters == row['backbone_trainable_parameters'], row
        assert encoder.parameters + encoder.statistics == row['backbone_variables_total'], row
        assert head.parameters == row['projection_head_trainable_parameters'], row
        assert network.classifier().parameters == row['supervised_head_parameters'], row


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        (resnet(18, 0.3, proj_head_mode='none', ft_proj_selector=-1), 32),
        (resnet(18, 0.3, proj_out_dim=64, ft_proj_selector=-1), 32),
        (resnet(34, 0.25, se_ratio=0.25, proj_head_mode='linear'), 33),
        (resnet(50, 0.3, sk_ratio=0.0625, num_proj_layers=1), 32),
        (resnet(152, 0.3, sk_ratio=0.0625, se_ratio=0.25, num_proj_layers=4), 64),
    ],
)
def test_parameters_are_those_of_every_kind_of_model(
    shallow: None, config: ModelConfig, size: int
) -> None:
    """Depth, selective kernels, squeeze-and-excitation, head, stem and the layer to classify."""
    model, whole = built(config, size), Network(config, size, 1000).whole()
    assert numbers(model.trainable_variables) == whole.parameters
    assert numbers(model.non_trainable_variables) == whole.statistics


@pytest.mark.parametrize(
    ('config', 'size', 'precision', 'global_bn'),
    [
        (resnet(18, 0.25), 32, 'float32', False),
        (resnet(50, 0.5, se_ratio=0.25), 97, 'float32', True),
        (resnet(50, 0.25, sk_ratio=0.0625), 64, 'bfloat16', False),
        (resnet(18, 0.3, proj_head_mode='linear'), 65, 'bfloat16', True),
    ],
)
def test_backward_keeps_what_is_estimated(
    shallow: None, config: ModelConfig, size: int, precision: str, global_bn: bool
) -> None:
    graph = scaling.trace(scaling.Network(config, size, precision), 4, global_bn=global_bn)
    whole = Network(config, size, 1000, precision, global_bn).whole()
    copies = 0 if precision == 'float32' else 2 * whole.kernels
    assert scaling.kept_bytes(graph) == pytest.approx(8 * whole.kept + copies, rel=0.03)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_an_optimizer_has_as_many_slots(name: str) -> None:
    if name == 'lamb':
        pytest.importorskip('tensorflow_addons')
    variable = tf.Variable(tf.ones([5, 7]))
    optimizer = builder.build(OptimizerConfig(optimizer=name), 0.1, [variable])
    builder.create_variables(optimizer, [variable])
    slots = (
        [v for v in optimizer.variables() if v.shape.rank]
        if callable(optimizer.variables)
        else [v for v in optimizer.variables if v.shape.rank]
    )
    assert numbers(slots) == 35 * OPTIMIZERS[name].slots


def test_the_memory_of_each_method_is_counted(shallow: None) -> None:
    """The memory's encoder and queue; fine-tuning from each block on."""
    config, network = resnet(18, 0.25), Network(resnet(18, 0.25), 32, 10)
    model = build_model(SimCLRModel(config, 32, 10))
    method = SimCLR(model, LearningConfig(memory_size=64))
    held = Run(network, method.config, 'lars', 32, 0).training()
    own = numbers(method.memory.encoder.variables)
    assert held['momentum encoder'] == 4 * own
    assert held['memory'] == 4 * 64 * 128
    for block in range(-1, 5):
        tuning = LearningConfig(train_mode='finetune', fine_tune_after_block=block)
        model.trainable = True  # before the method freezes other parts
        tuned = FineTuning(model, tuning)
        held = Run(network, tuning, 'adam', 32, 0).training()
        assert held['gradients'] == 4 * numbers(tuned.trainable_variables)
        assert held['adam'] == 2 * held['gradients']


def test_momentum_copy_and_predictor_are_counted(shallow: None) -> None:
    config = resnet(18, 0.25, num_proj_layers=2, proj_hidden_dim=96, proj_out_dim=64)
    learning = LearningConfig(method='byol', predictor_hidden_dim=80)
    network = Network(config, 32, 0, method='byol')
    model = SimCLRModel(config, 32, None, make_head=make_head('byol'))
    method = BYOL(build_model(model), learning)
    held = Run(network, learning, 'lars', 32, 0).training()
    # Biases and normalization of the heads are counted only roughly.
    copied, trained = numbers(method.target.variables), numbers(method.trainable_variables)
    assert held['momentum encoder'] == pytest.approx(4 * copied, rel=0.01)
    assert held['gradients'] == held['lars'] == pytest.approx(4 * trained, rel=0.01)


def test_logits_of_a_queue_are_held_whole() -> None:
    learning = LearningConfig(method='moco_v2', memory_size=4096, local_crops=3)
    run = Run(Network(resnet(18), 32, 0, method='moco_v2'), learning, 'sgd', 64, 0, replicas=2)
    queries = 4 * 32  # all crops but the key's, of this replica
    assert run.training()['logits'] == 2 * queries * 4096 * 4


def test_prototypes_and_queue_are_counted(shallow: None) -> None:
    config = resnet(18, 0.25, num_proj_layers=2, proj_hidden_dim=96, proj_out_dim=64)
    learning = LearningConfig(method='swav', prototypes=300, queue_size=64, global_crops=3)
    model = SimCLRModel(config, 32, None, make_head=make_head('swav'))
    method = SwAV(build_model(model), learning)
    held = Run(Network(config, 32, 0, method='swav'), learning, 'lars', 32, 0).training()
    assert held['queue'] == 4 * numbers([method.queue.rows])
    trained = numbers(method.trainable_variables)
    assert held['gradients'] == held['lars'] == pytest.approx(4 * trained, rel=0.01)


def test_the_head_has_as_many_layers_as_the_method_says(monkeypatch: pytest.MonkeyPatch) -> None:
    own = MethodEntry('none', (), '', head_layers='tests.toys:count_layers')  # two layers more
    monkeypatch.setitem(METHODS, 'own', own)
    config = resnet(18, num_proj_layers=2, proj_out_dim=512, ft_proj_selector=4)
    network = Network(config, 32, 10, method='own')
    default = Network(resnet(18, num_proj_layers=4, proj_out_dim=512, ft_proj_selector=4), 32, 10)
    assert network.whole() == default.whole()
    assert network.whole() != dataclasses.replace(network, method='simclr').whole()


def test_replicas_share_batches_and_their_memory_adds_up() -> None:
    network, method = Network(resnet(18), 32, 10), LearningConfig()
    one = Run(network, method, 'lars', 64, 32)
    spread = Run(network, method, 'lars', 64, 32, replicas=4)
    shared = Run(network, method, 'lars', 64, 32, replicas=4, sharing=4)
    assert spread.training()['activations'] * 4 == one.training()['activations']
    assert shared.training()['activations'] == one.training()['activations']
    assert shared.training()['weights'] == 4 * one.training()['weights']
    assert spread.evaluation()['activations'] * 4 == one.evaluation()['activations']
