from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data.config import DataConfig
from data.images import to_rgb, to_unit_range
from data.pipeline import eval_batches, train_batches
from data.sources import SOURCES, open_source
from data.sources import bundled as bundled_module
from settings import UserError


def pixels(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def check_message(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert '\n' not in message
    return message


def rgb_of(source, split: str) -> list[np.ndarray]:
    return [
        to_unit_range(to_rgb(source.decode(raw['image']))).numpy() for raw in source.examples(split)
    ]


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
def test_grey_and_rgba_become_rgb(write_builder, channels):
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
    data_dir = write_builder('unlabelled', features, {'train': rows})
    config = DataConfig(dataset='unlabelled', data_dir=str(data_dir), image_size=8)
    source = open_source(config)
    assert source.num_classes is None
    batches = train_batches(source, config, split='train', recipe='pretrain', batch_size=4, seed=0)
    assert next(batches.as_numpy_iterator())['label'].tolist() == [-1] * 4
    (batch,) = eval_batches(source, config, split='train', batch_size=4)
    assert batch['label'].numpy().tolist() == [-1] * 4
    assert batch['mask'].numpy().all()


def test_data_set_without_images_is_refused(write_builder):
    features = {'text': tfds.features.Text(), 'number': np.int64}
    data_dir = write_builder('words', features, {'train': [{'text': 'a', 'number': 1}]})
    with pytest.raises(UserError) as error:
        open_source(DataConfig(dataset='words', data_dir=str(data_dir)))
    message = check_message(error)
    assert 'text (Text)' in message
    assert 'number' in message


def test_unknown_names_are_refused_with_close_matches(tmp_path):
    for name, close in (('cifer10', 'cifar10'), ('bundeld', 'bundled'), ('mnits', 'mnist')):
        with pytest.raises(UserError) as error:
            open_source(DataConfig(dataset=name, data_dir=str(tmp_path)))
        message = check_message(error)
        assert repr(name) in message
        assert close in message


@pytest.mark.parametrize('name', ['cifar10:9.9.9', 'cifar10/nothing', 'imagenet_v2/nothing'])
def test_unknown_versions_and_configurations_are_refused(name, tmp_path):
    with pytest.raises(UserError, match='Cannot open data set') as error:
        open_source(DataConfig(dataset=name, data_dir=str(tmp_path)))
    check_message(error)


def test_a_failed_download_says_where_the_data_should_be(tmp_path, monkeypatch):
    def refuse(self):
        raise ConnectionError('no route\nto host')

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', refuse)
    with pytest.raises(UserError, match='could not be downloaded') as error:
        open_source(DataConfig(dataset='cifar10', data_dir=str(tmp_path)))
    message = check_message(error)
    assert str(tmp_path) in message
    assert message.endswith('no route to host')


# --- image folders


def write_png(path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


def open_folder(path):
    return open_source(DataConfig(dataset='image_folder', data_dir=str(path)))


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
    for raw in source.examples('train+test'):
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
        'grey': pixels(4, 5, 1),
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
    for raw in source.examples('train'):
        name = source.class_names[int(raw['label'])]
        found[name] = to_unit_range(to_rgb(source.decode(raw['image']))).numpy()
    expected = {
        'grey': np.repeat(rows['grey'], 3, axis=-1) / 255,
        'rgb': rows['rgb'] / 255,
        'rgba': rows['rgba'][..., :3] / 255,
        'deep': rows['deep'] / 65535,
        'jpeg': np.full((4, 5, 3), 100 / 255),
    }
    for name, image in expected.items():
        np.testing.assert_allclose(found[name], image, atol=1e-6)
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
    assert set(SOURCES) == {'bundled', 'image_folder'}
