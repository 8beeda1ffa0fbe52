"""TFRecord files of other programs: what is found in them, and what can be wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.views import View, op
from data.batches import eval_batches, train_batches
from data.config import DataConfig
from data.failures import as_user_errors
from data.labels import count_labels, read_labels
from data.sources import open_source
from data.sources.record_names import encoded_name, parse_name, read_record
from data.worker import Worker

CROPPED = (View((op('crop'),)),)


def png(number: int) -> bytes:
    return tf.io.encode_png(np.full([3, 4, 3], number, np.uint8)).numpy()


def serialized(features: Mapping[str, object]) -> bytes:
    example = tf.train.Example()
    for key, value in features.items():
        feature = example.features.feature[key]
        for each in value if isinstance(value, list) else [value]:
            kind = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}
            kind[type(each)].value.append(each)
    return example.SerializeToString()


def write(path: pathlib.Path, rows: Sequence[Mapping[str, object]]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            writer.write(serialized(row))
    return path


def rows(first: int, last: int, **more) -> list[dict]:
    return [{'image': png(n), 'label': n % 3, **more} for n in range(first, last)]


def open_records(data_dir: object, **settings):
    return open_source(DataConfig(dataset='image_folder', data_dir=str(data_dir), **settings))


def numbers(source, split: str) -> list[int]:
    """The numbers that are in the images, and their labels agree with."""
    found = [
        (int(source.decode(raw['image'])[0, 0, 0]) // 257, int(raw['label']))
        for raw in source.examples(split)
    ]
    assert read_labels(source, split).tolist() == [label for _, label in found]
    assert source.num_examples(split) == len(found)
    return [number for number, _ in found]


def test_files_are_sorted_into_splits_by_their_names(tmp_path):
    for shard in range(2):
        write(tmp_path / f'train-{shard:05d}-of-00002', rows(10 * shard, 10 * shard + 10))
    write(tmp_path / 'pets-val.tfrecord', rows(20, 24))
    (tmp_path / 'notes.txt').write_text('no record')
    source = open_records(tmp_path)
    assert (source.name, source.num_classes, source.class_names) == ('tfrecords', 3, None)
    assert sorted(numbers(source, 'train')) == list(range(20))
    assert numbers(source, 'validation') == numbers(source, 'val') == [20, 21, 22, 23]
    whole = numbers(source, 'train+val')
    assert numbers(source, 'train[5:]+val[:2]') == whole[5:22]
    assert numbers(source, 'train') == whole[:20]  # the same again
    assert source.summary == (
        f'{tmp_path}: 3 TFRecord files of 24 images (image image, label label); splits train 20, '
        'val 4; validation is the split val; 3 classes (0 8, 1 8, 2 8)'
    )
    assert count_labels(source, 'train').by_class.tolist() == [7, 7, 6]


@pytest.mark.parametrize('where', ['{}/*.tfrecord', '{}', '{}/a.tfrecord,{}/b.tfrecord', 'nested'])
def test_patterns_folders_and_files_name_them(tmp_path, where):
    place = tmp_path / 'train' if where == 'nested' else tmp_path
    write(place / 'a.tfrecord', rows(0, 10))
    write(place / 'b.tfrecord', rows(10, 20))
    named = tmp_path if where == 'nested' else where.format(tmp_path, tmp_path)
    source = open_records(named)
    kept, held = numbers(source, 'train'), numbers(source, 'validation')
    assert (len(kept), len(held)) == (18, 2)
    assert sorted(kept + held) == list(range(20))
    assert '2 of train are held out as validation' in source.summary


def test_slices_are_of_what_is_not_held_out(tmp_path):
    write(tmp_path / 'a.tfrecord', rows(0, 10))
    write(tmp_path / 'b.tfrecord', rows(10, 20))
    source = open_records(tmp_path)
    assert numbers(source, 'train[3:7]') == numbers(source, 'train')[3:7]
    whole = open_records(tmp_path, holdout_fraction=0.0)
    assert sorted(numbers(whole, 'train')) == list(range(20))


def test_folders_are_splits_where_there_are_several(tmp_path):
    write(tmp_path / 'training' / 'a.tfrecord', rows(0, 5))
    write(tmp_path / 'test' / 'a.tfrecord', rows(5, 7))
    source = open_records(tmp_path)
    assert numbers(source, 'validation') == numbers(source, 'test') == [5, 6]
    assert numbers(source, 'train') == [0, 1, 2, 3, 4]
    assert len(numbers(open_records(tmp_path / 'test', holdout_fraction=0.0), 'train')) == 2


def test_held_out_records_lie_evenly(tmp_path):
    write(tmp_path / 'sorted.tfrecord', [{'image': png(n), 'label': n // 20} for n in range(100)])
    source = open_records(tmp_path, holdout_fraction=0.15)
    assert np.bincount(read_labels(source, 'validation')).tolist() == [3] * 5


@pytest.mark.parametrize(
    ('row', 'settings', 'found'),
    [
        (
            {'image/encoded': png(1), 'image/class/label': 1, 'image/height': 3},
            {},
            'image/encoded, label image/class/label',
        ),
        ({'photo': png(1), 'kind': 1}, {}, 'photo, no label'),
        ({'photo': png(1), 'kind': 1}, {'label_key': 'kind'}, 'photo, label kind'),
        ({'left': png(1), 'right': png(2)}, {'image_key': 'right'}, 'right, no label'),
        ({'image': png(1), 'thumb': png(1), 'label': [1, 2]}, {}, 'image, no label'),
        ({'image': png(1), 'label': b'cat', 'score': 0.5}, {}, 'image, label label'),
        ({'image': b'unknown', 'other': png(1)}, {'image_key': 'image'}, 'image image, no label'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, dict) else '',
)
def test_features_are_guessed_from_the_first_record(tmp_path, row, settings, found):
    write(tmp_path / 'x.tfrecord', [row, row])
    source = open_records(tmp_path, holdout_fraction=0.0, **settings)
    assert found in source.summary
    assert len(list(source.examples('train'))) == 2
    assert ('--label_key' in source.label_hint) == ('kind' in row and not settings)


@pytest.mark.parametrize('settings', [{}, {'image_key': 'image'}])
def test_the_image_of_the_first_record_may_be_damaged(tmp_path, settings):
    first = {'image': b'<html>', 'label': 0, 'note': b'404'}
    write(tmp_path / 'x.tfrecord', [first, *rows(1, 3)])
    source = open_records(tmp_path, holdout_fraction=0.0, **settings)
    assert '3 images (image image, label label)' in source.summary


def test_labels_may_be_text_or_missing(tmp_path):
    labels = [b'owl', b'cat', None, b'caf\xe9', b'cat']
    written = [
        {'image': png(n), **({} if label is None else {'label': label})}
        for n, label in enumerate(labels)
    ]
    write(tmp_path / 'x.tfrecord', written)
    source = open_records(tmp_path, holdout_fraction=0.0)
    assert source.class_names == ('caf\\xe9', 'cat', 'owl')
    assert read_labels(source, 'train').tolist() == [2, 1, -1, 0, 1]
    write(tmp_path / 'x.tfrecord', [{'image': png(0), 'label': n} for n in (2, -1, 0)])
    source = open_records(tmp_path, holdout_fraction=0.0)
    assert read_labels(source, 'train').tolist() == [2, -1, 0]
    assert '3 classes (0 1, 1 0, 2 1)' in source.summary


def test_batches_are_made_of_them(tmp_path):
    write(tmp_path / 'x.tfrecord', rows(0, 20))
    config = DataConfig(dataset='tfrecords', data_dir=str(tmp_path), image_size=8)
    source = open_source(config)
    batches = train_batches(source, config, split='train', views=CROPPED, batch_size=6, seed=0)
    epoch = list(batches.take(3).as_numpy_iterator())
    assert sorted(np.concatenate([batch['index'] for batch in epoch])) == list(range(18))
    (name,) = source.identify('validation', [1])
    assert numbers(source, name) == numbers(source, 'validation')[1:2]


@pytest.mark.parametrize(
    ('content', 'settings', 'words'),
    [
        ([{'label': 1}], {}, r'must hold an encoded image; found none among label \(int64\)'),
        ([{'a': png(1), 'b': png(2)}], {}, r'found several: a, b among .*--image_key'),
        (rows(0, 1), {'image_key': 'x'}, r'--image_key=x .* found no such feature in .*image \(by'),
        (rows(0, 1), {'image_key': 'label'}, 'found another kind'),
        (rows(0, 1), {'label_key': 'image'}, '--label_key=image .* found another kind'),
        (rows(0, 1), {'label_key': 'x'}, '--label_key=x must name .* found no such feature'),
        ([{'image': png(1), 'label': 2**40}], {}, r'found 1099511627776 to 1099511627776'),
        ([{'image': png(1), 'label': -7}], {}, 'found -7 to -7'),
        (rows(0, 1), {'image_range': '0..1'}, '--image_range=0..1 is for floating-point'),
        (b'', {}, 'found 1 empty files'),
        (b'\x1f\x8bxx', {}, 'without compression; found gzip'),
        (b'not a record', {}, 'what follows record 0 is none, or is cut off'),
        ('cut', {}, 'what follows record 2 is none, or is cut off'),
        ('other', {}, 'must hold tf.train.Example records; found something else'),
    ],
    ids=str,
)
def test_what_is_wrong_with_records_is_one_line(tmp_path, content, settings, words):
    path = tmp_path / 'x.tfrecord'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == 'cut':
        write(path, rows(0, 3))
        path.write_bytes(path.read_bytes()[:-5])
    elif content == 'other':
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(b'no example')
    else:
        write(path, content)
    with pytest.raises(UserError, match=words) as error:
        open_records(tmp_path, **settings)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(('labeled', 'place'), [(True, -20), (False, -20), (True, 20)])
def test_a_corrupt_record_is_named(tmp_path, labeled, place):
    """While features are found out, labels are read, or once the images are."""
    written = [{'image': png(n), **({'label': n} if labeled else {})} for n in range(3)]
    path = write(tmp_path / 'x.tfrecord', written)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r'x\.tfrecord must hold whole records; found a corrupt'):
        read_all(path)


def read_all(path: pathlib.Path) -> None:
    source = open_records(path, eval_split='train')
    with as_user_errors(source):
        list(source.examples('train'))


def test_a_pattern_of_nothing_is_one_line(tmp_path):
    with pytest.raises(UserError, match='found no such files'):
        open_records(tmp_path / '*.tfrecord')


def test_what_tfds_prepared_is_told_by_name(tmp_path, write_builder):
    import tensorflow_datasets as tfds

    features = {'image': tfds.features.Image(shape=(3, 4, 3))}
    image = np.zeros([3, 4, 3], np.uint8)
    data_dir = write_builder('house_pets', features, {'train': [{'image': image}]})
    for place in (data_dir, data_dir / 'house_pets', data_dir / 'house_pets' / '1.0.0'):
        with pytest.raises(UserError, match='found a data set that TensorFlow Data') as error:
            open_records(place)
        assert f'--dataset=house_pets --data_dir={data_dir}.' in str(error.value)


# --- damaged images within records

BATCH = 6
# Two in a row, and the last of their class in the second file, after which it begins anew.
DAMAGED = ('a.tfrecord[#3]', 'a.tfrecord[#6]', 'b.tfrecord[#13]')


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """A folder with damaged images, and one in which their replacements are in their place."""
    root = tmp_path_factory.mktemp('records')
    files = {'a': rows(0, 15), 'b': rows(15, 30)}
    for name, written in files.items():
        write(root / 'mended' / f'{name}.tfrecord', written)
    # Record 9 is the next of the class of 3 and 6, but held out.
    assert numbers(open_records(root / 'mended'), 'validation') == [9, 19, 29]
    for name, number in (('a', 3), ('a', 6), ('b', 13)):
        files[name][number] = {**files[name][number], 'image': png(7)[:50]}
    for name, written in files.items():
        write(root / 'damaged' / f'{name}.tfrecord', written)
    for name, number, other in (('a', 3, 12), ('a', 6, 12), ('b', 13, 16)):
        files[name][number] = {**files[name][number], 'image': png(other)}
    for name, written in files.items():
        write(root / 'mended' / f'{name}.tfrecord', written)
    return root / 'damaged', root / 'mended'


def opened(folder: pathlib.Path, **settings):
    settings = {'image_size': 8, 'max_bad_fraction': 0.2, **settings}
    config = DataConfig(dataset='tfrecords', data_dir=str(folder), **settings)
    return open_source(config), config


def train(folder: pathlib.Path, count: int = 8, *, cache_dataset: bool = False, **more) -> list:
    source, config = opened(folder, cache_dataset=cache_dataset)
    settings = {'split': 'train', 'views': CROPPED, 'batch_size': BATCH, 'seed': 3, **more}
    return list(train_batches(source, config, finished=False, **settings).take(count))


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope='module')
def expected(folders: tuple[pathlib.Path, pathlib.Path]) -> list:
    return train(folders[1])


def test_the_next_record_of_the_class_is_in_the_place_of_a_damaged_one(folders, expected):
    assert_equal(train(folders[0]), expected)


def test_a_resumed_run_replaces_the_same_records(folders, expected):
    """Here those that a cache holds, the rows of one of two workers."""
    worker = Worker(1, 2)
    found = train(folders[0], 3, start=5 * BATCH, worker=worker, cache_dataset=True)
    rest = [tf.nest.map_structure(lambda part: part[BATCH // 2 :], batch) for batch in expected[5:]]
    assert_equal(found, rest)


def test_evaluation_masks_a_damaged_record(folders):
    source, config = opened(folders[0], holdout_fraction=0.0)
    (batch,) = eval_batches(source, config, split='train', batch_size=30)
    names = [bytes(raw['path'].numpy()).decode() for raw in source.examples('train')]
    is_damaged = [name.rpartition('/')[2] in DAMAGED for name in names]
    np.testing.assert_array_equal(batch['mask'], np.logical_not(is_damaged))
    assert set(batch['label'].numpy()[is_damaged]) == {-1}
    listed = [line.split('\t') for line in source.skipped.listing().splitlines()]
    assert [path.removeprefix(f'{folders[0]}/') for path, _ in listed] == sorted(DAMAGED)
    assert {reason[:15] for _, reason in listed} == {'it is damaged ('}


def test_more_damaged_records_than_allowed_end_a_run(folders):
    source, config = opened(folders[0], holdout_fraction=0.0, max_bad_fraction=0.07)
    with (
        pytest.raises(UserError, match=r'At most 2 of the 30 images .*found 3\. .*\[#'),
        as_user_errors(source),
    ):
        list(eval_batches(source, config, split='train', batch_size=30))


def test_a_class_without_a_sound_record_is_replaced_without_a_label(tmp_path):
    written = [{'image': png(n), 'label': 0} for n in range(5)]
    written[2] = {'image': b'', 'label': 1}
    write(tmp_path / 'x.tfrecord', written)
    source, config = opened(tmp_path, holdout_fraction=0.0)
    settings = {'split': 'train', 'views': CROPPED, 'batch_size': 5, 'seed': 1}
    batch = next(iter(train_batches(source, config, finished=False, **settings)))
    (row,) = np.flatnonzero(batch['index'] == 2)
    assert batch['label'][row] == -1
    np.testing.assert_allclose(batch['views'][0][row], 3 / 255, atol=1e-6)  # that of the next one


def test_each_record_is_known_by_file_and_position(tmp_path):
    """In any number of files of any length, a part of whose records is held out."""
    counts = [int(count) for count in np.random.RandomState(1).randint(1, 60, 40)]
    for file, count in enumerate(counts):
        number = sum(counts[:file])
        some = [{'image': b'', 'label': n} for n in range(number, number + count)]
        write(tmp_path / f'{file:02}.tfrecord', [{'image': png(0), 'label': number}, *some[1:]])
    source, _ = opened(tmp_path)
    for split in ('train', 'validation', 'train[30%:]+validation[:5]'):
        seen = {bytes(raw['path'].numpy()): int(raw['label']) for raw in source.examples(split)}
        for name, label in seen.items():
            path, number = parse_name(name)
            assert sum(counts[: int(pathlib.Path(path).stem)]) + number == label
        first = next(iter(seen))
        others = [name for name, _ in source.skipped._others(split, first)]
        assert sorted([first, *others]) == sorted(seen)
    assert serialized(some[-1]) == read_record(encoded_name(tmp_path / '39.tfrecord', count - 1))
    with pytest.raises(OSError, match=f'no record {count}'):
        read_record(encoded_name(tmp_path / '39.tfrecord', count))
