"""Global and local crops: which views there are, what passes together, and what is compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.views import op
from data.batches import sample_views
from data.config import DataConfig
from data.sources import open_source
from tests.support import mirrored
from tests.tf2.test_compiled_step import dynamic_shapes
from tf2.config import LearningConfig, ModelConfig, TrainConfig
from tf2.memory_estimate import Network, Run
from tf2.methods import CROPS, METHODS, make_head
from tf2.methods.base import Method, build
from tf2.methods.byol import byol_loss
from tf2.methods.crops import encode
from tf2.methods.moco import by_crops, by_parts, info_nce
from tf2.methods.nt_xent import nt_xent
from tf2.methods.simsiam import simsiam_loss
from tf2.models import BACKBONES, BackboneEntry
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.layers import ConvBN, Layer, Norm
from tf2.trainer import Penalty, Trainer

TAKE_CROPS = [name for name, entry in METHODS.items() if entry.local_view is not None]
BATCH, SIZE, LOCAL = 8, 8, 4
LEARNING = {
    'simclr': {},
    'byol': {'predictor_hidden_dim': 6},
    'simsiam': {'predictor_hidden_dim': 6},
    'moco_v2': {'memory_size': 16, 'norm_parts': 2},
    'swav': {'prototypes': 5, 'queue_size': 8, 'queue_start_epoch': 0.0},
}


# Several only where they pass together or pairs are few.
LOCAL_CROPS = {'simclr': 1, 'byol': 2, 'moco_v2': 2, 'swav': 2}
COMPILED = ('simclr', 'moco_v2', 'swav')  # the ways views take through a network, each once


class Small(Layer):
    """A convolution with batch normalization, for images of any size."""

    def __init__(self, config: ModelConfig, norm: Norm, image_size: int) -> None:
        super().__init__(dtype=norm.dtype)
        self.width = 6
        self.blocks = [[ConvBN(self.width, 3, 2, norm)]]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        features = self.blocks[0][0](images, training=training)
        return {'final_avg_pool': tf.reduce_mean(features, [1, 2])}


@pytest.fixture(autouse=True, scope='module')
def small_networks() -> Iterator[None]:
    entry = BackboneEntry(f'{__name__}:Small', 'tests.toys:count_blocks')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, 'small', entry)
        yield


# --- views


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(TAKE_CROPS),
    global_crops=st.integers(2, 9),
    local_crops=st.integers(0, 9),
    size=st.integers(1, 300),
    area=st.sampled_from([None, '0.3,1', '0.5,0.5']),
)
def test_views_are_as_asked(
    name: str, global_crops: int, local_crops: int, size: int, area: str | None
) -> None:
    learning = LearningConfig(
        method=name,
        global_crops=global_crops,
        local_crops=local_crops,
        local_crop_size=size,
        global_crop_area=area,
        local_crop_area='0.1,0.2',
    )
    views, entry = learning.views, METHODS[name]
    assert [view.draw for view in views] == list(range(global_crops + local_crops))
    assert [view.size for view in views] == [None] * global_crops + [size] * local_crops
    for number, view in enumerate(views):
        is_local = number >= global_crops
        like = entry.local_view if is_local else entry.views[number % len(entry.views)]
        wanted = (0.1, 0.2) if is_local else area and tuple(map(float, area.split(',')))
        crop = op('crop', area=wanted) if wanted else op('crop')
        assert view.ops == tuple(crop if own.name == 'crop' else own for own in like.ops)


@pytest.mark.parametrize('name', METHODS)
def test_by_default_the_views_are_those_of_the_method(name: str) -> None:
    entry = METHODS[name]
    assert LearningConfig(method=name).views == entry.views
    assert {*CROPS} & {*entry.reads} == (set(CROPS) if name in TAKE_CROPS else set())


def test_every_crop_is_another_part_of_the_image_at_its_size() -> None:
    wanted = LearningConfig(global_crops=3, local_crops=3, local_crop_size=12).views
    config = DataConfig(dataset='bundled', image_size=20, color_jitter_strength=0.0)
    views = sample_views(open_source(config), config, split='test', views=wanted, count=2, seed=0)
    assert [view.shape[1] for view in views] == [20, 20, 20, 12, 12, 12]
    for group in (views[:3], views[3:]):
        for one, other in itertools.combinations(group, 2):
            assert np.abs(one - other).max(axis=(1, 2, 3)).min() > 0.01


@pytest.mark.parametrize('area', ['', '0.1', '0,1', '0.5,0.4', '0.2,1.1', 'a,b', '0.1,0.2,0.3'])
def test_areas_that_are_none_are_refused(area: str) -> None:
    for name in ('global_crop_area', 'local_crop_area'):
        with pytest.raises(UserError, match=f'--{name} must be .* found {area!r}'):
            LearningConfig(**{name: area})


def test_memory_counts_every_view_at_its_size() -> None:
    config = ModelConfig(resnet_depth=50)
    network = Network(config, 224, 0)

    def of_batch(**options: Any) -> dict[str, int]:
        return Run(network, LearningConfig(**options), 'lars', 64, 0).training()

    two, more = of_batch(), of_batch(local_crops=6)
    assert more['views'] / two['views'] == pytest.approx(1 + 6 * 96**2 / (2 * 224**2))
    kept = Network(config, 96, 0).whole().kept
    expected = two['activations'] + 6 * 64 * kept
    assert more['activations'] == pytest.approx(expected, rel=0.01)
    queries = of_batch(method='moco_v2', memory_size=64, local_crops=6)
    assert queries['activations'] == pytest.approx(expected - two['activations'] / 2, rel=0.01)


# --- passes


def method_of(name: str, *, global_crops: int = 2, local_crops: int = 2, replicas: int = 1) -> Any:
    tf.keras.utils.set_random_seed(0)
    learning = LearningConfig(
        method=name,
        global_crops=global_crops,
        local_crops=local_crops,
        momentum_encoder_decay=0.5,
        **LEARNING[name],
    )
    config = ModelConfig(backbone='small', num_proj_layers=1, proj_out_dim=5)
    model = SimCLRModel(
        config,
        SIZE,
        3,
        make_head=make_head(name),
        replicas=replicas,
        norm_parts=learning.norm_parts,
        detach_classifier=True,
    )
    method = build(build_model(model), learning)
    method.initialize()
    return method


def batch_of(global_crops: int = 2, local_crops: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sizes = [SIZE] * global_crops + [LOCAL] * local_crops
    views = tuple(rng.random([BATCH, size, size, 3], np.float32) for size in sizes)
    return {'views': views, 'label': np.arange(BATCH, dtype=np.int32) % 3}


def test_statistics_of_the_encoder_are_those_of_one_size_and_of_the_head_those_of_all() -> None:
    model = method_of('simclr').model
    views = [tf.constant(view) for view in batch_of()['views']]
    plain = encode(model, views, True)
    changed = encode(model, [*views[:2], views[2][::-1] ** 2, views[3]], True)

    def is_same(name: str, view: int) -> bool:
        return np.allclose(plain[name][view], changed[name][view], atol=1e-6)

    assert [is_same('proj_head_input', view) for view in range(4)] == [True, True, False, False]
    assert not any(is_same('proj_head_output', view) for view in range(4))


def test_parts_of_local_crops_have_the_same_images() -> None:
    crops = [tf.range(6) + 10 * number for number in range(3)]
    joined = by_parts(crops, 2)
    np.testing.assert_array_equal(joined % 10, np.repeat([[0, 1, 2], [3, 4, 5]], 3, 0).ravel())
    for crop, again in zip(crops, by_crops(joined, 3, 2), strict=True):
        np.testing.assert_array_equal(crop, again)


# --- losses against slow references


def rows(seed: int, count: int) -> list[np.ndarray]:
    drawn = np.random.default_rng(seed).normal(size=(count, BATCH, 5)).astype(np.float32)
    return list(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))


@pytest.mark.parametrize(('global_crops', 'local_crops'), [(2, 0), (2, 3), (3, 1)])
def test_targets_of_global_crops_are_predicted_from_all_others(
    global_crops: int, local_crops: int
) -> None:
    predictions, targets = rows(0, global_crops + local_crops), rows(1, global_crops)
    cosines = [
        (predictions[view] * targets[target]).sum(-1).mean()
        for view, target in itertools.product(range(len(predictions)), range(global_crops))
        if view != target
    ]
    found = simsiam_loss(predictions, targets)
    np.testing.assert_allclose(found, -np.mean(cosines), rtol=1e-5)
    found = byol_loss(predictions, targets)
    np.testing.assert_allclose(found, 2 * np.mean([2 - 2 * c for c in cosines]), rtol=1e-5)


@pytest.mark.parametrize(('global_crops', 'local_crops'), [(2, 0), (2, 2), (3, 1)])
def test_simclr_compares_pairs_with_a_global_crop(global_crops: int, local_crops: int) -> None:
    method = method_of('simclr', global_crops=global_crops, local_crops=local_crops)
    views = tuple(map(tf.constant, rows(0, global_crops + local_crops)))
    losses = [
        nt_xent(views[a], views[b], method.config.temperature).loss.numpy()
        for a, b in itertools.combinations(range(len(views)), 2)
        if a < global_crops or b < global_crops
    ]
    found = method.loss({'proj_head_output': views}, None, {'label': None})['loss']
    if len(losses) == 1:  # two views are compared as ever, to the last bit
        assert found.numpy() == losses[0]
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-6)


def test_moco_compares_every_query_with_the_key_of_the_second_view() -> None:
    method = method_of('moco_v2')
    method.memory.queue.rows.assign(np.concatenate(rows(2, 2)))
    method.memory.queue.enqueued.assign(16)
    queries, (key,) = rows(0, 3), rows(1, 1)
    negatives = method.memory.queue.rows
    losses = [info_nce(query, key, negatives, method.config.temperature).loss for query in queries]
    outputs = {'proj_head_output': tuple(map(tf.constant, queries))}
    found = method.loss(outputs, tf.constant(key), {'label': None})['loss']
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-6)
    assert len(method.forward(batch_of()['views'], True)['proj_head_output']) == 3


# --- training


def trained(name: str, replicas: int) -> tuple[Method, list[dict[str, float]]]:
    """A method after two steps, and their metrics; one replica runs a compiled step."""
    batch, strategy = batch_of(local_crops=LOCAL_CROPS[name]), mirrored(replicas)
    with strategy.scope():
        method = method_of(name, local_crops=LOCAL_CROPS[name], replicas=replicas)
        config = TrainConfig(jit_compile=replicas == 1 and name in COMPILED)
        optimizer = tf.keras.optimizers.SGD(0.1, jit_compile=False)
        trainer = Trainer(method, optimizer, Penalty(), config)
    data = tf.data.Dataset.from_tensor_slices(batch).batch(BATCH, drop_remainder=True)
    share = next(iter(strategy.experimental_distribute_dataset(data)))

    @tf.function(autograph=False)
    def step(share: Any) -> tf.Tensor:
        metrics = strategy.run(trainer._replica_step, (share,))
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, metrics, axis=None)

    metrics = [dict(zip(trainer.metrics, step(share).numpy())) for _ in range(2)]
    assert not dynamic_shapes(step.get_concrete_function(share))
    return method, metrics


@pytest.mark.parametrize('name', [name for name in LEARNING if name != 'simsiam'])  # as BYOL
def test_two_replicas_do_what_one_does_with_static_shapes(name: str) -> None:
    (method, found), (alone, expected) = (trained(name, replicas) for replicas in (2, 1))
    ties = {'contrast_acc', 'assignment_acc'}  # they depend on the last bits
    for metrics, wanted in zip(found, expected, strict=True):
        for metric in metrics.keys() - ties:
            assert metrics[metric] == pytest.approx(wanted[metric], rel=1e-4, abs=1e-5), metric
    assert 0 < found[0]['supervised_loss'] < 2
    pairs = zip(method.trainable_variables, alone.trainable_variables, strict=True)
    for variable, wanted in pairs:
        np.testing.assert_allclose(variable, wanted, rtol=1e-3, atol=1e-5)


def test_every_kind_of_method_with_crops_is_tried() -> None:
    classes = {METHODS[name].implementation for name in LEARNING}
    assert classes == {METHODS[name].implementation for name in TAKE_CROPS}
