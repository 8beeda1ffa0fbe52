"""Several workers read shares of the files, or rows of a single process's batches."""

from __future__ import annotations

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.views import EVALUATION, SUPERVISED, View, op
from data import batches as input_batches
from data.batches import _training_examples, eval_batches, train_batches
from data.config import DataConfig
from data.label_subset import choose_labels, hide_other_labels, restrict
from data.randomness import epoch_key
from data.sources import Source, open_source
from data.worker import Worker

CONFIG = DataConfig(image_size=1)
# They depend on the draws, and compile faster than those of a method.
VIEWS = tuple(View((op('crop'), op('flip')), draw=draw) for draw in (0, 1))


def workers(count: int) -> list[Worker]:
    return [Worker(index, count) for index in range(count)]


def number_source(count: int, *, files: bool = False) -> Source:
    """A source whose image i is one pixel of value i; with `files`, each as if in its own file."""

    def examples(start: int, stop: int) -> tf.data.Dataset:
        numbers = tf.data.Dataset.range(start, stop)
        return numbers.map(lambda i: {'image': i, 'label': tf.cast(i, tf.int32)})

    def share(split: str, worker: Worker) -> tf.data.Dataset | None:
        own = worker.part(count)
        return examples(own.start, own.stop).enumerate(own.start) if files else None

    return Source(
        name='numbers',
        num_classes=count,
        class_names=None,
        num_examples=lambda split: count,
        examples=lambda split: examples(0, count),
        decode=lambda i: tf.fill([1, 1, 1], tf.cast(i, tf.uint8)),
        share=share,
    )


def stream(source, batch_size, steps, *, worker=Worker(), start=0, seed=1) -> list[tuple]:
    """(epoch key, position, label) of the worker's rows of `steps` batches."""
    dataset = _training_examples(
        source, CONFIG, 'train', batch_size, seed=seed, start=start, worker=worker
    )
    own = dataset.map(lambda key, index, example: (key, index, example['label']))
    count = steps * batch_size // worker.count
    rows = itertools.islice(own.as_numpy_iterator(), count)
    return [tuple(map(int, row)) for row in rows]


def train(source, steps, *, config=CONFIG, views=SUPERVISED, batch_size=4, **arguments):
    dataset = train_batches(
        source, config, split='train', views=views, batch_size=batch_size, seed=1, **arguments
    )
    return list(itertools.islice(dataset.as_numpy_iterator(), steps))


def joined(parts: list[list[dict]]) -> list[dict]:
    """The workers' batches of each step, one after the other."""
    return [
        tf.nest.map_structure(lambda *rows: np.concatenate(rows), *step)
        for step in zip(*parts, strict=True)
    ]


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


# --- Worker


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 50))
def test_parts_follow_each_other_and_are_even(total, count):
    parts = [worker.part(total) for worker in workers(count)]
    assert list(itertools.chain(*parts)) == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(('index', 'count'), [(2, 2), (-1, 2), (0, 0)])
def test_an_impossible_worker_is_refused(index, count):
    with pytest.raises(ValueError, match=f'index={index}, count={count}'):
        Worker(index, count)


def test_batches_that_do_not_divide_are_refused():
    source, worker = number_source(20), Worker(0, 3)
    with pytest.raises(UserError, match=r'train_batch_size must be a multiple .* 3; found 8'):
        train(source, 1, batch_size=8, worker=worker)
    with pytest.raises(UserError, match=r'eval_batch_size must be a multiple .* 3; found 8'):
        eval_batches(source, CONFIG, split='test', batch_size=8, worker=worker)


# --- rows of the batches of a single process


# Workers, batch size, examples, first step: an epoch of one batch, sizes that don't divide, one row
# of each batch, and whole epochs.
PARTS = [(2, 2, 2, 0), (3, 6, 20, 5), (4, 4, 17, 12), (2, 8, 40, 3)]


@pytest.mark.parametrize(('workers_count', 'batch_size', 'count', 'start'), PARTS)
def test_rows_are_those_of_a_single_process(workers_count, batch_size, count, start):
    source, steps = number_source(count), 5
    whole = np.array(stream(source, batch_size, start + steps))
    whole = whole.reshape(start + steps, batch_size, 3)[start:]
    for worker in (Worker(0, workers_count), Worker(workers_count - 1, workers_count)):
        own = stream(source, batch_size, steps, worker=worker, start=start * batch_size)
        rows = worker.part(batch_size)
        np.testing.assert_array_equal(own, whole[:, rows.start : rows.stop].reshape(-1, 3))


def test_batches_of_all_workers_are_those_of_a_single_process(memory_source, monkeypatch):
    """With a cache or without one."""
    # Images augmented at once: as many in a worker as in a single process.
    monkeypatch.setattr(input_batches, '_GROUP_SMALL_IMAGES', 3)
    source = memory_source(10)
    plain, cached = (DataConfig(image_size=21, cache_dataset=cache) for cache in (False, True))
    arguments = {'views': VIEWS, 'batch_size': 6}
    whole = train(source, 4, config=plain, **arguments)
    parts = [train(source, 4, config=cached, worker=worker, **arguments) for worker in workers(2)]
    assert parts[0][0]['views'][0].shape == (3, 21, 21, 3)
    assert_same(joined(parts), whole)
    rest = train(source, 1, config=plain, worker=Worker(1, 2), start=18, **arguments)
    assert_same(rest, parts[1][3:])

    # A run that goes on with another batch size begins within one of the earlier size.
    arguments.update(batch_size=4, start=18)
    parts = [train(source, 3, config=plain, worker=worker, **arguments) for worker in workers(2)]
    assert_same(joined(parts), train(source, 3, config=cached, **arguments))


def test_only_own_and_unseen_rows_are_decoded(memory_source):
    source = memory_source(1600)
    decoded = []

    def decode(image: tf.Tensor) -> tf.Tensor:
        def note(encoded: tf.Tensor) -> tf.Tensor:
            decoded.append(encoded.numpy())
            return tf.io.decode_png(encoded, channels=3)

        return tf.ensure_shape(tf.py_function(note, [image], tf.uint8), [None, None, 3])

    noted = dataclasses.replace(source, decode=decode)
    images = {int(e['label']): e['image'].numpy() for e in source.examples('train')}
    config = DataConfig(image_size=21)
    arguments = {'worker': Worker(1, 4), 'start': 24}
    # Batches are made ahead, but not an epoch, which has 200 of them.
    own = {images[position] for _, position, _ in stream(source, 8, 197, **arguments)}
    assert len(own) == 2 * 197
    train(noted, 1, config=config, batch_size=8, **arguments)
    assert len(decoded) >= 2 and set(decoded) <= own
    decoded.clear()
    list(eval_batches(noted, config, split='test', batch_size=8, worker=Worker(1, 4)))
    own = [i for i in range(1600) if i % 8 in (2, 3)]
    assert sorted(decoded) == sorted(images[i] for i in own)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_evaluation_rows_are_those_of_a_single_process(data):
    count = data.draw(st.integers(1, 20))
    workers_count = data.draw(st.integers(2, 4))
    batch_size = workers_count * data.draw(st.integers(1, 3))
    source = number_source(count)
    arguments = {'split': 'test', 'batch_size': batch_size}
    parts = [
        list(eval_batches(source, CONFIG, worker=worker, **arguments).as_numpy_iterator())
        for worker in workers(workers_count)
    ]
    found = joined(parts)
    assert len(found) == -(-count // batch_size)
    label, mask = (np.concatenate([batch[key] for batch in found]) for key in ('label', 'mask'))
    pixels = np.concatenate([batch['views'][0] for batch in found])[:, 0, 0, 0]
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < count)
    np.testing.assert_array_equal(label, np.where(mask, np.arange(len(mask)), -1))
    np.testing.assert_allclose(pixels, np.where(mask, np.arange(len(mask)) / 255, 0), atol=1e-6)


# --- shares of the files


@pytest.mark.parametrize(('workers_count', 'batch_size', 'count', 'start'), PARTS)
def test_every_worker_repeats_its_own_share(workers_count, batch_size, count, start):
    source = number_source(count, files=True)
    steps = start + 3 * count // batch_size + 1
    seen = []
    for worker in workers(workers_count):
        rows = stream(source, batch_size, steps, worker=worker)
        share = worker.part(count)
        epochs = [rows[at : at + len(share)] for at in range(0, len(rows), len(share))]
        for number, epoch in enumerate(epochs):
            assert {row[0] for row in epoch} == {int(epoch_key(1, number))}
            assert all(position == label for _, position, label in epoch)
            if len(epoch) == len(share):
                assert sorted(row[1] for row in epoch) == list(share)
        seen += [row[1] for row in epochs[0]]
    assert sorted(seen) == list(range(count))
    rest = stream(source, batch_size, steps - start, worker=worker, start=start * batch_size)
    assert rest == rows[start * batch_size // workers_count :]


def test_a_view_does_not_depend_on_the_number_of_workers(memory_source):
    source = memory_source(12)

    def share(split: str, worker: Worker) -> tf.data.Dataset:
        own = worker.part(12)
        return source.examples(split).enumerate().skip(own.start).take(len(own))

    in_files = dataclasses.replace(source, share=share)
    arguments = {'config': DataConfig(image_size=21), 'views': VIEWS, 'batch_size': 6}
    views = {}  # (epoch, example) → both views
    for step, batch in enumerate(train(source, 4, **arguments)):
        for label, *pair in zip(batch['label'], *batch['views'], strict=True):
            views[step // 2, int(label)] = pair
    seen = []
    for worker in workers(3):
        for step, batch in enumerate(train(in_files, 4, worker=worker, **arguments)):
            for label, *pair in zip(batch['label'], *batch['views'], strict=True):
                # Beside other images in its group, an image may be rounded differently.
                np.testing.assert_allclose(pair, views[step // 2, int(label)], atol=1e-6)
                seen.append((step // 2, int(label)))
    assert sorted(seen) == sorted(views)


@pytest.fixture(scope='module')
def sharded(write_builder):
    """203 training and 40 test examples, in 5 files each, which are read in turns."""
    features = {
        'image': tfds.features.Tensor(shape=(1, 1, 1), dtype=np.uint8),
        'label': tfds.features.ClassLabel(num_classes=3),
    }
    numbers = [{'image': np.full([1, 1, 1], i, np.uint8), 'label': i % 3} for i in range(243)]
    return write_builder(
        'sharded',
        features,
        {'train': numbers[:203], 'test': numbers[203:]},
        disable_shuffling=False,
        download_config=tfds.download.DownloadConfig(num_shards=5),
    )


def open_sharded(data_dir) -> Source:
    return open_source(DataConfig(dataset='sharded', data_dir=str(data_dir)))


def found_in(dataset: tf.data.Dataset) -> list[tuple[int, int, int]]:
    rows = dataset.as_numpy_iterator()
    return [(int(p), int(e['image'][0, 0, 0]), int(e['label'])) for p, e in rows]


@pytest.mark.parametrize(
    ('split', 'files', 'counts'),
    [
        ('train', 5, (2, 5)),
        ('train[:60%]', 3, (3, 5)),
        ('train[10:150]+test[3:]', 9, (2, 5)),
        ('test+train', 10, (3,)),
        ('train[-41:]', 1, (1, 2)),
    ],
)
def test_tfds_shares_hold_every_example_once_with_its_position(sharded, split, files, counts):
    source = open_sharded(sharded)
    whole = found_in(source.examples(split).enumerate())
    for count in counts:
        shares = [source.share(split, worker) for worker in workers(count)]
        if count > files:
            assert shares == [None] * count
            continue
        found = [found_in(share) for share in shares]
        assert [len(rows) for rows in found] == [len(w.part(len(whole))) for w in workers(count)]
        assert sorted(itertools.chain(*found)) == whole


def test_a_tfds_worker_reads_its_own_files_alone(sharded, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(sharded, copy)
    source = open_sharded(copy)
    expected = [found_in(source.share('train', worker)) for worker in workers(2)]
    files = sorted(copy.rglob('*train.tfrecord*'))
    assert len(files) == 5
    for file in files[3:]:
        file.unlink()
    assert found_in(source.share('train', Worker(0, 2))) == expected[0]
    with pytest.raises(tf.errors.NotFoundError):
        found_in(source.share('train', Worker(1, 2)))


def test_tfds_workers_train_on_every_example_once_an_epoch(sharded):
    source = open_sharded(sharded)
    by_position = found_in(source.examples('train[:200]').enumerate())
    seen = []
    for worker in workers(4):
        batches = train_batches(
            source,
            CONFIG,
            split='train[:200]',
            views=EVALUATION,
            batch_size=40,
            seed=1,
            worker=worker,
        )
        own = [
            np.rint(b['views'][0][:, 0, 0, 0] * 255) for b in batches.take(5).as_numpy_iterator()
        ]
        seen += np.concatenate(own).astype(int).tolist()
    assert sorted(seen) == sorted(pixel for _, pixel, _ in by_position)


def test_hidden_labels_are_the_same_in_shares(sharded):
    source = open_sharded(sharded)
    subset = choose_labels(source, DataConfig(labels_per_class=9), split='train', seed=0)
    masked = hide_other_labels(source, 'train', subset)
    whole = found_in(masked.examples('train').enumerate())
    assert [position for position, _, label in whole if label >= 0] == subset.indices.tolist()
    assert (
        sorted(itertools.chain(*(found_in(masked.share('train', w)) for w in workers(3)))) == whole
    )
    other = found_in(masked.share('test', Worker(0, 2)))
    assert other == found_in(source.share('test', Worker(0, 2)))
    assert masked.share('train', Worker(0, 6)) is None


def test_label_subsets_are_divided_by_rows(sharded):
    source = open_sharded(sharded)
    subset = choose_labels(source, DataConfig(labels_per_class=4), split='train', seed=0)
    few = restrict(source, 'train', subset)
    assert few.share('train', Worker(0, 2)) is None
    assert few.share('test', Worker(0, 2)) is not None
    whole = train(few, 5, views=EVALUATION, batch_size=8)
    assert_same(
        joined([train(few, 5, views=EVALUATION, batch_size=8, worker=w) for w in workers(2)]), whole
    )


def test_image_folders_are_divided_by_files(tmp_path):
    for number in range(11):
        path = tmp_path / 'train' / 'ab'[number % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(np.full([1, 1, 1], number, np.uint8)).numpy())
    source = open_source(
        DataConfig(dataset='image_folder', data_dir=str(tmp_path), holdout_fraction=0.0)
    )

    def read(dataset: tf.data.Dataset) -> list[tuple[int, bytes, int]]:
        return [(int(p), e['image'], int(e['label'])) for p, e in dataset.as_numpy_iterator()]

    for split in ('train', 'train[2:9]'):
        shares = [source.share(split, worker) for worker in workers(3)]
        found = list(itertools.chain(*map(read, shares)))
        assert found == read(source.examples(split).enumerate())
    assert source.share('train[2:9]', Worker(0, 8)) is None
    batches = [train(source, 1, batch_size=11 - 1, worker=w, views=EVALUATION) for w in workers(2)]
    pixels = np.concatenate([b['views'][0][:, 0, 0, 0] for (b,) in batches])
    assert len(set(np.rint(pixels * 255))) == 10


def test_the_bundled_data_set_is_divided_by_rows():
    assert open_source(DataConfig()).share('train', Worker(0, 2)) is None
