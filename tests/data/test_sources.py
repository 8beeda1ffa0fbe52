from __future__ import annotations

import json
import os
import socket
import types
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from common.errors import UserError
from common.views import SUPERVISED
from data.batches import eval_batches, train_batches
from data.config import DataConfig
from data.images import to_rgb, to_unit_range
from data.labels import read_labels
from data.names import SOURCES
from data.sources import bundled as bundled_module
from data.sources import open_source
from data.sources import tfds as tfds_module
from data.sources.features import find_image


def pixels(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def check_message(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert '\n' not in message
    return message


def rgb_of(source, split: str) -> list[np.ndarray]:
    contents = source.with_contents(source.examples(split))
    return [to_unit_range(to_rgb(source.decode(raw['image']))).numpy() for raw in contents]


# --- TFDS


def test_prepared_builder_is_read_without_being_registered(write_builder):
    images = pixels(10, 6, 5, 3)
    features = {
        'image': tfds.features.Image(shape=(6, 5, 3)),
        'label': tfds.features.ClassLabel(names=['cat', 'dog']),
        'weight': np.float32,
    }
    rows = [{'image': i, 'label': n % 2, 'weight': 1.0} for n, i in enumerate(images)]
    data_dir = write_builder('house_pets', features, {'train': rows[:7], 'test': rows[7:]})
    for name in ('house_pets', 'house_pets:1.0.0'):
        source = open_source(DataConfig(dataset=name, data_dir=str(data_dir)))
        assert (source.num_classes, source.class_names) == (2, ('cat', 'dog'))
        assert source.num_examples('train') == 7
        assert source.num_examples('train[:3]+test') == 6
        raw = list(source.examples('train'))
        assert set(raw[0]) == {'image', 'label'}
        assert raw[0]['image'].dtype == tf.string  # still encoded
        assert [int(example['label']) for example in raw] == [0, 1, 0, 1, 0, 1, 0]
        np.testing.assert_allclose(rgb_of(source, 'train'), images[:7] / 255, rtol=1e-6)
        np.testing.assert_allclose(rgb_of(source, 'train[2:4]'), images[2:4] / 255, rtol=1e-6)


@pytest.mark.parametrize('channels', [1, 4])
def test_gray_and_rgba_become_rgb(write_builder, channels):
    images = pixels(3, 6, 5, channels)
    features = {'image': tfds.features.Image(shape=(None, None, channels))}
    data_dir = write_builder('pictures', features, {'train': [{'image': i} for i in images]})
    source = open_source(DataConfig(dataset='pictures', data_dir=str(data_dir)))
    expected = np.repeat(images, 3, axis=-1) if channels == 1 else images[..., :3]
    np.testing.assert_allclose(rgb_of(source, 'train'), expected / 255, rtol=1e-6)


def test_16_bit_images_keep_their_precision(write_builder):
    images = pixels(2, 6, 5, 3, dtype=np.uint16)
    features = {'image': tfds.features.Image(shape=(6, 5, 3), dtype=np.uint16)}
    data_dir = write_builder('deep', features, {'train': [{'image': i} for i in images]})
    source = open_source(DataConfig(dataset='deep', data_dir=str(data_dir)))
    np.testing.assert_allclose(rgb_of(source, 'train'), images / 65535, rtol=1e-6)


def test_images_stored_as_plain_tensors(write_builder):
    images = np.random.RandomState(0).rand(2, 6, 5, 3).astype(np.float32)
    features = {'image': tfds.features.Tensor(shape=(6, 5, 3), dtype=np.float32)}
    data_dir = write_builder('plain', features, {'train': [{'image': i} for i in images]})
    source = open_source(DataConfig(dataset='plain', data_dir=str(data_dir)))
    np.testing.assert_allclose(rgb_of(source, 'train'), images, rtol=1e-6)


def test_data_sets_without_labels_can_be_trained_on(write_builder):
    features = {'picture': tfds.features.Image(shape=(6, 5, 3))}
    rows = [{'picture': i} for i in pixels(4, 6, 5, 3)]
    data_dir = write_builder('unlabeled', features, {'train': rows})
    config = DataConfig(dataset='unlabeled', data_dir=str(data_dir), image_size=8)
    source = open_source(config)
    assert source.num_classes is None
    batches = train_batches(source, config, split='train', views=SUPERVISED, batch_size=4, seed=0)
    assert next(batches.as_numpy_iterator())['label'].tolist() == [-1] * 4
    (batch,) = eval_batches(source, config, split='train', batch_size=4)
    assert batch['label'].numpy().tolist() == [-1] * 4
    assert batch['mask'].numpy().all()


def test_registered_data_sets_give_dtypes_as_classes(write_builder):
    """np.uint8, where one that is only on disk says np.dtype('uint8'): of image and label alike."""
    features = {'image': tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8)}
    rows = [{'image': i, 'label': n} for n, i in enumerate(pixels(10, 28, 28, 1))]
    for label in (tfds.features.Scalar(dtype=np.int64), tfds.features.ClassLabel(num_classes=10)):
        data_dir = write_builder('mnist', {**features, 'label': label}, {'train': rows})
        folder = next(data_dir.rglob('1.0.0')).rename(data_dir / 'mnist' / '3.0.1')
        told = folder / 'dataset_info.json'
        told.write_text(told.read_text().replace('"1.0.0"', '"3.0.1"'))
        source = open_source(DataConfig(dataset='mnist', data_dir=str(data_dir)))
        assert source.num_examples('train') == 10
    stub = types.SimpleNamespace(
        features={**features, 'number': tfds.features.Scalar(dtype=np.int64)}, supervised_keys=None
    )
    assert stub.features['image'].np_dtype is np.uint8
    assert find_image('stub', stub) == 'image'


def test_data_set_without_images_is_refused(write_builder):
    features = {'text': tfds.features.Text(), 'number': np.int64}
    data_dir = write_builder('words', features, {'train': [{'text': 'a', 'number': 1}]})
    with pytest.raises(UserError) as error:
        open_source(DataConfig(dataset='words', data_dir=str(data_dir)))
    message = check_message(error)
    assert 'text (Text)' in message
    assert 'number' in message


@pytest.fixture
def open_features(write_builder):
    """Writes a data set with an image and `features`, and opens it with more settings."""

    def open_with(name: str, features: dict, rows: list[dict], **settings):
        kinds = {'image': tfds.features.Image(shape=(6, 5, 3)), **features}
        images = pixels(len(rows), 6, 5, 3)
        full = [{'image': image, **row} for image, row in zip(images, rows)]
        data_dir = write_builder(name, kinds, {'train': full[:-2], 'test': full[-2:]})
        return open_source(DataConfig(dataset=name, data_dir=str(data_dir), **settings))

    return open_with


def labels_of(source, split: str) -> list[int]:
    """As the examples tell them, and the reader that leaves images alone."""
    labels = [int(example['label']) for example in source.examples(split)]
    assert read_labels(source, split).tolist() == labels
    return labels


@pytest.mark.parametrize(
    ('feature', 'values', 'settings'),
    [
        (np.int64, [0, 2, 1, 0, -1, 2, 1], {}),
        (tfds.features.Scalar(np.uint8), [0, 2, 1, 0, 0, 2, 1], {}),
        (
            tfds.features.Tensor(shape=(3,), dtype=np.float32),
            np.array([*np.eye(3), *np.eye(3), np.zeros(3)], np.float32),
            {},
        ),
        (
            tfds.features.Tensor(shape=(3,), dtype=np.int64),
            np.array([*np.eye(3), *np.eye(3), np.zeros(3)], np.int64),
            {'label_key': 'kind'},
        ),
        # One number for each image is none, unless it is said to be.
        (np.int64, range(7), {'label_key': 'kind'}),
    ],
    ids=['integer', 'scalar', 'one-hot', 'one-hot integers', 'named'],
)
def test_labels_need_not_be_classes(open_features, feature, values, settings):
    """Of the kind "a label that the data set doesn't declare as classes"."""
    rows = [{'kind': value} for value in values]
    source = open_features('undeclared', {'kind': feature}, rows, **settings)
    expected = [(int(np.argmax(v)) if np.any(v) else -1) if np.ndim(v) else int(v) for v in values]
    # The classes are those of all splits.
    assert source.num_classes == max(expected) + 1
    assert source.class_names is None
    assert labels_of(source, 'train') == expected[:-2]
    assert labels_of(source, 'test') == expected[-2:]


def test_label_key_chooses_among_candidates(open_features):
    """The declared one, else "label", else none without a choice; the hint names them all."""
    kinds = {'age': np.int64, 'kind': tfds.features.ClassLabel(num_classes=2), 'size': np.int32}
    rows = [{'age': 1, 'kind': n % 2, 'size': 0} for n in range(6)]
    source = open_features('people', kinds, rows)
    assert labels_of(source, 'train') == [0, 1, 0, 1]
    assert source.class_names is None  # TFDS calls such classes by their numbers
    source = open_features(
        'people2', {'label': np.int64, **kinds}, [{'label': 1, **r} for r in rows]
    )
    assert labels_of(source, 'train') == [1] * 4
    several = {'a': np.int64, 'b': tfds.features.Tensor(shape=(2,), dtype=np.int64)}
    rows = [{'a': 0, 'b': np.eye(2, dtype=np.int64)[0]} for _ in range(6)]
    source = open_features('several', several, rows)
    assert source.num_classes is None
    assert source.label_hint == (
        "'a' (integer) or 'b' (vector of 2) could be one: choose with --label_key"
    )
    ids = open_features('ids', {'id': np.int64}, [{'id': n} for n in range(6)])
    assert ids.num_classes is None and '--label_key=id' in ids.label_hint
    boxes = {'box': tfds.features.Tensor(shape=(4,), dtype=np.float32)}
    rows = [{'box': np.array([0, 0.5, 1, 1], np.float32)} for _ in range(6)]
    source = open_features('boxes', boxes, rows)
    assert (source.num_classes, source.label_hint) == (None, '')


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (
            {'label_key': 'nothing'},
            '--label_key=nothing must name .*no such feature.*kind .integer',
        ),
        ({'label_key': 'text'}, '--label_key=text must name .*found Text'),
        ({'label_key': 'image'}, 'found Image'),
        ({'label_key': 'box'}, "'box' of .* must be one-hot .* found 0.5, 0.25"),
        ({'label_key': 'huge'}, 'up to 2147483647; found 4294967296'),
        (
            {'image_key': 'kind'},
            '--image_key=kind must name an image .*found integer.*one of image',
        ),
        ({'image_key': 'picture'}, 'found no such feature'),
    ],
    ids=str,
)
def test_keys_of_no_such_feature_are_refused(open_features, settings, words):
    kinds = {
        'kind': np.int64,
        'huge': np.int64,
        'text': tfds.features.Text(),
        'box': tfds.features.Tensor(shape=(2,), dtype=np.float32),
    }
    box = np.array([0.5, 0.25], np.float32)
    rows = [{'kind': n % 2, 'huge': 2**32, 'text': 'a', 'box': box} for n in range(6)]
    with pytest.raises(UserError, match=words) as error:
        open_features('keys', kinds, rows, **settings)
    check_message(error)


def test_an_image_is_chosen_among_several(write_builder):
    image = tfds.features.Image(shape=(6, 5, 3))
    images = pixels(2, 6, 5, 3)
    rows = {'train': [{'left': images[0], 'right': images[1]}]}
    data_dir = str(write_builder('stereo', {'left': image, 'right': image}, rows))
    with pytest.raises(UserError, match=r'several images: left, right\. Choose one .*--image_key'):
        open_source(DataConfig(dataset='stereo', data_dir=data_dir))
    source = open_source(DataConfig(dataset='stereo', data_dir=data_dir, image_key='right'))
    np.testing.assert_allclose(rgb_of(source, 'train')[0], images[1] / 255, rtol=1e-6)


@pytest.mark.parametrize('flag', ['image_key', 'label_key'])
def test_image_folders_have_no_feature_keys(tmp_path, flag):
    config = DataConfig(dataset='image_folder', data_dir=str(tmp_path), **{flag: 'x'})
    with pytest.raises(UserError, match=f'--{flag} chooses a feature'):
        open_source(config)


def test_unknown_names_are_refused_with_close_matches(tmp_path):
    for name, close in (('cifer10', 'cifar10'), ('bundeld', 'bundled'), ('mnits', 'mnist')):
        with pytest.raises(UserError) as error:
            open_source(DataConfig(dataset=name, data_dir=str(tmp_path)))
        message = check_message(error)
        assert repr(name) in message
        assert close in message


@pytest.mark.parametrize('name', ['cifar10:9.9.9', 'cifar10/nothing', 'imagenet_v2/nothing'])
def test_unknown_versions_and_configurations_are_refused(name, tmp_path):
    with pytest.raises(UserError, match='Cannot open --dataset=') as error:
        open_source(DataConfig(dataset=name, data_dir=str(tmp_path)))
    check_message(error)


def test_a_failed_download_says_where_the_data_should_be(tmp_path, monkeypatch):
    def refuse(self):
        raise ConnectionError('no route\nto host')

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', refuse)
    monkeypatch.setattr(tfds_module, 'check_downloadable', lambda *_: None)
    with pytest.raises(UserError, match='could not be downloaded') as error:
        open_source(DataConfig(dataset='cifar10', data_dir=str(tmp_path)))
    message = check_message(error)
    assert str(tmp_path) in message
    assert message.endswith('no route to host')


# --- image folders


def write_png(path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


def open_folder(path, **settings):
    settings = {'holdout_fraction': 0.0, **settings}
    return open_source(DataConfig(dataset='image_folder', data_dir=str(path), **settings))


def test_image_folder_reads_classes_splits_and_slices(tmp_path):
    for number in range(6):
        image = np.full((4, 3 + number, 3), 40 * number, np.uint8)
        split, name = ('train', 'test')[number == 5], ('b', 'a')[number % 2]
        write_png(tmp_path / split / name / f'{number}.png', image)
    (tmp_path / 'train' / 'a' / 'notes.txt').write_text('no image')
    source = open_folder(tmp_path)
    assert (source.num_classes, source.class_names) == (2, ('a', 'b'))
    assert [source.num_examples(split) for split in ('train', 'test', 'train+test')] == [5, 1, 6]
    seen = {}
    for raw in source.with_contents(source.examples('train+test')):
        image = to_unit_range(to_rgb(source.decode(raw['image']))).numpy()
        number = round(float(image[0, 0, 0]) * 255 / 40)
        assert image.shape == (4, 3 + number, 3)
        seen[number] = int(raw['label'])
    assert seen == {0: 1, 1: 0, 2: 1, 3: 0, 4: 1, 5: 0}
    whole = [raw['image'].numpy() for raw in source.examples('train')]
    assert [raw['image'].numpy() for raw in open_folder(tmp_path).examples('train')] == whole
    assert [raw['image'].numpy() for raw in source.examples('train[1:3]')] == whole[1:3]
    assert [raw['image'].numpy() for raw in source.examples('train[80%:]')] == whole[4:]


def test_image_folder_takes_every_kind_of_image(tmp_path):
    rows = {
        'gray': pixels(4, 5, 1),
        'rgb': pixels(4, 5, 3),
        'rgba': pixels(4, 5, 4),
        'deep': pixels(4, 5, 3, dtype=np.uint16),
    }
    for name, image in rows.items():
        write_png(tmp_path / 'train' / name / 'one.png', image)
    photo = tmp_path / 'train' / 'jpeg' / 'one.JPEG'
    photo.parent.mkdir()
    photo.write_bytes(tf.io.encode_jpeg(np.full((4, 5, 3), 100, np.uint8)).numpy())
    source = open_folder(tmp_path)
    found = dict.fromkeys(source.class_names)
    for raw in source.with_contents(source.examples('train')):
        name = source.class_names[int(raw['label'])]
        found[name] = to_unit_range(to_rgb(source.decode(raw['image']))).numpy()
    expected = {
        'gray': np.repeat(rows['gray'], 3, axis=-1) / 255,
        'rgb': rows['rgb'] / 255,
        'rgba': 1 - rows['rgba'][..., 3:] / 255 * (1 - rows['rgba'][..., :3] / 255),
        'deep': rows['deep'] / 65535,
        'jpeg': np.full((4, 5, 3), 100 / 255),
    }
    for name, image in expected.items():
        np.testing.assert_allclose(found[name], image, atol=1e-5)
    config = DataConfig(image_size=8)
    (batch,) = eval_batches(source, config, split='train', batch_size=5)
    assert batch['views'][0].shape == [5, 8, 8, 3]


def test_image_folder_without_classes_has_no_labels(tmp_path):
    for number in range(3):
        write_png(tmp_path / 'train' / f'{number}.png', pixels(4, 5, 3))
    write_png(tmp_path / '.cache' / 'a' / 'x.png', pixels(4, 5, 3))
    source = open_folder(tmp_path)
    assert source.num_classes is None
    assert source.class_names is None
    assert [int(raw['label']) for raw in source.examples('train')] == [-1] * 3


def test_image_folder_refuses_what_it_cannot_read(tmp_path):
    for data_dir in (None, str(tmp_path / 'nothing')):
        with pytest.raises(UserError, match='needs --data_dir') as error:
            open_source(DataConfig(dataset='image_folder', data_dir=data_dir))
        check_message(error)
    (tmp_path / 'train' / 'cat').mkdir(parents=True)
    with pytest.raises(UserError, match='found no such images') as error:
        open_folder(tmp_path)
    check_message(error)
    write_png(tmp_path / 'train' / 'cat' / 'one.png', pixels(4, 5, 3))
    write_png(tmp_path / 'train' / 'loose.png', pixels(4, 5, 3))
    with pytest.raises(UserError, match='found both') as error:
        open_folder(tmp_path)
    assert 'loose.png' in check_message(error)


def test_tfds_reads_folders_in_utf_8_only(tmp_path):
    with pytest.raises(UserError, match=r'in UTF-8 .* found .*caf\\xe9') as error:
        open_source(DataConfig(dataset='mnist', data_dir=f'{tmp_path}/caf\udce9'))
    check_message(error)


@pytest.mark.parametrize('name', ['mnist', 'cifar10', 'fashion_mnist'])
def test_without_a_network_the_download_is_not_retried(name, tmp_path, monkeypatch):
    asked = []

    def refuse(address, timeout):
        asked.append((address, timeout))
        raise OSError('Name or service\nnot known')

    def download(self):
        raise AssertionError('This takes minutes.')

    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(urllib.request, 'getproxies', dict)
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', download)
    with pytest.raises(UserError, match='cannot be downloaded without a network') as error:
        open_source(DataConfig(dataset=name, data_dir=str(tmp_path)))
    assert str(tmp_path) in check_message(error)
    assert 1 <= len(asked) <= 3 and all(timeout <= 5 for _, timeout in asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('which', ['', 'train', 'train/cat'])
def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch, which):
    """The data's folder, a split's, a class's; feigned, since root may list any."""
    write_png(tmp_path / 'train' / 'cat' / 'one.png', pixels(4, 5, 3))
    scan = os.scandir

    def refuse(path):
        if os.path.normpath(path) == os.path.normpath(tmp_path / which):
            raise PermissionError(13, 'Permission denied', os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UserError, match='must be a folder that can be listed') as error:
        open_folder(tmp_path)
    message = check_message(error)
    assert str(tmp_path / which) in message
    assert 'Permission denied' in message


def test_listing_a_remote_folder_makes_no_request_per_image(monkeypatch):
    """On a remote file system each question is a request; ram:// stands for one."""
    root = 'ram://flat'
    tf.io.gfile.makedirs(f'{root}/train')
    for number in range(50):
        with tf.io.gfile.GFile(f'{root}/train/{number}.png', 'wb') as file:
            file.write(tf.io.encode_png(pixels(2, 2, 3)).numpy())
    asked, isdir = [], tf.io.gfile.isdir

    def note(path):
        asked.append(path)
        return isdir(path)

    monkeypatch.setattr(tf.io.gfile, 'isdir', note)
    assert open_folder(root).num_examples('train') == 50
    assert set(asked) <= {root, f'{root}/train'} and len(asked) <= 4


ODD_NAMES = {
    b'caf\xe9': 'caf\\xe9',  # Latin-1
    'café'.encode(): 'café',
    b'two\nlines': 'two\\nlines',
    b'back\\slash': 'back\\slash',
    b'\x1b[31mred': '\\x1b[31mred',
    b'n' * 250: 'n' * 250,
}


def test_names_may_be_any_bytes(tmp_path):
    """Of folders and files alike; shown, they are printable and no two are the same."""
    root = os.path.join(os.fsencode(tmp_path), b'd\xe4ta')
    for number, name in enumerate(ODD_NAMES):
        folder = os.path.join(root, b'train', name)
        os.makedirs(folder)
        with open(os.path.join(folder, name[:240] + b'.png'), 'wb') as file:
            file.write(tf.io.encode_png(np.full([3, 4, 3], number, np.uint8)).numpy())
    source = open_folder(os.fsdecode(root))
    assert sorted(source.class_names) == sorted(ODD_NAMES.values())
    assert json.loads(json.dumps(source.class_names)) == list(source.class_names)
    assert all(name.encode() and name.isprintable() for name in source.class_names)
    found = {}
    for raw in source.with_contents(source.examples('train')):
        found[source.class_names[int(raw['label'])]] = int(source.decode(raw['image'])[0, 0, 0])
    assert found == {shown: 257 * n for n, shown in enumerate(ODD_NAMES.values())}


def test_splits_and_messages_may_have_any_bytes_too(tmp_path):
    root = os.path.join(os.fsencode(tmp_path), b'd\xe4ta')
    os.makedirs(os.path.join(root, b'tr\xe4in', b'a'))
    with pytest.raises(UserError, match=r'd\\xe4ta must hold'):
        open_folder(os.fsdecode(root))
    for place in (b'a/1.png', b'2.png'):
        with open(os.path.join(root, b'tr\xe4in', place), 'wb') as file:
            file.write(tf.io.encode_png(np.zeros([3, 4, 3], np.uint8)).numpy())
    with pytest.raises(UserError, match=r'found both, such as .*tr\\xe4in/2.png'):
        open_folder(os.fsdecode(root), train_split='tr\udce4in')
    os.remove(os.path.join(root, b'tr\xe4in', b'2.png'))
    with pytest.raises(UserError, match=r'its splits are: tr\\xe4in\.'):
        open_folder(os.fsdecode(root), train_split='tr\udce4in').num_examples('train')


# --- splits, the same for all sources


@pytest.fixture(params=['tfds', 'image_folder'])
def four_examples(request, write_builder, tmp_path):
    images = pixels(4, 6, 5, 3)
    if request.param == 'tfds':
        features = {'image': tfds.features.Image(shape=(6, 5, 3))}
        data_dir = write_builder('four', features, {'train': [{'image': i} for i in images]})
        return open_source(DataConfig(dataset='four', data_dir=str(data_dir)))
    for number, image in enumerate(images):
        write_png(tmp_path / 'train' / f'{number}.png', image)
    return open_folder(tmp_path)


@pytest.mark.parametrize('split', ['validation', 'train+test', 'validation[:10%]', ''])
def test_unknown_splits_are_refused_with_those_that_exist(four_examples, split):
    for read in (four_examples.num_examples, four_examples.examples):
        with pytest.raises(UserError, match='has no split') as error:
            read(split)
        assert 'its splits are: train.' in check_message(error)


@pytest.mark.parametrize('split', ['train[:x]', 'train[', 'train[1:2:3]'])
def test_malformed_slices_are_refused(four_examples, split):
    for read in (four_examples.num_examples, four_examples.examples):
        with pytest.raises(UserError) as error:
            read(split)
        assert split in check_message(error)


@pytest.mark.parametrize(
    'split',
    ['train[3:1]', 'train[-1:-3]', 'train[75%:25%]', 'train+train[2:1]', 'train[3:1]+train'],
)
def test_slices_that_end_before_they_start_are_refused(four_examples, split):
    """They would have a number of examples below 0, which a sum with others hides."""
    for read in (four_examples.num_examples, four_examples.examples):
        with pytest.raises(UserError, match='must not end before it starts') as error:
            read(split)
        assert split in check_message(error)


def test_empty_and_repeated_slices(four_examples):
    assert four_examples.num_examples('train[2:2]') == 0
    assert four_examples.num_examples('train[:3]+train') == 7
    assert len(list(four_examples.examples('train[:3]+train'))) == 7


def test_examples_are_identified_by_file_or_slice(four_examples):
    positions = [1, 3]
    found = four_examples.identify('train[1:]+train', positions)
    whole = [e['image'] for e in four_examples.examples('train[1:]+train')]
    for position, name in zip(positions, found, strict=True):
        if four_examples.name == 'image_folder':
            assert name.startswith('train/') and name.endswith('.png')
        else:
            (example,) = four_examples.examples(name)
            assert example['image'] == whole[position]


# --- the bundled data set


def test_bundled_data_set_is_the_default():
    source = open_source(DataConfig())
    assert source.name == 'bundled'
    assert source.num_classes == 10
    assert len(source.class_names) == 10
    assert (source.num_examples('train'), source.num_examples('test')) == (6000, 1000)
    raw = next(iter(source.examples('test')))
    assert raw['image'].dtype == tf.string
    assert source.decode(raw['image']).shape == [28, 28, 1]
    labels = [int(raw['label']) for raw in source.examples('test')]
    assert np.bincount(labels).tolist() == [100] * 10


def test_reading_logs_no_warning(caplog):
    next(iter(open_source(DataConfig()).examples('train')))
    assert not caplog.records


def test_bundled_takes_no_data_dir(tmp_path):
    with pytest.raises(UserError, match='--data_dir cannot be used') as error:
        open_source(DataConfig(dataset='bundled', data_dir=str(tmp_path)))
    check_message(error)


def test_bundled_says_where_its_files_should_be(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled_module, 'FOLDER', tmp_path)
    with pytest.raises(UserError, match='must be in') as error:
        open_source(DataConfig(dataset='bundled'))
    assert str(tmp_path) in check_message(error)


def test_registry_names_its_own_sources():
    assert set(SOURCES) == {'bundled', 'image_folder', 'image_list', 'tfrecords'}
