"""Damaged data sets: a few corrupt records are skipped, other damage is a one-line error."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from common.errors import UserError
from common.views import SUPERVISED
from data.batches import eval_batches, train_batches
from data.config import DataConfig
from data.failures import explain
from data.labels import read_labels
from data.sources import Source, bundled, open_source, records
from data.sources import tfds as tfds_module
from data.worker import Worker

COUNT = 200
CONFIG = DataConfig(image_size=8)


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> pathlib.Path:
    """The folder of a data set of three files, read in turns; image i has the gray value i."""
    data_dir = tmp_path_factory.mktemp('shards')
    images = np.tile(np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (1, 6, 5, 3))
    rows = {'image': images, 'label': np.arange(COUNT) % 2}
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name='shards',
        version='1.0.0',
        data_dir=data_dir,
        features=tfds.features.FeaturesDict(
            {
                'image': tfds.features.Image(shape=(6, 5, 3)),
                'label': tfds.features.ClassLabel(names=['even', 'odd']),
            }
        ),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(rows) for split in ('train', 'test')
        },
        disable_shuffling=False,
    )
    folder = pathlib.Path(builder.data_path)
    _split_in_three(folder, folder / 'shards-train.tfrecord-00000-of-00001')
    return folder


def _split_in_three(folder: pathlib.Path, file: pathlib.Path) -> None:
    """TFDS itself would write several files of large data sets only."""
    examples = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    file.unlink()
    lengths = (70, 60, 70)
    for number, length in enumerate(lengths):
        path = folder / f'shards-train.tfrecord-0000{number}-of-00003'
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(length):
                writer.write(examples.pop(0))
    info = json.loads((folder / 'dataset_info.json').read_text())
    for split in info['splits']:
        if split['name'] == 'train':
            split['shardLengths'] = [str(length) for length in lengths]
    (folder / 'dataset_info.json').write_text(json.dumps(info))


@pytest.fixture
def copy(shards, tmp_path) -> pathlib.Path:
    """A copy of the folder, to be damaged; its data_dir is two above."""
    return pathlib.Path(shutil.copytree(shards, tmp_path / 'shards' / '1.0.0'))


def opened(folder: pathlib.Path, **settings) -> Source:
    config = DataConfig(dataset='shards', data_dir=str(folder.parents[1]), **settings)
    return open_source(config)


def middle(folder: pathlib.Path) -> pathlib.Path:
    return folder / 'shards-train.tfrecord-00001-of-00003'


def values(source: Source, split: str = 'train') -> list[int]:
    """The gray value of every image, which is its number."""
    return [int(source.decode(e['image'])[0, 0, 0]) for e in source.examples(split)]


def flip(file: pathlib.Path, record: int, part: str) -> None:
    """Changes a bit of a record: in its length, its data, or the checksum of either."""
    content = bytearray(file.read_bytes())
    found = records.find_records(np.frombuffer(bytes(content), np.uint8))
    start, length = int(found.offsets[record]), int(found.lengths[record])
    places = {'length': -12, 'checksum of the length': -3, 'data': 5, 'checksum': length + 1}
    content[start + places[part]] ^= 4
    file.write_bytes(content)


@pytest.fixture(scope='module')
def whole(shards) -> dict[str, list[int]]:
    """Split → the gray values of its images, without damage."""
    return {split: values(opened(shards), split) for split in ('train', 'test')}


@pytest.mark.parametrize('part', ['length', 'checksum of the length', 'data', 'checksum'])
def test_a_corrupt_record_is_skipped_and_counted(shards, whole, copy, capsys, part):
    """Wherever the damage is, the order of the others stays; labels are without it."""
    flip(middle(copy), 7, part)
    source = opened(copy)
    assert source.num_examples('train') == COUNT - 1
    shown = capsys.readouterr().out
    assert shown == f'1 record of {middle(copy)} is corrupt and skipped.\n'
    left = values(source)
    (lost,) = set(whole['train']) - set(left)
    assert sorted(left) == sorted(set(whole['train']) - {lost})
    in_file = [
        int(tf.io.decode_png(features['image'])[0, 0, 0])
        for features in _parsed(shards / middle(copy).name)
    ]
    assert in_file[7] == lost
    assert read_labels(source, 'train').tolist() == [number % 2 for number in left]


def test_slices_are_without_a_corrupt_record(whole, copy):
    flip(middle(copy), 7, 'data')
    source = opened(copy)
    left = values(source)
    parts = [values(source, split) for split in ('train[:75]', 'train[75:131]', 'train[131:]')]
    assert sorted(n for part in parts for n in part) == sorted(left)
    assert source.num_examples('train[:50%]') == 100
    assert values(source, 'test') == whole['test']


def _parsed(file: pathlib.Path) -> list[dict]:
    features = {'image': tf.io.FixedLenFeature([], tf.string)}
    return [tf.io.parse_single_example(r, features) for r in tf.data.TFRecordDataset(str(file))]


def test_several_corrupt_records_with_workers_and_resuming(copy, capsys):
    flip(middle(copy), 0, 'data')
    flip(middle(copy), 1, 'length')
    flip(middle(copy), -1, 'checksum')
    flip(copy / 'shards-train.tfrecord-00002-of-00003', 3, 'data')
    source = opened(copy)
    assert source.num_examples('train') == COUNT - 4
    assert '3 records of' in capsys.readouterr().out
    left = values(source)
    shares = []
    for index in range(2):
        shares += [
            (int(place), int(source.decode(example['image'])[0, 0, 0]))
            for place, example in source.share('train', Worker(index, 2))
        ]
    assert [number for _, number in sorted(shares)] == left

    def batches(start: int) -> list[list[int]]:
        made = train_batches(
            source,
            CONFIG,
            split='train',
            views=SUPERVISED,
            batch_size=49,
            seed=1,
            start=49 * start,
        )
        return [batch['views'][0].tolist() for batch in made.take(6 - start).as_numpy_iterator()]

    assert batches(3) == batches(0)[3:]
    assert len(list(eval_batches(source, CONFIG, split='train', batch_size=49))) == 4


def cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def whole_records_lost(file: pathlib.Path) -> None:
    found = records.find_records(np.frombuffer(file.read_bytes(), np.uint8))
    file.write_bytes(file.read_bytes()[: int(found.offsets[50]) - 12])


def overwrite(file: pathlib.Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    ('damage', 'found'),
    [
        (pathlib.Path.unlink, 'missing'),
        (lambda file: file.write_bytes(b''), 'empty'),
        (cut, 'cut off after 59'),
        (whole_records_lost, '50 whole ones'),
        (overwrite, '0 whole ones, and 1 corrupt'),
        (
            lambda file: shutil.copy(str(file).replace('00001-of', '00000-of'), file),
            '70 whole ones',
        ),
    ],
)
def test_a_damaged_file_is_named_when_its_split_is_read(copy, damage, found):
    damage(middle(copy))
    source = opened(copy)
    assert source.num_examples('test') == COUNT
    for read in (source.num_examples, source.examples, lambda s: source.share(s, Worker(0, 2))):
        with pytest.raises(UserError, match='prepare the data set again') as error:
            read('train')
        message = str(error.value)
        assert str(middle(copy)) in message and found in message and 'hold 60 records' in message
        assert '\n' not in message


@pytest.mark.parametrize(
    'content', [b'', b'{"name": "sh', b'[1]', b'"text"', b'\xff\xfe', b'null', b'{"a": 1}']
)
@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
def test_broken_metadata_is_named(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match='must be JSON as written by TensorFlow Datasets') as error:
        opened(copy)
    assert str(copy / name) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('names', ['one', 'one\ntwo\nthree'])
def test_names_of_another_number_of_classes_are_refused(copy, names):
    (copy / 'label.labels.txt').write_text(names)
    with pytest.raises(UserError, match='must hold the names of 2 classes') as error:
        opened(copy)
    assert str(copy / 'label.labels.txt') in str(error.value)


def test_broken_metadata_of_the_bundled_images_is_one_line(tmp_path, monkeypatch):
    folder = shutil.copytree(bundled.FOLDER, tmp_path / 'bundled')
    monkeypatch.setattr(bundled, 'FOLDER', folder)
    (folder / 'dataset_info.json').write_text('[1]')
    with pytest.raises(UserError, match='restore the folder from the repository') as error:
        open_source(DataConfig())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('lost', [1, 11, 20, 30])
def test_records_before_a_cut_are_found(tmp_path, lost):
    """Within the last record's header, its data, its checksum."""
    with tf.io.TFRecordWriter(str(tmp_path / 'file')) as writer:
        for number in range(3):
            writer.write(bytes([number]) * number * 5)
    content = np.frombuffer((tmp_path / 'file').read_bytes(), np.uint8)
    assert records.find_records(content).lengths.tolist() == [0, 5, 10]
    found = records.find_records(content[:-lost])
    assert found.is_cut_off
    assert found.lengths.tolist() == [0, 5][: 2 if lost <= 26 else 1]


# --- data sets that are too large to be read when they are opened


@pytest.fixture
def large(monkeypatch) -> None:
    monkeypatch.setattr(tfds_module, 'BYTES_SAMPLED', 1000)


def test_large_files_are_compared_by_their_size(large, copy):
    assert opened(copy).num_examples('train') == COUNT
    file = middle(copy)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match='Some are cut off') as error:
        opened(copy).num_examples('train')
    assert str(file) in str(error.value)


def test_a_corrupt_record_of_a_large_data_set_is_named_when_it_is_read(large, copy):
    flip(middle(copy), 30, 'data')
    source = opened(copy)
    assert source.num_examples('train') == COUNT
    with pytest.raises(tf.errors.DataLossError) as error:
        list(source.examples('train'))
    line = explain(error.value, source)
    assert line.startswith(f'{middle(copy)} must hold whole records')
    assert '\n' not in line
