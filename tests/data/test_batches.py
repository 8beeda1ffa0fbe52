from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.views import CONTRAST, EVALUATION, SUPERVISED, View, op, teacher_view
from data import batches as input_batches
from data.augmentations import AUGMENTATIONS
from data.augmentations.eval_crop import eval_crop
from data.batches import _group_size, _most_buffered, eval_batches, finisher, train_batches
from data.config import DataConfig
from data.images import to_rgb, to_unit_range
from data.label_subset import choose_labels, restrict
from data.sources import open_source

CONFIG = DataConfig(image_size=21)
# Two halves, on single images and on groups, like those of a method; compiled much faster.
PAIR = tuple(View((op('crop'), op('flip')), draw=draw) for draw in (0, 1))
CROPPED = (View((op('crop'),)),)  # nothing is compiled


def first(dataset: tf.data.Dataset, count: int) -> list[dict]:
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def train(source, count, *, config=CONFIG, views=PAIR, batch_size=4, seed=1, start_step=0):
    dataset = train_batches(
        source,
        config,
        split='train',
        views=views,
        batch_size=batch_size,
        seed=seed,
        start=start_step * batch_size,
    )
    return first(dataset, count)


def assert_same_batches(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('views', [CONTRAST, SUPERVISED])
def test_training_batches_have_static_shapes(memory_source, views):
    dataset = train_batches(
        memory_source(10), CONFIG, split='train', views=views, batch_size=4, seed=1
    )
    image = tf.TensorSpec([4, 21, 21, 3], tf.float32)
    label, index = tf.TensorSpec([4], tf.int32), tf.TensorSpec([4], tf.int64)
    expected = {'views': (image,) * len(views), 'label': label, 'index': index}
    assert dataset.element_spec == expected
    assert dataset.cardinality() in (tf.data.UNKNOWN_CARDINALITY, tf.data.INFINITE_CARDINALITY)
    for batch in first(dataset, 5):
        for view in batch['views']:
            assert 0 <= view.min() < view.max() <= 1


def test_views_differ_and_repeat_with_the_seed(memory_source):
    source = memory_source(10)
    batches = train(source, 4, views=CONTRAST)
    for batch in batches:
        assert (batch['views'][0] != batch['views'][1]).any(axis=(1, 2, 3)).all()
    for global_seed in (0, 99):  # Another part of the program may set it.
        tf.random.set_seed(global_seed)
        assert_same_batches(train(source, 4, views=CONTRAST), batches)
    other = train(source, 4, views=CONTRAST, seed=2)
    assert any((a['label'] != b['label']).any() for a, b in zip(batches, other, strict=True))
    assert not np.array_equal(other[0]['views'][0], batches[0]['views'][0])


def test_every_epoch_holds_every_example_in_an_order_of_its_own(memory_source):
    labels = np.concatenate([batch['label'] for batch in train(memory_source(10), 15)])
    epochs = labels.reshape(6, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_an_example_is_augmented_anew_in_every_epoch(memory_source):
    seen = collections.defaultdict(list)
    for batch in train(memory_source(4), 3, views=SUPERVISED):
        for label, view in zip(batch['label'], batch['views'][0], strict=True):
            seen[int(label)].append(view)
    for views in seen.values():
        assert len(views) == 3
        assert not np.array_equal(views[0], views[1])


def test_a_resumed_run_goes_on_where_it_stopped(memory_source):
    """With and without a cache; 10 examples in batches of 4: an epoch ends after 2.5 batches."""
    source = memory_source(10)
    whole = train(source, 12)
    for start_step in (1, 3, 5, 7):
        rest = train(source, 12 - start_step, start_step=start_step)
        assert_same_batches(rest, whole[start_step:])
    config = DataConfig(image_size=21, cache_dataset=True)
    assert_same_batches(train(source, 12, config=config), whole)
    assert_same_batches(train(source, 9, config=config, start_step=3), whole[3:])


def test_skipped_examples_are_not_decoded(memory_source, monkeypatch):
    source = memory_source(40)
    labels = {raw['image'].numpy(): int(raw['label']) for raw in source.examples('train')}
    decoded = []

    def decode(image: tf.Tensor) -> tf.Tensor:
        def note(encoded: tf.Tensor) -> tf.Tensor:
            decoded.append(labels[encoded.numpy()])
            return tf.io.decode_png(encoded, channels=3)

        image = tf.py_function(note, [image], tf.uint8)
        return tf.ensure_shape(image, [None, None, 3])

    object.__setattr__(source, 'decode', decode)
    # 9 batches of 4 are left out of the first epoch, 100 epochs before that.
    (batch,) = train(source, 1, start_step=1009)
    # Several are decoded at once, so not in order. How far the pipeline is ahead is not known; the
    # 36 of this epoch that are left out would come first.
    assert set(batch['label']) <= set(decoded[:32])


def test_files_are_read_after_the_shuffle(tmp_path, monkeypatch):
    """What needs no contents reads none: filling the buffer, going on, choosing labels."""
    monkeypatch.setattr(input_batches, '_READ_SMALL_IMAGES', 8)
    for number in range(400):
        path = tmp_path / 'train' / f'class {number % 2}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(np.full([8, 8, 3], number % 256, np.uint8)).numpy())
    source = open_source(DataConfig(dataset='image_folder', data_dir=str(tmp_path)))
    opened = []

    def read(path: tf.Tensor) -> tf.Tensor:
        def note(path: tf.Tensor) -> tf.Tensor:
            opened.append(path.numpy())
            return tf.io.read_file(path)

        return tf.ensure_shape(tf.py_function(note, [path], tf.string), [])

    source = dataclasses.replace(source, read=read)
    subset = choose_labels(source, DataConfig(labels_per_class=3), split='train', seed=0)
    assert not opened
    train(source, 1, views=CROPPED, config=DataConfig(image_size=33))
    assert len(opened) < 200  # a few groups, of 400 images in the buffer
    del opened[:]
    train(source, 1, views=CROPPED, config=DataConfig(image_size=33), start_step=1009)
    assert len(opened) < 200
    del opened[:]
    train(restrict(source, 'train', subset), 3, views=CROPPED)
    assert len(set(opened)) == 6


@pytest.mark.parametrize(
    ('size', 'image_size', 'most'),
    [
        (545, 28, 65_536),
        (110_000, 28, 19_522),
        (110_000, 224, 16_384),
        (5_000_000, 224, 429),
        (3 << 30, 224, 1),
        (None, 224, 16_384),
    ],
)
def test_encoded_examples_in_the_shuffle_buffer_have_a_limit_in_bytes(
    memory_source, size, image_size, most
):
    source = dataclasses.replace(memory_source(1), bytes_per_example=lambda split: size)
    assert _most_buffered(source, DataConfig(image_size=image_size), 'train') == most


def test_compilation_logs_nothing() -> None:
    """XLA would, once in a process; so this takes one of its own."""
    program = (
        'from data.config import DataConfig\n'
        'from common.views import SUPERVISED\n'
        'from data.batches import train_batches\n'
        'from data.sources import open_source\n'
        'config = DataConfig(image_size=8)\n'
        'source = open_source(config)\n'
        'made = train_batches(\n'
        '    source, config, split="train[:8]", views=SUPERVISED, batch_size=4, seed=1\n'
        ')\n'
        'print(next(iter(made))["views"][0].shape)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == '(4, 8, 8, 3)\n'
    assert 'XLA' not in done.stderr


def test_labels_stay_with_their_images(memory_source):
    """With the whole image as the crop and nothing else, the pixels tell the label."""
    source = memory_source(10, height=21, width=21)
    images = [
        to_unit_range(to_rgb(source.decode(raw['image']))).numpy()
        for raw in source.examples('train')
    ]
    config = DataConfig(image_size=21, crop_min_area=1.0)
    for batch in train(source, 5, config=config, views=SUPERVISED):
        for label, view in zip(batch['label'], batch['views'][0], strict=True):
            distance = [
                min(np.abs(view - i).mean(), np.abs(view[:, ::-1] - i).mean()) for i in images
            ]
            assert np.argmin(distance) == label
            assert min(distance) < 1e-5


def test_the_batched_pipeline_equals_one_image_at_a_time(memory_source, monkeypatch):
    source = memory_source(8)
    batched = train(source, 3, views=CONTRAST)
    for name, entry in list(AUGMENTATIONS.items()):
        single = dataclasses.replace(entry, takes_batches=False)
        monkeypatch.setitem(AUGMENTATIONS, name, single)
    for one, other in zip(train(source, 3, views=CONTRAST), batched, strict=True):
        np.testing.assert_allclose(one['views'], other['views'], atol=1e-5)


def test_a_device_finishes_what_the_host_began(memory_source):
    """Compiled, or one operation after another."""
    source, extra = memory_source(10), teacher_view('eval', 34)
    views = (*CONTRAST, extra)
    arguments = {'split': 'train', 'views': views, 'batch_size': 4, 'seed': 1}
    whole = first(train_batches(source, CONFIG, **arguments), 3)
    begun = train_batches(source, CONFIG, finished=False, **arguments)
    eager = finisher(CONFIG, views=views)
    compiled = tf.function(eager, jit_compile=True, autograph=False)
    for batch, expected in zip(begun.take(3), whole, strict=True):
        assert not np.array_equal(batch['views'][0], expected['views'][0])
        for finish in (eager, compiled):
            finished = finish(batch)
            assert set(finished) == {'views', 'label', 'index'}
            tf.nest.map_structure(
                lambda *pair: np.testing.assert_allclose(*pair, atol=2e-6), finished, expected
            )


def test_small_data_sets_are_refused(memory_source):
    with pytest.raises(UserError, match=r"'train' of data set memory has 10 examples.*batch of 11"):
        train(memory_source(10), 1, batch_size=11)
    assert len(train(memory_source(10), 3, batch_size=10)) == 3


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 300))
def test_group_sizes_divide_the_batch_unless_divisors_are_small(batch_size, limit):
    size, largest = _group_size(batch_size, limit), min(batch_size, limit)
    divides = batch_size % size == 0
    assert size == largest or divides
    assert largest / 8 <= size <= largest
    assert not any(batch_size % larger == 0 for larger in range(size + 1, largest + 1) if divides)


@pytest.mark.parametrize('batch_size', [257, 509, 2 * 251])
def test_batches_with_a_large_prime_factor_are_not_made_image_by_image(batch_size):
    assert _group_size(batch_size, 64) == 64


def test_groups_across_batches_equal_single_images(memory_source, monkeypatch):
    """And a run that starts behind the first batch, whose groups are others, sees the same."""
    source = memory_source(40)
    whole = train(source, 3, batch_size=17)
    monkeypatch.setattr(input_batches, '_GROUP_SMALL_IMAGES', 16)
    across = train(source, 3, batch_size=17)
    assert_same_batches(train(source, 2, batch_size=17, start_step=1), across[1:])
    tf.nest.map_structure(lambda *pair: np.testing.assert_allclose(*pair, atol=2e-6), across, whole)


@pytest.mark.parametrize(('batch_size', 'batches'), [(4, 3), (5, 2), (10, 1), (16, 1)])
def test_evaluation_sees_every_example_once(memory_source, batch_size, batches):
    source = memory_source(10, height=50, width=40)
    config = DataConfig(image_size=36)
    dataset = eval_batches(source, config, split='test', batch_size=batch_size)
    assert dataset.element_spec == {
        'views': (tf.TensorSpec([batch_size, 36, 36, 3], tf.float32),),
        'label': tf.TensorSpec([batch_size], tf.int32),
        'index': tf.TensorSpec([batch_size], tf.int64),
        'mask': tf.TensorSpec([batch_size], tf.bool),
    }
    found = list(dataset.as_numpy_iterator())
    assert len(found) == batches
    label, mask = (np.concatenate([batch[key] for batch in found]) for key in ('label', 'mask'))
    views = np.concatenate([batch['views'][0] for batch in found])
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < 10)
    np.testing.assert_array_equal(label[mask], np.arange(10))
    assert (label[~mask] == -1).all()
    assert (views[~mask] == 0).all()
    for raw, view in zip(source.examples('test'), views, strict=False):
        np.testing.assert_allclose(
            view, eval_crop(to_unit_range(to_rgb(source.decode(raw['image']))), size=36), atol=1e-6
        )


def test_an_empty_split_cannot_be_evaluated(memory_source):
    source = memory_source(1)
    object.__setattr__(source, 'num_examples', lambda split: 0)
    with pytest.raises(UserError, match='must have examples'):
        eval_batches(source, CONFIG, split='test', batch_size=4)


def test_any_image_size_works_at_any_view_size(memory_source):
    edges, sizes = (1, 2, 9, 33, 70), (1, 2, 9, 32, 33, 48)
    rng = np.random.RandomState(0)
    images = [
        rng.randint(0, 256, (height, width, 3)).astype(np.uint8)
        for height, width in itertools.product(edges, edges)
    ]
    source = memory_source(25, images=images)
    arguments = {'split': 'train', 'batch_size': 25}

    def check(views: Sequence[tf.Tensor]) -> None:
        assert [view.shape for view in views] == [(25, size, size, 3) for size in sizes]
        assert all(0 <= np.min(view) < np.max(view) <= 1 for view in views)

    views = [dataclasses.replace(CONTRAST[0], size=size) for size in sizes]
    begun = train_batches(source, CONFIG, views=views, seed=1, finished=False, **arguments)
    check(finisher(CONFIG, views=views)(next(iter(begun)))['views'])
    views = [dataclasses.replace(EVALUATION[0], size=size) for size in sizes]
    (batch,) = eval_batches(source, CONFIG, views=views, **arguments)
    check(batch['views'])
    # The smallest views are compiled too.
    (batch,) = train(source, 1, config=DataConfig(image_size=1), views=CONTRAST, batch_size=25)
    assert [view.shape for view in batch['views']] == [(25, 1, 1, 3)] * 2


def test_chains_name_augmentations_that_exist():
    for chain in (CONTRAST, SUPERVISED, EVALUATION):
        for view in chain:
            assert {op.name for op in view.ops} <= set(AUGMENTATIONS)
    assert [view.draw for view in CONTRAST] == [0, 1]


CROPS = (
    *(View((op('crop', area=(0.25, 1.0)), op('flip')), 24, draw) for draw in (0, 1)),
    *(
        View((op('crop', area=(0.05, 0.14)), op('flip'), op('solarize', probability=0.5)), 12, draw)
        for draw in (2, 3, 4)
    ),
)


def test_views_of_one_batch_may_differ_in_size(memory_source):
    arguments = {'split': 'train', 'views': CROPS, 'batch_size': 4, 'seed': 1}
    on_host = first(train_batches(memory_source(10), CONFIG, **arguments), 3)
    finish = tf.function(finisher(CONFIG, views=CROPS), autograph=False)
    unfinished = train_batches(memory_source(10), CONFIG, finished=False, **arguments)
    for batch, later in zip(on_host, unfinished.take(3), strict=True):
        assert [view.shape for view in batch['views']] == [
            (4, s, s, 3) for s in (24, 24, 12, 12, 12)
        ]
        for view, other in zip(batch['views'], finish(later)['views'], strict=True):
            np.testing.assert_allclose(view, other, atol=1e-5)
    # Five draws, no two alike.
    small = on_host[0]['views'][2:]
    assert all((small[i] != small[j]).any() for i in range(3) for j in range(i))


def test_a_local_crop_keeps_to_its_share_of_the_area(memory_source):
    """Cut out of a ramp, whose values tell how wide the box was."""
    ramp = np.tile(np.linspace(0, 255, 100, dtype=np.uint8)[None, :, None], [100, 1, 3])
    source = memory_source(64, images=[ramp] * 64)
    view = View((op('crop', area=(0.05, 0.14)),), 20)
    (batch,) = first(
        train_batches(source, CONFIG, split='train', views=[view], batch_size=64, seed=1), 1
    )
    widths = np.ptp(batch['views'][0], axis=(1, 2, 3))  # of the boxes, as shares
    assert widths.min() > 0.9 * np.sqrt(0.05 * 3 / 4) - 0.03
    assert widths.max() < np.sqrt(0.14 * 4 / 3) + 0.03


def test_operations_with_unknown_names_or_arguments_are_refused(memory_source):
    wrong = {
        "Expected one of crop, .*; found 'twist'": op('twist'),
        'Expected arguments of blur among kernel_size, probability, sigma; found radius': op(
            'blur', radius=3
        ),
    }
    for message, found in wrong.items():
        view = View((op('crop'), found))
        with pytest.raises(ValueError, match=message):
            train_batches(
                memory_source(10), CONFIG, split='train', views=[view], batch_size=4, seed=1
            )


def test_a_views_own_arguments_win_and_settings_fill_in_the_rest(memory_source):
    def views_with(ops, **settings):
        config = dataclasses.replace(CONFIG, **settings)
        return train(memory_source(10), 2, config=config, views=[View(ops)])

    own = (op('crop', area=(0.9, 1.0)),)
    found = views_with(own)
    assert_same_batches(views_with(own, crop_min_area=0.9), found)
    assert_same_batches(views_with((op('crop'),), crop_min_area=0.9), found)
    # What the settings turn off stays off.
    gray, plain = (op('crop'), op('color', gray_probability=1.0)), views_with((op('crop'),))
    assert (plain[0]['views'][0] != found[0]['views'][0]).any()
    assert_same_batches(views_with(gray, color_jitter_strength=0.0), plain)
    for batch in views_with(gray):
        np.testing.assert_allclose(np.ptp(batch['views'][0], axis=-1), 0, atol=1e-6)


def test_batches_hold_the_index_of_each_example(memory_source):
    source = memory_source(10)
    labels = [int(example['label']) for example in source.examples('train')]
    seen = []
    for batch in [*train(source, 5), *first(whole_of(source), 3)]:
        assert [labels[i] for i in batch['index'] if i >= 0] == [
            label for label, i in zip(batch['label'], batch['index']) if i >= 0
        ]
        seen += [i for i in batch['index'] if i >= 0]
    assert sorted(seen) == sorted([*range(10)] * 3)  # two epochs, and one evaluation


def whole_of(source):
    return eval_batches(source, CONFIG, split='train', batch_size=4)


def test_other_numbers_of_an_example_reach_the_batches_and_strings_do_not(memory_source):
    source = memory_source(10)

    def with_more(example):
        label = example['label']
        weight, text = tf.cast(label, tf.float32) / 2, tf.strings.as_string(label)
        return {**example, 'weight': weight, 'caption': text, 'nested': {'a': label, 'b': text}}

    weighted = dataclasses.replace(
        source, examples=lambda split: source.examples(split).map(with_more)
    )
    unfinished = train_batches(
        weighted, CONFIG, split='train', views=PAIR, batch_size=4, seed=1, finished=False
    ).map(finisher(CONFIG, views=PAIR))
    for batch in [*train(weighted, 3), *first(unfinished, 3), *first(whole_of(weighted), 2)]:
        np.testing.assert_array_equal(batch['weight'], batch['label'] / 2)
        assert set(batch) - {'mask'} == {'views', 'label', 'index', 'weight'}


def distilled(source, extra, *, size=21):
    batches = train_batches(
        source,
        DataConfig(image_size=size),
        split='train',
        views=(*SUPERVISED, *([extra] if extra else [])),
        batch_size=4,
        seed=1,
    )
    return first(batches, 3)


def test_a_teacher_sees_its_students_box_and_flip_at_its_own_size(memory_source):
    source = memory_source(10)
    batches = distilled(source, teacher_view('student', 34))
    small, large = zip(*(batch['views'] for batch in batches), strict=True)
    # What a student of that size would see, to the last bit.
    for view, batch in zip(large, distilled(source, None, size=34), strict=True):
        np.testing.assert_array_equal(view, batch['views'][0])
    for view, batch in zip(small, distilled(source, None), strict=True):
        np.testing.assert_array_equal(view, batch['views'][0])


def test_a_teacher_may_see_the_evaluation_view(memory_source):
    source = memory_source(10)
    (whole,) = eval_batches(source, DataConfig(image_size=16), split='train', batch_size=10)
    for batch in distilled(source, teacher_view('eval', 16)):
        for view, label in zip(batch['views'][1], batch['label'], strict=True):
            np.testing.assert_allclose(view, whole['views'][0][label], atol=1e-6)


def test_evaluation_shows_the_teacher_its_own_size(memory_source):
    source, config = memory_source(5), DataConfig(image_size=21)
    extra = teacher_view('eval', 34)
    both = (*EVALUATION, extra)
    (batch,) = eval_batches(source, config, split='test', batch_size=6, views=both)
    (alone,) = eval_batches(source, DataConfig(image_size=34), split='test', batch_size=6)
    assert batch['views'][0].shape == [6, 21, 21, 3]
    np.testing.assert_array_equal(batch['views'][1], alone['views'][0])
    np.testing.assert_array_equal(batch['mask'], [True] * 5 + [False])
