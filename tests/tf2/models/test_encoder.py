"""Encoder and heads against golden forward passes, parameter counts and simple properties."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import GOLDEN, assign_formula_weights, relative_error
from tf2.config import ModelConfig
from tf2.models import BACKBONES, BackboneEntry
from tf2.models.encoder import SimCLRModel, build_model, freeze, without_classifier
from tf2.models.heads import ProjectionHead
from tf2.models.layers import Norm
from tf2.models.published_names import tf2_names
from tf2.models.resnet_sizes import BLOCKS_PER_GROUP

COUNTS = json.loads((GOLDEN / 'parameter_counts.json').read_text())


def golden_model(case: str, classes: int) -> tuple[SimCLRModel, dict, np.lib.npyio.NpzFile]:
    """A model with formula weights, its variables by golden key, and the golden outputs."""
    described = json.loads((GOLDEN / 'models' / case / 'variables.json').read_text())
    flags = {k: v for k, v in described['flags'].items() if k in ModelConfig.__dataclass_fields__}
    model = build_model(
        SimCLRModel(ModelConfig(**flags), described['flags']['image_size'], classes)
    )
    variables = tf2_names(model)
    shapes = {key: tuple(shape) for key, shape in described['variables'].items()}
    shapes.pop('global_step', None)
    assert {key: tuple(variable.shape) for key, variable in variables.items()} == shapes
    assign_formula_weights(variables)
    return model, variables, np.load(GOLDEN / 'models' / case / 'forward.npz')


def both_views(images: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(images, images.shape[-1] // 3, axis=-1))


@pytest.mark.parametrize(
    ('case', 'classes', 'graph'),
    [
        pytest.param('r18_1x_sk0_cifar', 10, False, marks=pytest.mark.smoke),
        pytest.param('r18_1x_sk0_cifar', 10, True, marks=pytest.mark.smoke),
        ('r50_1x_sk1', 1000, False),
        ('r50_1x_sk0_finetune_proj1', 1000, False),
    ],
)
def test_golden_forward(case: str, classes: int, graph: bool) -> None:
    model, variables, golden = golden_model(case, classes)
    call = tf.function(model, autograph=False) if graph else model
    views = both_views(golden['images'])
    outputs = call(views)
    assert relative_error(outputs['logits_sup'], golden['logits_training_False']) < 1e-4
    if 'projection_training_False' in golden:
        found = outputs['proj_head_output']
        assert relative_error(found, golden['projection_training_False']) < 1e-4
    first = len(golden['images'])  # the images of the first view
    check_endpoints({name: values[:first] for name, values in outputs.items()}, golden)
    trained = call(views, training=True)
    # Batch statistics of four rows magnify rounding.
    assert relative_error(trained['logits_sup'], golden['logits_training_True']) < 2e-3
    if 'projection_training_True' in golden:
        found = trained['proj_head_output']
        assert relative_error(found, golden['projection_training_True']) < 3e-3
    for key, total in zip(golden['bn_keys'], golden['bn_after_one_training_step_sum'], strict=True):
        values = variables[key].numpy().astype(np.float64)
        assert abs(values.sum() - total) < 2e-4 * np.abs(values).sum(), key


def check_endpoints(outputs: dict[str, tf.Tensor], golden: np.lib.npyio.NpzFile) -> None:
    names = {key.split('/')[1] for key in golden.files if key.startswith('out/')}
    assert names == set(outputs)
    for name in names:
        found = outputs[name].numpy()
        assert found.shape == tuple(golden[f'out/{name}/shape'])
        np.testing.assert_allclose(np.abs(found).mean(), golden[f'out/{name}/mean_abs'], rtol=1e-4)
        sample = found.ravel()[:: max(1, found.size // 64)][:64]
        expected = golden[f'out/{name}/sample']
        np.testing.assert_allclose(sample, expected, atol=1e-4 * np.abs(found).max(), err_msg=name)


def count(variables: list[tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in variables)


# Every width and both kinds of kernels. Deeper networks, which take seconds to build, only have
# more blocks: `test_memory_estimate` computes all rows, from the same number of blocks.
BUILT = [row for row in COUNTS if row['resnet_depth'] <= 50]


@pytest.mark.parametrize('row', BUILT, ids=lambda row: '-'.join(map(str, list(row.values())[:3])))
def test_parameter_counts(row: dict) -> None:
    config = ModelConfig(
        resnet_depth=row['resnet_depth'],
        width_multiplier=row['width_multiplier'],
        sk_ratio=float(row['sk_ratio']),
    )
    # Shapes are what is counted: in a graph that never runs, no variable gets values.
    with tf.Graph().as_default():
        model = build_model(SimCLRModel(config, 224, 1000))
    assert count(model.backbone.trainable_variables) == row['backbone_trainable_parameters']
    assert count(model.backbone.variables) == row['backbone_variables_total']
    head = row['projection_head_trainable_parameters']
    assert count(model.projection_head.trainable_variables) == head
    assert count(model.classifier.variables) == row['supervised_head_parameters']


@functools.cache
def one_for_all(config: ModelConfig, small: bool) -> SimCLRModel:
    """A model for images up to 32 pixels, or for larger ones."""
    return build_model(SimCLRModel(config, 32 if small else 33, 7))


@pytest.mark.parametrize('size', [28, 32, 33, 50])
@pytest.mark.parametrize(
    'config',
    [
        ModelConfig(resnet_depth=18, width_multiplier=0.25),
        ModelConfig(resnet_depth=18, width_multiplier=0.25, se_ratio=0.25),
        ModelConfig(resnet_depth=50, width_multiplier=0.25, sk_ratio=0.0625, se_ratio=0.5),
    ],
    ids=['plain', 'se', 'sk-se'],
)
def test_any_size_gives_finite_endpoints(
    config: ModelConfig, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a size does to a block, it does to the next one of its group.
    monkeypatch.setitem(BLOCKS_PER_GROUP, config.resnet_depth, (2, 1, 1, 1))
    model = one_for_all(config, size <= 32)
    outputs = model(tf.random.stateless_uniform([2, size, size + 3, 3], [1, 2]), training=True)
    assert outputs['final_avg_pool'].shape == [2, model.backbone.width]
    assert outputs['logits_sup'].shape == [2, 7]
    assert outputs['initial_conv'].shape[1] == (size if size <= 32 else (size + 1) // 2)
    assert all(np.isfinite(value).all() for value in outputs.values())


@pytest.mark.parametrize(('mode', 'layers'), [('none', 0), ('linear', 1), ('nonlinear', 3)])
def test_projection_head_modes(mode: str, layers: int) -> None:
    head = ProjectionHead(ModelConfig(proj_head_mode=mode, proj_out_dim=5), 12, Norm())
    assert head.width == (5 if layers else 12)
    features = tf.random.stateless_normal([6, 12], [3, 4])
    outputs = head(features, training=True)
    assert len(outputs) == layers + 1
    np.testing.assert_array_equal(outputs[0], features)
    assert outputs[-1].shape == [6, 5 if layers else 12]
    assert all(hidden.shape == [6, 12] for hidden in outputs[:-1])
    assert all((hidden.numpy() >= 0).all() for hidden in outputs[1:-1])
    assert not any('bias' in variable.name for variable in head.variables)


def test_classifier_gradient_stops_only_if_detached() -> None:
    images = tf.random.stateless_uniform([2, 8, 8, 3], [5, 6])
    for detached in (True, False):
        config = ModelConfig(resnet_depth=18, width_multiplier=0.25, ft_proj_selector=1)
        model = build_model(SimCLRModel(config, 8, 3, detach_classifier=detached))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True)['logits_sup'] ** 2)
        gradients = tape.gradient(loss, model.backbone.trainable_variables)
        assert all((gradient is None) == detached for gradient in gradients)


def test_mixed_precision_keeps_weights_and_outputs_in_float32() -> None:
    config = ModelConfig(resnet_depth=18, width_multiplier=0.25)
    model = build_model(SimCLRModel(config, 32, 10, precision='bfloat16'))
    outputs = model(tf.random.stateless_uniform([4, 32, 32, 3], [7, 8]), training=True)
    assert outputs['block_group4'].dtype == tf.bfloat16
    for name in ('final_avg_pool', 'proj_head_output', 'logits_sup'):
        assert outputs[name].dtype == tf.float32
    assert all(variable.dtype == tf.float32 for variable in model.variables)


@pytest.mark.parametrize('mode', ['none', 'linear', 'nonlinear'])
def test_a_second_model_has_the_same_encoder_and_head(mode: str) -> None:
    config = ModelConfig(resnet_depth=18, width_multiplier=0.25, proj_head_mode=mode)
    model = build_model(SimCLRModel(config, 64, 10, precision='bfloat16'))
    second = build_model(without_classifier(model))
    shapes = {name: v.shape for name, v in tf2_names(model).items() if 'supervised' not in name}
    assert {name: variable.shape for name, variable in tf2_names(second).items()} == shapes
    outputs = second(tf.zeros([2, 64, 64, 3]))
    assert outputs['block_group4'].dtype == tf.bfloat16
    assert outputs['initial_conv'].shape[1] == 32
    assert outputs['proj_head_output'].shape == [2, model.projection_head.width]


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'resnet_depth': 18, 'sk_ratio': 0.0625}, 'sk_ratio'),
        ({'resnet_depth': 19}, '18, 34, 50, 101, 152, 200'),
        ({'width_multiplier': 0.01}, 'width_multiplier'),
    ],
)
def test_impossible_architectures_are_refused(flags: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig(**flags)


@pytest.mark.parametrize(('mode', 'selector', 'layers'), [('nonlinear', 4, 3), ('none', 1, 0)])
def test_a_classifier_needs_the_layer_it_reads(mode: str, selector: int, layers: int) -> None:
    config = ModelConfig(resnet_depth=18, proj_head_mode=mode, ft_proj_selector=selector)
    with pytest.raises(UserError, match=f'projection layers, {layers}; found {selector}'):
        SimCLRModel(config, 8, 3)


class TwoLayers(tf.keras.layers.Layer):
    """A projection head of a method's own."""

    def __init__(self, config: ModelConfig, in_dim: int, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        self.width = 7
        self.blocks = [tf.keras.layers.Dense(units, dtype=norm.dtype) for units in (4, 7)]

    def call(self, features: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        hidden = self.blocks[0](features)
        return [features, hidden, self.blocks[1](hidden)]


def test_a_head_of_another_kind_is_counted_by_its_layers() -> None:
    config = ModelConfig(resnet_depth=18, width_multiplier=0.25, ft_proj_selector=1)
    model = build_model(SimCLRModel(config, 8, 3, make_head=TwoLayers))
    assert model.classifier.kernel.shape == [4, 3]
    freeze(model, 0)
    assert [layer.trainable for layer in model.projection_head.blocks] == [True, False]
    second = build_model(without_classifier(model))
    assert [v.shape for v in second.projection_head.variables] == [
        v.shape for v in model.projection_head.variables
    ]
    with pytest.raises(UserError, match='number of projection layers, 2; found 3'):
        SimCLRModel(dataclasses.replace(config, ft_proj_selector=3), 8, 3, make_head=TwoLayers)


def test_settings_of_resnets_are_checked_for_resnets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {'sk_ratio': 0.5, 'resnet_depth': 18, 'width_multiplier': 0.01}
    with pytest.raises(UserError):
        ModelConfig(**settings)
    monkeypatch.setitem(BACKBONES, 'toy', BackboneEntry('tests.toys:ToyBackbone', ''))
    assert ModelConfig(backbone='toy', **settings).title == 'toy'
    monkeypatch.delitem(BACKBONES, 'toy')
    with pytest.raises(UserError, match='backbone must be one of resnet; found'):
        ModelConfig(backbone='toy')
