from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from common.views import View, op
from data.batches import eval_batches, sample_views, train_batches
from data.config import DataConfig
from data.failures import as_user_errors
from data.sources import open_source
from data.sources.source import Source, no_share
from data.tolerant_map import tolerant_map
from data.worker import Worker

CLASSES, PER_CLASS, BATCH = ('cat', 'dog'), 10, 4
# It depends on the draws, and is made faster than those of a method.
VIEWS = (View((op('crop'),)),)
DAMAGED = ('cat/3.png', 'cat/4.png', 'dog/0.png')


def image_file(shade: int, kind: str = 'PNG') -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 30, [20, 24, 3])
    Image.fromarray((noise + shade).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def write_folder(root: pathlib.Path) -> None:
    for number in range(PER_CLASS):
        for i, name in enumerate(CLASSES):
            (root / name).mkdir(parents=True, exist_ok=True)
            path = root / name / f'{number}.png'
            path.write_bytes(image_file(11 * number + 100 * i))


def config_of(folder: pathlib.Path, **more) -> DataConfig:
    settings = {'image_size': 16, 'max_bad_fraction': 0.2, 'holdout_fraction': 0, **more}
    return DataConfig(dataset='image_folder', data_dir=str(folder), **settings)


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """A folder with damaged files, and one in which their replacements are in their place."""
    damaged, mended = (tmp_path_factory.mktemp('images') / name for name in ('damaged', 'mended'))
    write_folder(damaged)
    shutil.copytree(damaged, mended)
    source = open_source(config_of(damaged))
    listed = source.identify('train', range(2 * PER_CLASS))
    for name in DAMAGED:
        (damaged / name).write_bytes(image_file(0)[:60])
        later = [*listed[listed.index(name) + 1 :], *listed[: listed.index(name)]]
        sound = (o for o in later if o not in DAMAGED and o.split('/')[0] == name.split('/')[0])
        shutil.copy(damaged / next(sound), mended / name)
    return damaged, mended


def train(folder: pathlib.Path, count: int = 12, **more) -> list:
    names = ('cache_dataset', 'max_bad_fraction')
    config = config_of(folder, **{key: more.pop(key) for key in names if key in more})
    source = open_source(config)
    settings = {'split': 'train', 'views': VIEWS, 'batch_size': BATCH, 'seed': 3, **more}
    settings['finished'] = (
        False  # what comes after the files is the same, and takes long to compile
    )
    return list(train_batches(source, config, **settings).take(count))


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope='module')
def expected(folders) -> list:
    """Twelve batches with the replacements in their place."""
    return train(folders[1])


def test_the_next_file_of_the_class_is_in_the_place_of_a_damaged_one(folders, expected):
    assert_equal(train(folders[0], cache_dataset=True), expected)


def test_a_resumed_run_replaces_the_same_files(folders, expected):
    assert_equal(train(folders[0], 5, start=7 * BATCH), expected[7:])


@pytest.mark.parametrize('number', [0, 1])
def test_two_workers_replace_as_one_does(folders, number):
    """Each has a share of the files, with damaged ones in it."""
    damaged, mended = folders
    found = train(damaged, 6, worker=Worker(number, 2))
    assert_equal(found, train(mended, 6, worker=Worker(number, 2)))


def test_workers_that_read_all_files_replace_as_one_does(folders, expected):
    config = config_of(folders[0])

    def rows(worker: Worker) -> list:
        source = dataclasses.replace(open_source(config), share=no_share)
        batches = train_batches(
            source,
            config,
            split='train',
            views=VIEWS,
            batch_size=BATCH,
            seed=3,
            worker=worker,
            finished=False,
        )
        return list(batches.take(12))

    parts = [rows(Worker(number, 2)) for number in range(2)]
    whole = [tf.nest.map_structure(lambda *p: tf.concat(p, 0), *pair) for pair in zip(*parts)]
    assert_equal(whole, expected)


def test_evaluation_masks_a_damaged_file(folders):
    damaged, mended = folders

    def evaluated(folder: pathlib.Path) -> tuple[Source, dict[str, np.ndarray]]:
        config = config_of(folder)
        source = open_source(config)
        (batch,) = eval_batches(source, config, split='train', batch_size=2 * PER_CLASS)
        return source, batch

    source, batch = evaluated(damaged)
    is_damaged = np.isin(source.identify('train', range(2 * PER_CLASS)), DAMAGED)
    np.testing.assert_array_equal(batch['mask'], ~is_damaged)
    assert set(batch['label'].numpy()[is_damaged]) == {-1}
    np.testing.assert_array_equal(batch['index'], np.arange(2 * PER_CLASS))
    sound = tf.nest.map_structure(lambda part: part[~is_damaged], batch)
    expected = tf.nest.map_structure(lambda part: part[~is_damaged], evaluated(mended)[1])
    assert_equal([sound], [expected])


def test_sample_views_have_replacements(folders):
    found, expected = (
        sample_views(
            open_source(config_of(folder)),
            config_of(folder),
            split='train',
            views=VIEWS,
            count=2 * PER_CLASS,
            seed=1,
        )
        for folder in folders
    )
    assert_equal(list(found), list(expected))


def read_all(folder: pathlib.Path, **more) -> tuple[Source, list]:
    config = config_of(folder, **more)
    source = open_source(config)
    with as_user_errors(source):
        return source, list(eval_batches(source, config, split='train', batch_size=4))


def test_every_file_is_listed_with_its_reason(tmp_path):
    write_folder(tmp_path)
    contents = {
        'empty.png': (b'', 'it is empty'),
        'page.jpg': (b'<html>', 'it is a web page or other markup'),
        'cut.png': (image_file(0)[:60], 'it is damaged (image file is truncated)'),
        'half.jpg': (image_file(0, 'JPEG')[:400], 'it is damaged ('),
        'cut.webp': (image_file(0, 'WEBP')[:-90], 'it is damaged ('),
        'new\nline.gif': (b'GIF87a', 'it is'),
    }
    for name, (content, _) in contents.items():
        (tmp_path / 'cat' / name).write_bytes(content)
    source, _ = read_all(tmp_path, max_bad_fraction=0.5)
    found = dict(line.split('\t') for line in source.skipped.listing().splitlines())
    assert len(source.skipped) == len(found) == len(contents)
    for name, (_, reason) in contents.items():
        assert found[str(tmp_path / 'cat' / name).replace('\n', '\\n')].startswith(reason)


def test_a_file_with_too_many_pixels_is_skipped(tmp_path):
    write_folder(tmp_path)
    (tmp_path / 'cat' / 'large.png').write_bytes(
        tf.io.encode_png(np.zeros([30, 30, 3], 'u1')).numpy()
    )
    source, _ = read_all(tmp_path, max_pixels=800)
    assert source.skipped.listing() == (
        f'{tmp_path}/cat/large.png\tit has 900 pixels, more than --max_pixels=800\n'
    )


def test_a_file_that_vanishes_is_skipped(tmp_path):
    write_folder(tmp_path)
    config = config_of(tmp_path)
    source = open_source(config)
    batches = train_batches(source, config, split='train', views=VIEWS, batch_size=4, seed=1)
    os.remove(tmp_path / 'dog' / '5.png')
    os.symlink('nowhere', tmp_path / 'dog' / '5.png')
    assert len(list(batches.take(5))) == 5
    (line,) = source.skipped.listing().splitlines()
    assert line.startswith(f'{tmp_path}/dog/5.png\tit cannot be read (')


TOO_MANY = r"At most {} of the 20 images of split 'train' may be unreadable .*; found {}\. "


@pytest.mark.parametrize(
    ('fraction', 'most'), [(0.1, 2), (0.149, 2), (0.05, 1), (0.01, 1), (0, 0), (1, 20)]
)
def test_a_share_of_the_files_may_be_damaged(tmp_path, fraction, most):
    write_folder(tmp_path)
    skipped = open_source(config_of(tmp_path, max_bad_fraction=fraction)).skipped
    paths = [os.fsencode(path) for path in sorted(tmp_path.glob('*/*.png'))]
    for path in paths:
        pathlib.Path(os.fsdecode(path)).write_bytes(b'')
    if most:
        contents, sound = skipped.blank('train', paths[:most])
        assert len(contents) == len(skipped) == most and not sound.any()
    if most < len(paths):
        with pytest.raises(UserError, match=TOO_MANY.format(most, most + 1)):
            skipped.blank('train', paths[: most + 1])


def test_more_files_than_allowed_are_an_error(tmp_path):
    write_folder(tmp_path)
    for path in sorted(tmp_path.glob('*/*.png'))[:3]:
        path.write_bytes(b'')
    assert len(read_all(tmp_path, max_bad_fraction=0.15)[0].skipped) == 3
    with pytest.raises(UserError, match=TOO_MANY.format(2, 3)) as error:
        read_all(tmp_path, max_bad_fraction=0.1)
    assert f'{tmp_path}/cat/0.png (it is empty)' in str(error.value)


def test_a_class_without_a_sound_file_is_replaced_without_a_label(tmp_path):
    write_folder(tmp_path)
    for path in (tmp_path / 'dog').glob('*'):
        path.write_bytes(b'')
    batches = train(tmp_path, 5, max_bad_fraction=0.6)
    labels = np.concatenate([batch['label'] for batch in batches])
    assert sorted(labels.tolist()) == [-1] * PER_CLASS + [0] * PER_CLASS
    assert min(float(tf.math.reduce_std(batch['views'][0])) for batch in batches) > 0


def test_no_sound_file_at_all_is_an_error(tmp_path):
    write_folder(tmp_path)
    for path in tmp_path.glob('*/*'):
        path.write_bytes(b'<html>')
    config = config_of(tmp_path, max_bad_fraction=1)
    source = open_source(config)
    batches = train_batches(source, config, split='train', views=VIEWS, batch_size=4, seed=1)
    with (
        pytest.raises(UserError, match='none of image_folder can be decoded'),
        as_user_errors(source),
    ):
        next(iter(batches))


def test_another_listing_is_added(tmp_path):
    write_folder(tmp_path)
    (tmp_path / 'cat' / '0.png').write_bytes(b'')
    source, _ = read_all(tmp_path)
    source.skipped.add_listed('before.png\tit is damaged\n')
    assert source.skipped.listing().splitlines() == [
        f'{tmp_path}/cat/0.png\tit is empty',
        'before.png\tit is damaged',
    ]


@pytest.fixture(scope='module')
def rows_of() -> Callable[[list[bool], int], dict[str, np.ndarray]]:
    """Maps over as many examples as there are bools, those that are False fail; traced once."""

    def replace(paths: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([b'other'] * len(paths), object), np.array([int(p) % 2 == 0 for p in paths])

    @tf.function(autograph=False, reduce_retracing=True)
    def mapped(sound: tf.Tensor, group: tf.Tensor) -> dict[str, tf.Tensor]:
        numbers = tf.range(tf.size(sound))
        examples = {'image': tf.strings.as_string(numbers), 'label': numbers}
        dataset = tf.data.Dataset.from_tensor_slices(examples).enumerate()

        def function(index: tf.Tensor, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            is_bad = ~sound[index] & (example['image'] != 'other')
            with tf.control_dependencies([tf.debugging.Assert(~is_bad, ['damaged'])]):
                return {
                    'label': example['label'],
                    'index': tf.identity(index),
                    'mask': tf.constant(True),
                }

        read = lambda example: {**example, 'path': example['image']}  # noqa: E731
        rows = tolerant_map(dataset, function, read, replace, group=group)
        return rows.batch(tf.size(sound, tf.int64) + 9).get_single_element()

    signature = [tf.TensorSpec([None], tf.bool), tf.TensorSpec([], tf.int64)]
    traced = mapped.get_concrete_function(*signature)

    def rows(sound: list[bool], group: int) -> dict[str, np.ndarray]:
        found = traced(tf.constant(sound, tf.bool), tf.constant(group, tf.int64))
        return {key: value.numpy() for key, value in found.items()}

    return rows


@settings(deadline=None, max_examples=40)
@given(sound=st.lists(st.booleans(), min_size=1, max_size=12), group=st.integers(1, 5))
def test_rows_stay_in_order_whichever_fail(rows_of, sound, group):
    rows = rows_of(sound, group)
    kept = [each or i % 2 == 0 for i, each in enumerate(sound)]
    assert rows['index'].tolist() == list(range(len(sound)))
    assert rows['mask'].tolist() == kept
    assert rows['label'].tolist() == [i if keep else -1 for i, keep in enumerate(kept)]
