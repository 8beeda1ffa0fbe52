"""Tests of every entry of every registry; a new entry is tested as soon as it is listed."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from app.config.resolution import resolve
from app.config.schema import all_options, to_values
from app.presets import PRESETS
from common.views import EVALUATION, SUPERVISED, View, op
from data.augmentations import AUGMENTATIONS, apply_op
from data.batches import sample_views
from data.config import DataConfig
from data.images import to_rgb, to_unit_range
from data.names import SOURCES
from data.sources import Source, open_source
from tf2 import collapse
from tf2.config import LearningConfig, ModelConfig, OptimizerConfig
from tf2.evaluators import EVALUATORS, NEEDS
from tf2.evaluators.base import Inputs
from tf2.methods import METHODS, entry_of, make_head
from tf2.methods.base import build
from tf2.models import BACKBONES
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.layers import Norm
from tf2.optimizers import OPTIMIZERS, builder

# --- data


def bundled(tmp_path: pathlib.Path) -> DataConfig:
    return DataConfig(dataset='bundled')


def image_folder(tmp_path: pathlib.Path) -> DataConfig:
    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            (tmp_path / split / name).mkdir(parents=True)
            image = np.full([3, 5, 3], 77, np.uint8)
            (tmp_path / split / name / '1.png').write_bytes(tf.io.encode_png(image).numpy())
    return DataConfig(dataset='image_folder', data_dir=str(tmp_path))


def image_list(tmp_path: pathlib.Path) -> DataConfig:
    image_folder(tmp_path)
    rows = [f'{path.relative_to(tmp_path)}' for path in sorted(tmp_path.rglob('*.png'))]
    table = ''.join(f'{row},{row.split("/")[1]},{row.split("/")[0]}\n' for row in rows)
    (tmp_path / 'list.csv').write_text(f'path,label,split\n{table}')
    return DataConfig(dataset='image_list', data_dir=str(tmp_path / 'list.csv'))


def tfrecords(tmp_path: pathlib.Path) -> DataConfig:
    image = tf.io.encode_png(np.full([3, 5, 3], 77, np.uint8)).numpy()
    for split in ('train', 'test'):
        with tf.io.TFRecordWriter(str(tmp_path / f'{split}.tfrecord')) as writer:
            for label in (b'cat', b'dog'):
                features = {'image': image, 'label': label}
                example = tf.train.Example()
                for key, value in features.items():
                    example.features.feature[key].bytes_list.value.append(value)
                writer.write(example.SerializeToString())
    return DataConfig(dataset='tfrecords', data_dir=str(tmp_path))


# A data set with the splits train and test, for every name in SOURCES.
OPENED: dict[str, Callable[[pathlib.Path], DataConfig]] = {
    'bundled': bundled,
    'image_folder': image_folder,
    'image_list': image_list,
    'tfrecords': tfrecords,
}


@pytest.mark.parametrize('name', SOURCES)
def test_every_source_has_the_examples_it_declares(name: str, tmp_path: pathlib.Path) -> None:
    source = open_source(OPENED[name](tmp_path))
    assert source.name == name
    assert source.class_names is None or len(source.class_names) == source.num_classes
    for split in ('test', 'train[:2]'):
        assert source.num_examples(split) == sum(1 for _ in source.examples(split))
    orders = [[int(raw['label']) for raw in source.examples('test')] for _ in range(2)]
    assert orders[0] == orders[1]
    assert set(orders[0]) <= {-1, *range(source.num_classes or 0)}
    raw = next(iter(source.with_contents(source.examples('train'))))
    assert (raw['label'].dtype, raw['label'].shape) == (tf.int32, [])
    image = to_unit_range(to_rgb(source.decode(raw['image'])))
    assert image.dtype == tf.float32 and image.shape[-1] == 3


@pytest.fixture(scope='module')
def source() -> Source:
    return open_source(DataConfig(dataset='bundled'))


@pytest.mark.smoke
@pytest.mark.parametrize(
    'wanted', [SUPERVISED, EVALUATION, *{entry.views: entry for entry in METHODS.values()}]
)
def test_every_chain_makes_its_views_of_one_size(wanted: tuple[View, ...], source: Source) -> None:
    views = sample_views(
        source, DataConfig(image_size=24), split='test', views=wanted, count=3, seed=0
    )
    assert len(views) == len(wanted)
    for view in views:
        assert (view.dtype, view.shape) == (tf.float32, [3, 24, 24, 3])
        assert 0 <= float(tf.reduce_min(view)) <= float(tf.reduce_max(view)) <= 1


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_every_augmentation_stays_in_range_with_a_static_shape(name: str) -> None:
    config = DataConfig(image_size=20)
    rng = np.random.default_rng(0)
    extremes = [np.zeros([20, 20, 3]), np.ones([20, 20, 3]), rng.random([20, 20, 3]).round()]

    @tf.function(input_signature=[tf.TensorSpec([20, 20, 3]), tf.TensorSpec([2], tf.int32)])
    def in_graph(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        augmented = apply_op(op(name), image, seed, config=config, size=20)
        assert augmented.shape == [20, 20, 3]
        return augmented

    for number in range(30):
        image = tf.constant(extremes[number % 3], tf.float32)
        seed = tf.constant([number, 7])
        first, again = in_graph(image, seed), in_graph(image, seed)
        assert first.dtype == tf.float32
        assert np.isfinite(first).all()
        assert 0 <= float(tf.reduce_min(first)) <= float(tf.reduce_max(first)) <= 1
        np.testing.assert_array_equal(first, again)


# --- models and objectives

EXAMPLES = 8
NORM = Norm(momentum=0.9, synchronized=False, dtype='float32')


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('size', [16, 48])
def test_every_backbone_has_width_blocks_and_endpoints(name: str, size: int) -> None:
    config = ModelConfig(backbone=name, resnet_depth=18, width_multiplier=0.25)
    backbone = BACKBONES[name].load()(config, NORM, size)
    endpoints = backbone(tf.random.stateless_uniform([2, size, size, 3], [0, 0]), training=False)
    assert all(np.isfinite(value).all() for value in endpoints.values())
    assert endpoints['final_avg_pool'].shape == [2, backbone.width]
    assert endpoints['final_avg_pool'].dtype == tf.float32
    in_blocks = [v.ref() for block in backbone.blocks for layer in block for v in layer.variables]
    assert len(backbone.blocks) == 1 + config.blocks > 1
    assert set(in_blocks) == {variable.ref() for variable in backbone.variables}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('name', 'method'),
    [*(('pretrain', name) for name in METHODS), ('finetune', 'simclr'), ('distill', 'simclr')],
)
def test_every_method_returns_its_metrics_and_trains_its_modules(name: str, method: str) -> None:
    model_config = ModelConfig(resnet_depth=18, width_multiplier=0.25)
    detached, head = name == 'pretrain', make_head(method)
    model = build_model(
        SimCLRModel(model_config, 8, 10, make_head=head, detach_classifier=detached)
    )
    if name == 'distill':
        teacher = tf.random.stateless_normal([8, 10], [1, 2])
        config = LearningConfig(train_mode=name, teacher='made up')
        method = build(model, config, lambda images: teacher)
    else:
        names = {field.name for field in dataclasses.fields(LearningConfig)}
        defaults = entry_of(name, method).defaults
        own = {key: value for key, value in defaults.items() if key in names}
        config = LearningConfig(**{**own, 'train_mode': name, 'method': method})
        method = build(model, config, examples=EXAMPLES)
    images = tf.random.stateless_uniform([len(config.entry.views), 8, 8, 8, 3], [0, 0])
    # Some examples have no label.
    batch = {
        'views': tuple(tf.unstack(images)),
        'label': tf.constant([3, 1, -1, 0, 2, -1, 9, 9]),
        'index': tf.range(8, dtype=tf.int64),
    }
    with tf.GradientTape() as tape:
        targets, outputs = method.targets(batch), method.forward(batch['views'], True)
        terms = method.loss(outputs, targets, batch)
    step = outputs, targets, batch
    if name == 'pretrain':
        assert 'representation' in method.watched
        rows = outputs[method.watched['representation']]
        rows = rows[0] if isinstance(rows, tuple) else rows
        assert rows.shape == [len(batch['label']), method.model.backbone.width]
        assert len(collapse.measure(method.watched, outputs)) == len(method.watched)
    assert sorted(terms) == sorted(['loss', *method.metrics])
    for term in terms.values():
        assert (term.dtype, term.shape) == (tf.float32, [])
        assert np.isfinite(term)
    gradients = tape.gradient(terms['loss'], method.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    method.after_update(*step, tf.constant(0, tf.int64))


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('mode', ['none', 'linear', 'nonlinear'])
def test_every_method_counts_the_layers_of_its_head(name: str, mode: str) -> None:
    for layers in (1, 2, 4):
        config = ModelConfig(proj_head_mode=mode, num_proj_layers=layers, proj_out_dim=8)
        head = make_head(name)(config, 16, NORM)
        told = LearningConfig(method=name).count_head_layers(config)
        assert len(head.blocks) == len(head(tf.zeros([2, 16]))) - 1 == told


@pytest.mark.smoke
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_reduces_a_loss(name: str) -> None:
    if name == 'lamb':
        pytest.importorskip('tensorflow_addons')
    kernel, bias = tf.Variable([[3.0, -4.0]]), tf.Variable([2.0])
    # LARS changes what it adapts by a thousandth.
    rate = 10.0 if name == 'lars' else 0.01
    config = OptimizerConfig(optimizer=name, momentum=0.5)
    optimizer = builder.build(config, rate, [kernel])
    heights = []
    for _ in range(20):
        with tf.GradientTape() as tape:
            height = tf.reduce_sum(kernel**2) + tf.reduce_sum((0.01 * bias) ** 2)
        heights.append(float(height))
        builder.apply(optimizer, tape.gradient(height, [kernel, bias]), [kernel, bias])
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] < 0.97 * heights[0]
    assert abs(float(bias[0])) < 2.0
    assert int(optimizer.iterations) == 20


# --- evaluation and presets


def inputs(classes: int = 3) -> Inputs:
    """Images with one pixel that isn't black, whose position is the label."""
    labels = np.arange(8) % classes
    images = np.eye(classes, dtype=np.float32)[labels][:, None, :, None] * np.ones(3, np.float32)
    batch = {'views': (tf.constant(images),), 'label': tf.constant(labels, tf.int32)}

    def pixels(views: tf.Tensor) -> tf.Tensor:
        return views[:, 0, :, 0]

    return Inputs(
        batches=lambda: [batch],
        num_classes=classes,
        predict=pixels,
        teach=pixels,
        embed=pixels,
        train_batches=lambda: [batch],
        pairs=lambda: [{**batch, 'views': batch['views'] * 2}],
        neighbors=2,
    )


@pytest.mark.parametrize('name', EVALUATORS)
def test_every_evaluator_finds_perfect_features_perfect(name: str) -> None:
    kind = EVALUATORS[name].load()
    assert kind.applies(inputs())
    results = kind(inputs()).run()
    assert results
    for key, value in results:
        assert key.startswith('eval/')
        assert type(value) in (float, list, dict)
        if key.endswith(('accuracy', 'agreement')) and type(value) is float:
            assert value == 1.0


@pytest.mark.parametrize('name', EVALUATORS)
def test_no_evaluator_applies_without_its_inputs(name: str) -> None:
    assert not EVALUATORS[name].load().applies(Inputs(batches=list, num_classes=0))


@pytest.mark.parametrize('name', EVALUATORS)
def test_an_evaluator_needs_what_its_entry_declares(name: str) -> None:
    """The entry, which the command line is checked against, agrees with the class."""
    lacking = {
        'eval_labels': {'num_classes': 0},
        'train_labels': {'train_batches': None},
        'classifier': {'predict': None},
        'neighbors': {'neighbors': 0},
        'teacher': {'teach': None},
    }
    assert lacking.keys() == NEEDS.keys()
    entry = EVALUATORS[name]
    for need, changes in lacking.items():
        applies = entry.load().applies(dataclasses.replace(inputs(), **changes))
        assert applies == (need not in entry.needs), need


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_resolves_and_has_a_summary(name: str) -> None:
    preset = PRESETS[name]
    assert preset.summary.endswith('.')
    known = {field.name for _, _, field in all_options()}
    assert preset.flags.keys() <= known - {'preset', 'mode', 'model_dir', 'data_dir'}
    assert 'dataset' in preset.flags
    needed = {'teacher': 'made up'} if preset.flags.get('train_mode') == 'distill' else {}
    values = to_values(resolve({'preset': name, **needed}, PRESETS))
    assert all(stage in PRESETS for stage in preset.stages)
    assert {key: values[key] for key in preset.flags} == dict(preset.flags)
