"""Weights of every format: opened from files, compared with flags, loaded into models."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from hub_export.module import build_module
from hub_export.record import ModuleRecord, write_record
from tests.support import GOLDEN, assign_formula_weights, mirrored, relative_error
from tests.tf2.weights import published
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.simclr import SimCLR
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.published_names import tf2_names
from tf2.models.resnet_sizes import BLOCKS_PER_GROUP
from tf2.weights import Weights, check_compatible, config_for, open_weights
from tf2.weights.layout import layers_of
from tf2.weights.load_report import Reasons

TINY = ModelConfig(resnet_depth=18, width_multiplier=0.0625, proj_out_dim=8)
ALL = 121  # variables of a ResNet-18 with a head of three layers and a classifier
CLASSIFIER = 2
HEAD = 14


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves a ResNet-50 few blocks, two in one group, which is faster to build."""
    for blocks in (BLOCKS_PER_GROUP, published.BLOCKS):
        monkeypatch.setitem(blocks, 50, (2, 1, 1, 1))
    layers_of.cache_clear()  # it caches the layers of each ResNet
    yield
    layers_of.cache_clear()


@functools.cache
def tiny(classes: int | None = 10, size: int = 32, **flags: object) -> SimCLRModel:
    """A built model with golden weights, the same for all tests, which don't change it."""
    model = built(classes, size, **flags)
    assign_formula_weights(tf2_names(model))
    return model


def blank(classes: int | None = 10, size: int = 32, **flags: object) -> SimCLRModel:
    """A built model whose weights are all 7; equal arguments give the same model again."""
    model = canvas(classes, size, **flags)
    fill(model)
    return model


def built(classes: int | None, size: int, **flags: object) -> SimCLRModel:
    config = ModelConfig(**{**vars(TINY), **flags})
    return build_model(SimCLRModel(config, size, classes))


canvas = functools.cache(built)


def fill(model: SimCLRModel) -> None:
    for variable in model.variables:
        variable.assign(tf.fill(variable.shape, 7.0))


def written(folder: pathlib.Path, shapes: published.Shapes, keys: Callable, **more: object) -> str:
    """The prefix of a checkpoint with golden weights for `shapes`, and `more`."""
    prefix = folder / 'model.ckpt-5'
    published.write(prefix, {**published.formula_values(shapes, keys(shapes)), **more})
    return str(prefix)


def official(folder: pathlib.Path, **flags: object) -> str:
    """An official TF2 checkpoint for `tiny`, or for other arguments of `published.shapes`."""
    flags = {'depth': 18, 'width': 0.0625, 'small': True, 'classes': 10, 'out': 8, **flags}
    return written(folder, published.shapes(**flags), published.tf2_keys)


def run_folder(
    folder: pathlib.Path,
    model: SimCLRModel,
    *,
    flags: bool = True,
    method: tf.Module | None = None,
) -> str:
    """A model_dir as training leaves it."""
    optimizer = tf.keras.optimizers.SGD(momentum=0.9)
    optimizer.build(model.trainable_variables)
    method = method or tf.Module()
    method.model = model
    checkpoint = tf.train.Checkpoint(model=model, objective=method, optimizer=optimizer)
    manager = tf.train.CheckpointManager(checkpoint, str(folder), 2, checkpoint_name='ckpt')
    manager.save(3)
    manager.save(12)
    if flags:
        values = {**vars(model.config), 'image_size': 28, 'num_classes': model.num_classes}
        (folder / 'flags.json').write_text(json.dumps({**values, 'optimizer': 'lars'}))
    return str(folder)


def assert_same(model: SimCLRModel, other: SimCLRModel, but: str = 'nothing') -> None:
    first, second = tf2_names(model), tf2_names(other)
    assert first.keys() == second.keys()
    for name, variable in first.items():
        if but not in name:
            np.testing.assert_array_equal(variable.numpy(), second[name].numpy(), name)


def count(reasons: Reasons) -> int:
    return sum(map(len, reasons.values()))


def message(function: Callable, *args: object, **kwargs: object) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


# The three official formats reproduce the golden forward passes.


def tf1_file(folder: pathlib.Path) -> str:
    """With the other values that training leaves in TF1 checkpoints."""
    shapes = published.golden_shapes('tf1_r18_1x_sk0_cifar')
    shapes.pop('global_step')
    kernel, gamma = 'base_model/conv2d/kernel', 'base_model/batch_normalization/gamma'
    more = {
        'global_step': np.int64(17),
        f'{kernel}/Momentum': np.zeros(shapes[kernel]),
        f'{kernel}/LARSOptimizer': np.zeros(shapes[kernel]),
        f'{kernel}/ExponentialMovingAverage': np.zeros(shapes[kernel]),
        f'{gamma}/Adam_1': np.zeros(shapes[gamma]),
        'memory/queue': np.zeros([4, 128]),
        'beta1_power': np.float32(0.5),
    }
    prefix = written(folder, shapes, lambda names: {name: name for name in names}, **more)
    (folder / 'checkpoint').write_text('model_checkpoint_path: "/gone/elsewhere/model.ckpt-5"\n')
    assert prefix == f'{folder}/model.ckpt-5'
    return str(folder)


def tf2_file(folder: pathlib.Path) -> str:
    shapes = published.golden_shapes('r18_1x_sk0_cifar')
    kernel = 'model/resnet_model/initial_conv_relu_max_pool/0/conv2d/kernel'
    slot = f'{kernel}/.OPTIMIZER_SLOT/optimizer/momentum{published.SUFFIX}'
    more = {
        slot: np.zeros(shapes[kernel]),
        f'optimizer/learning_rate{published.SUFFIX}': np.float32(0.5),
        f'global_step{published.SUFFIX}': np.int64(17),
    }
    return f'{written(folder, shapes, published.tf2_keys, **more)}.index'


def saved_model_folder(folder: pathlib.Path) -> str:
    shapes = published.golden_shapes('r18_1x_sk0_cifar')
    values = published.formula_values(shapes, published.saved_model_keys(shapes))
    published.write(folder / 'variables' / 'variables', values)
    return f'{folder}/'


@pytest.mark.parametrize(
    ('make', 'form', 'case', 'rest', 'step'),
    [
        (tf1_file, 'official TF1 checkpoint', 'tf1_r18_1x_sk0_cifar', 7, 17),
        (tf2_file, 'official TF2 checkpoint', 'r18_1x_sk0_cifar', 3, 17),
        (saved_model_folder, 'official TF2 SavedModel', 'r18_1x_sk0_cifar', 0, 0),
    ],
)
def test_official_formats_reproduce_golden_outputs(
    make: Callable, form: str, case: str, rest: int, step: int, tmp_path: pathlib.Path
) -> None:
    weights = open_weights(make(tmp_path))
    assert (weights.format, weights.step, weights.num_classes) == (form, step, 10)
    assert weights.small_images and weights.image_size == 32 and not weights.recorded
    config = config_for(weights, ModelConfig(resnet_depth=50), {})
    model = build_model(SimCLRModel(config, weights.image_size, weights.num_classes))
    report = weights.load_into(model, head_layers=-1)
    assert (len(report.loaded), count(report.left_out), report.missing) == (ALL, rest, {})
    golden = np.load(GOLDEN / 'models' / case / 'forward.npz')
    images = golden['images']
    outputs = model(np.concatenate(np.split(images, images.shape[-1] // 3, axis=-1)))
    first, second = ('logits', 'projection')
    if 'logits' not in golden:
        first, second = ('logits_training_False', 'projection_training_False')
    assert relative_error(outputs['logits_sup'], golden[first]) < 1e-4
    assert relative_error(outputs['proj_head_output'], golden[second]) < 1e-4


@pytest.mark.parametrize(
    'keys', [published.tf1_keys, published.tf2_keys, published.saved_model_keys]
)
@pytest.mark.parametrize('depth', [18, 50])
def test_every_variable_gets_its_own_value(
    few_blocks: None, depth: int, keys: Callable, tmp_path: pathlib.Path
) -> None:
    flags = {'resnet_depth': depth, 'se_ratio': 0.25, 'sk_ratio': 0.0625 if depth == 50 else 0.0}
    model = tiny(**flags)
    shapes = published.shapes(depth, 0.0625, flags['sk_ratio'], 0.25, small=True, out=8, classes=10)
    weights = open_weights(written(tmp_path, shapes, keys))
    assert weights.architecture['se_ratio'] == 0.25
    loaded = blank(**flags)
    weights.load_into(loaded)
    assert_same(loaded, model)


# Our own formats.


@pytest.mark.parametrize('flags', [True, False], ids=['recorded', 'inferred'])
def test_model_dir(flags: bool, tmp_path: pathlib.Path) -> None:
    model = tiny(se_ratio=0.1)
    weights = open_weights(run_folder(tmp_path, model, flags=flags))
    assert weights.prefix == f'{tmp_path}/ckpt-12'
    assert weights.step == 12
    assert weights.recorded == flags
    assert weights.image_size == (28 if flags else 32)
    assert weights.num_classes == 10
    assert weights.architecture['se_ratio'] > 0
    assert not flags or weights.architecture['se_ratio'] == 0.1  # shapes this small tell no digit
    expected = {'resnet_depth': 18, 'width_multiplier': 0.0625, 'proj_out_dim': 8}
    assert expected.items() <= weights.architecture.items()
    loaded = blank(se_ratio=0.1)
    report = weights.load_into(loaded)
    assert_same(loaded, model)
    assert set(report.left_out) == {'not weights'}  # counters and slots
    assert not report.missing
    older = open_weights(f'{tmp_path}/ckpt-3')
    assert (older.step, older.recorded) == (3, flags)


@pytest.mark.parametrize('flags', [True, False], ids=['recorded', 'inferred'])
def test_model_dir_with_a_memory(flags: bool, tmp_path: pathlib.Path) -> None:
    model = tiny()
    method = SimCLR(model, LearningConfig(memory_size=4))
    for variable in method.memory.encoder.variables:
        variable.assign(tf.fill(variable.shape, 3.0))
    weights = open_weights(run_folder(tmp_path, model, flags=flags, method=method))
    assert weights.architecture['resnet_depth'] == 18 and weights.num_classes == 10
    loaded = blank()
    report = weights.load_into(loaded)
    assert_same(loaded, model)
    assert set(report.left_out) == {'not weights'} and not report.missing
    memory = [key for key in report.left_out['not weights'] if key.startswith('objective/memory/')]
    assert len(memory) == ALL - CLASSIFIER + 2  # the momentum encoder, the queue and its counter


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('size', [32, 64])
def test_our_checkpoints_without_record(
    few_blocks: None, depth: int, size: int, tmp_path: pathlib.Path
) -> None:
    flags = {'resnet_depth': depth, 'width_multiplier': 0.0625, 'proj_head_mode': 'none'}
    flags |= {'sk_ratio': 0.0625, 'se_ratio': 0.25} if depth == 50 else {}
    model = tiny(None, size, **flags)
    weights = open_weights(run_folder(tmp_path, model, flags=False))
    assert {**vars(ModelConfig()), **flags}.items() >= weights.architecture.items()
    assert weights.small_images == (size == 32)
    assert weights.num_classes is None
    loaded = blank(None, size, **flags)
    weights.load_into(loaded)
    assert_same(loaded, model)


@pytest.mark.parametrize('recorded', [True, False])
def test_exported_module(recorded: bool, tmp_path: pathlib.Path) -> None:
    model = tiny()

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return tf.zeros([32, 32, 3]) * tf.cast(tf.strings.length(encoded), tf.float32)

    module, signatures = build_module(model, 32, decode, 0.0)
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    if recorded:
        write_record(str(tmp_path), ModuleRecord(model.config, 28, 10, 345))
    weights = open_weights(str(tmp_path))
    assert weights.recorded == recorded
    if recorded:
        assert weights.format == 'module exported by this program'
        assert (weights.image_size, weights.step) == (28, 345)
    loaded = blank()
    report = weights.load_into(loaded)
    assert_same(loaded, model)
    assert len(report.loaded) == ALL and not report.missing


def test_record_that_contradicts_its_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    folder = run_folder(tmp_path, tiny())
    file = tmp_path / 'flags.json'
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, 'resnet_depth': 34}))
    found = message(open_weights, folder)
    assert 'resnet_depth 34' in found and 'resnet_depth 18' in found and 'flags.json' in found
    for text in ('{"resnet_depth"', '[]', '{"resnet_depth": 19}'):
        file.write_text(text)
        assert 'flags.json' in message(open_weights, folder)


def test_url(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_hub

    official(tmp_path)
    monkeypatch.setattr(tensorflow_hub, 'resolve', lambda url: str(tmp_path))
    weights = open_weights('https://example.org/simclr/r18/1')
    assert weights.path == 'https://example.org/simclr/r18/1'
    assert weights.architecture['resnet_depth'] == 18

    def fail(url: str) -> str:
        raise OSError('no route\nto host')

    monkeypatch.setattr(tensorflow_hub, 'resolve', fail)
    assert 'no route to host' in message(open_weights, 'https://example.org/simclr/r18/1')


# Flags.


@pytest.fixture(scope='module')
def sk(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Selective kernels, double width, the small stem, two projection layers."""
    prefix = tmp_path_factory.mktemp('sk') / 'ckpt'
    shapes = published.shapes(50, 2, 0.0625, small=True, head=2, out=64, classes=10)
    # Only shapes matter here, so the file is written without the bulk of its values.
    write_shapes(prefix, {f'{n}{published.SUFFIX}': shape for n, shape in shapes.items()})
    return open_weights(str(prefix))


def write_shapes(prefix: pathlib.Path, shapes: published.Shapes) -> None:
    """A checkpoint with these shapes in its index, but only one value of each in its data."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        names = list(shapes)
        slices = [
            ' '.join([*map(str, shape), ':'.join('0,1' for _ in shape)])
            for shape in shapes.values()
        ]
        values = [np.zeros([1] * len(shape), np.float32) for shape in shapes.values()]
        session.run(
            tf.raw_ops.SaveV2(
                prefix=str(prefix), tensor_names=names, shape_and_slices=slices, tensors=values
            )
        )
    data = pathlib.Path(f'{prefix}.data-00000-of-00001')
    # The file has the size of all values, but takes no room on the disk.
    os.truncate(data, 4 * sum(int(np.prod(shape)) for shape in shapes.values()))


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'resnet_depth': 101}, ('resnet_depth 50', 'resnet_depth 101')),
        ({'width_multiplier': 1}, ('width_multiplier 2', 'width_multiplier 1')),
        ({'sk_ratio': 0.0}, ('sk_ratio 0.0625', 'sk_ratio 0.0')),
        ({'sk_ratio': 0.25}, ('sk_ratio 0.0625', 'sk_ratio 0.25')),
        ({'se_ratio': 0.25}, ('se_ratio 0.0', 'se_ratio 0.25')),
        ({'num_proj_layers': 3}, ('num_proj_layers 2', 'num_proj_layers 3')),
        ({'proj_head_mode': 'linear'}, ('proj_head_mode nonlinear', 'proj_head_mode linear')),
        ({'proj_head_mode': 'none'}, ('proj_head_mode nonlinear', 'proj_head_mode none')),
        ({'proj_out_dim': 128}, ('proj_out_dim 64', 'proj_out_dim 128')),
        ({'image_size': 224}, ('32 pixels or less', '--image_size=224')),
        ({'ft_proj_selector': 3}, ('ft_proj_selector=3', 'found 2')),
        (
            {'resnet_depth': 18, 'sk_ratio': 0.0},
            ('resnet_depth 50, sk_ratio 0.0625', 'resnet_depth 18, sk_ratio 0.0. '),
        ),
    ],
)
def test_flags_that_contradict_are_refused_with_both_values(
    given: dict, words: tuple[str, ...], sk: Weights
) -> None:
    found = message(check_compatible, sk, given)
    assert all(word in found for word in words), found


@pytest.mark.parametrize(
    'given',
    [
        {},
        {'resnet_depth': 50, 'width_multiplier': 2.0, 'sk_ratio': 0.0625, 'se_ratio': 0.0},
        {'proj_head_mode': 'nonlinear', 'num_proj_layers': 2, 'proj_out_dim': 64},
        {'image_size': 28, 'ft_proj_selector': 2},
        {'ft_proj_selector': -1, 'train_epochs': 3, 'resnet_depth': None},
    ],
)
def test_flags_that_agree_need_not_be_repeated(given: dict, sk: Weights) -> None:
    check_compatible(sk, given)
    fields = {name: given[name] for name in vars(ModelConfig()) if given.get(name) is not None}
    config = config_for(sk, ModelConfig(batch_norm_decay=0.5, **fields), given)
    assert config == ModelConfig(
        resnet_depth=50,
        width_multiplier=2,
        sk_ratio=0.0625,
        num_proj_layers=2,
        proj_out_dim=64,
        batch_norm_decay=0.5,
        ft_proj_selector=given.get('ft_proj_selector', 0),
    )


def test_a_ratio_that_gives_the_same_shapes_is_kept(sk: Weights) -> None:
    config = config_for(sk, ModelConfig(sk_ratio=0.063), {'sk_ratio': 0.063})
    assert config.sk_ratio == 0.063


def test_a_head_may_be_new_but_not_selected(tmp_path: pathlib.Path) -> None:
    weights = open_weights(official(tmp_path, head=0))
    assert config_for(weights, TINY, {}).proj_head_mode == 'none'
    given = {'num_proj_layers': 2}
    config = config_for(weights, ModelConfig(num_proj_layers=2), given)
    assert (config.proj_head_mode, config.num_proj_layers) == ('nonlinear', 2)
    for selector in (1, -1):
        found = message(check_compatible, weights, {'ft_proj_selector': selector, **given})
        assert f'ft_proj_selector={selector}' in found and 'none' in found
    found = message(config_for, weights, ModelConfig(ft_proj_selector=1), {})
    assert 'ft_proj_selector=1' in found


def test_one_nonlinear_layer_is_a_linear_head(tmp_path: pathlib.Path) -> None:
    weights = open_weights(official(tmp_path, head=1))
    check_compatible(weights, {'proj_head_mode': 'nonlinear', 'num_proj_layers': 1})
    check_compatible(weights, {'proj_head_mode': 'linear', 'num_proj_layers': 3})
    assert 'num_proj_layers' in message(check_compatible, weights, {'num_proj_layers': 3})
    given = {'proj_head_mode': 'nonlinear'}
    assert 'proj_head_mode linear' in message(check_compatible, weights, given)


# Loading.


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Those of `tiny`."""
    return open_weights(official(tmp_path_factory.mktemp('official')))


@pytest.mark.smoke
def test_another_number_of_classes(weights: Weights) -> None:
    model = blank(5)
    report = weights.load_into(model)
    assert report.line() == (
        'Loaded 119 variables, left out 2 (classifier: 10 classes in the file, 5 here), missing 0'
    )
    assert_same(model, tiny(5), but='supervised_head')
    assert np.all(model.classifier.kernel.numpy() == 7)
    details = report.details().splitlines()
    assert details[0] == f'{report.line()}, from {weights.path}'
    kernel = 'model/resnet_model/initial_conv_relu_max_pool/0/conv2d/kernel'
    assert f'  {kernel}' in details
    assert f'  model/supervised_head/linear_layer/dense/bias{published.SUFFIX}' in details


def test_classifier_that_is_not_wanted_or_not_there(weights: Weights) -> None:
    report = weights.load_into(blank(None))
    assert list(report.left_out) == ['classifier: not in this model']
    model = blank()
    report = weights.load_into(model, no_classifier='starts anew')
    assert count(report.left_out) == CLASSIFIER
    assert np.all(model.classifier.kernel.numpy() == 7)
    model = blank(ft_proj_selector=-1)
    report = weights.load_into(model)
    assert list(report.left_out) == ['classifier: 32x10 in the file, 8x10 here']


def test_file_without_head_and_classifier(tmp_path: pathlib.Path) -> None:
    weights = open_weights(official(tmp_path, head=0, classes=None))
    report = weights.load_into(blank())
    assert report.line() == (
        'Loaded 105 variables, left out 0, missing 16 (14 projection layers: not in the file; '
        '2 classifier: not in the file)'
    )
    found = message(weights.load_into, blank(), head_layers=1)
    assert 'first 1 layers' in found and 'found none in the file' in found


def test_head_layers_beyond_the_models(weights: Weights) -> None:
    model = blank(proj_head_mode='none')
    report = weights.load_into(model)
    assert count(report.left_out) == HEAD
    assert list(report.left_out) == ['projection layers: not in this model']
    model = blank(num_proj_layers=2)
    report = weights.load_into(model, head_layers=1)
    assert count(report.left_out) == HEAD - 5
    found = message(weights.load_into, blank(num_proj_layers=2), head_layers=2)
    assert 'layer 2 with gamma 32 in the file, 8 here' in found
    found = message(weights.load_into, blank(proj_head_mode='none'), head_layers=1)
    assert 'in this model' in found
    assert 'layer 3 with' in message(weights.load_into, blank(proj_out_dim=9), head_layers=-1)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'resnet_depth': 34}, 'nothing in the file'),
        ({'width_multiplier': 0.125}, 'in the file'),
        ({'se_ratio': 0.5}, 'se_layer'),
        ({'size': 64}, 'for images of 32 pixels or less'),
    ],
)
def test_encoders_that_do_not_fit_entirely_are_refused(
    flags: dict, words: str, weights: Weights
) -> None:
    model = blank(**flags)
    assert words in message(weights.load_into, model)
    assert all(np.all(variable.numpy() == 7) for variable in model.variables)


def test_extra_layers_in_the_file_are_refused(tmp_path: pathlib.Path) -> None:
    weights = open_weights(official(tmp_path, depth=34))
    assert 'nothing here' in message(weights.load_into, blank())


@pytest.fixture(scope='module')
def spread() -> tuple[tf.distribute.Strategy, SimCLRModel]:
    """Two replicas, and a model like `tiny` on them."""
    strategy = mirrored(2)
    with strategy.scope():
        return strategy, build_model(SimCLRModel(TINY, 32, 10, replicas=2, precision='bfloat16'))


@pytest.mark.parametrize('make', [official, lambda folder: run_folder(folder, tiny())])
@pytest.mark.parametrize('inside', [False, True])
def test_mirrored_variables(
    inside: bool,
    make: Callable,
    spread: tuple[tf.distribute.Strategy, SimCLRModel],
    tmp_path: pathlib.Path,
) -> None:
    weights = open_weights(make(tmp_path))
    strategy, model = spread
    fill(model)
    with strategy.scope() if inside else contextlib.nullcontext():
        weights.load_into(model)
    expected = tf2_names(tiny())
    for name, variable in tf2_names(model).items():
        for copy in strategy.experimental_local_results(variable):
            assert copy.dtype == tf.float32
            np.testing.assert_array_equal(copy.numpy(), expected[name].numpy(), name)


def test_a_record_without_a_backbone_is_of_a_resnet(tmp_path: pathlib.Path) -> None:
    folder = run_folder(tmp_path, tiny())
    file = tmp_path / 'flags.json'
    values = json.loads(file.read_text())
    assert values.pop('backbone') == 'resnet'
    file.write_text(json.dumps(values))
    weights = open_weights(folder)
    assert weights.recorded and weights.architecture['backbone'] == 'resnet'


# Bad input.


def bad_paths(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Paths, and words of the message each should get."""
    yield f'{folder}/nowhere', 'nothing there'
    empty = folder / 'empty'
    empty.mkdir()
    yield str(empty), 'an empty folder'
    (folder / 'else').mkdir()
    (folder / 'else' / 'cat.png').write_text('meow')
    yield str(folder / 'else'), 'cat.png'
    yield str(folder / 'else' / 'cat.png'), 'another kind of file'
    prefix = official(folder / 'no_data')
    pathlib.Path(f'{prefix}.data-00000-of-00001').unlink()
    yield prefix, 'unfinished'
    yield f'{prefix}.index', 'unfinished'
    yield str(folder / 'no_data'), 'unfinished'
    prefix = official(folder / 'no_index')
    pathlib.Path(f'{prefix}.index').unlink()
    yield prefix, 'unfinished'
    prefix = official(folder / 'shards')
    data = pathlib.Path(f'{prefix}.data-00000-of-00001')
    data.rename(data.with_name('model.ckpt-5.data-00000-of-00002'))
    yield prefix, '00002 data files'
    (folder / 'state').mkdir()
    (folder / 'state' / 'checkpoint').write_text('model_checkpoint_path: "ckpt-8"\n')
    yield str(folder / 'state'), 'ckpt-8.index'
    (folder / 'garbled').mkdir()
    (folder / 'garbled' / 'checkpoint').write_text('{]')
    yield str(folder / 'garbled'), 'garbled/checkpoint'
    (folder / 'module' / 'variables').mkdir(parents=True)
    yield str(folder / 'module'), 'variables.index'
    two = folder / 'two'
    for number in (1, 2):
        published.write(two / f'ckpt-{number}', {'x': np.zeros(2)})
    yield str(two), 'ckpt-1, ckpt-2'
    yield str(two / 'ckpt-1'), 'found another kind: x'
    prefix = official(folder / 'cut_index')
    index = pathlib.Path(f'{prefix}.index')
    index.write_bytes(index.read_bytes()[:100])
    yield prefix, 'damaged'
    yield 'nosuchscheme://bucket/ckpt-1', 'nosuchscheme'


def test_bad_paths(tmp_path: pathlib.Path) -> None:
    for path, words in bad_paths(tmp_path):
        found = message(open_weights, path)
        assert words in found and path.removesuffix('.index') in found, found


@pytest.mark.parametrize('share', [0, 0.5, 1])
@pytest.mark.parametrize('ours', [False, True])
def test_truncated_data(ours: bool, share: float, tmp_path: pathlib.Path) -> None:
    path = run_folder(tmp_path, tiny()) if ours else official(tmp_path)
    data = next(tmp_path.glob('*12.data-*' if ours else '*.data-*'))
    content = data.read_bytes()
    data.write_bytes(content[: int(share * (len(content) - 1))])
    assert 'unfinished' in message(open_weights, path)


def test_altered_data(tmp_path: pathlib.Path) -> None:
    prefix = official(tmp_path)
    data = pathlib.Path(f'{prefix}.data-00000-of-00001')
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 255
    data.write_bytes(content)
    weights = open_weights(prefix)
    assert 'damaged' in message(weights.load_into, blank())
