"""The bundled data set, and the program that made it."""

from __future__ import annotations

import gzip
import pathlib
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data.bundled import make_bundled

BUNDLED = pathlib.Path(make_bundled.__file__).parent
SHIPPED = BUNDLED / 'fashion_mnist_small' / make_bundled.SMALL_VERSION
PER_CLASS = {'train': 13, 'test': 7}


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes bytes in idx format, gzipped, as Fashion-MNIST's files are."""
    header = struct.pack(f'>4B{array.ndim}i', 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Four small idx files: each pixel of an image is its index in the file."""
    folder = tmp_path / 'idx'
    folder.mkdir()
    for split, prefix in make_bundled.FILE_PREFIX.items():
        labels = np.tile(np.arange(10, dtype=np.uint8), PER_CLASS[split])
        pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None]
        images = np.tile(pixels, (1, 28, 28))
        write_idx(folder / f'{prefix}-images-idx3-ubyte.gz', images)
        write_idx(folder / f'{prefix}-labels-idx1-ubyte.gz', labels)
    return folder


def read(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images [n, 28, 28, 1] and labels [n] of a split, in the order on disk."""
    rows = list(tfds.as_numpy(builder.as_dataset(split=split)))
    return np.stack([row['image'] for row in rows]), np.array([row['label'] for row in rows])


def file_bytes(folder: pathlib.Path) -> dict[str, bytes]:
    """File name → content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.smoke
def test_shipped_data_set_loads_without_code_of_ours():
    builder = tfds.builder_from_directory(SHIPPED)
    assert builder.info.features['image'].shape == (28, 28, 1)
    assert builder.info.features['label'].names == list(make_bundled.LABELS)
    for split, size in make_bundled.SMALL_SIZE.items():
        images, labels = read(builder, split)
        assert images.shape == (size, 28, 28, 1)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(labels), np.full(10, size // 10))
        # Real images: nearly all of them differ, and none is blank.
        assert len(np.unique(images.reshape(size, -1), axis=0)) > 0.99 * size
        assert images.reshape(size, -1).std(axis=1).min() > 1


def test_shipped_order_mixes_the_classes():
    _, labels = read(tfds.builder_from_directory(SHIPPED), 'train')
    counts = np.bincount(labels[:600], minlength=10)
    assert counts.min() > 30, f'expected about 60 of each class at the start; found {counts}'


def test_shipped_folder_is_small_and_has_its_license():
    size = sum(path.stat().st_size for path in BUNDLED.rglob('*') if path.is_file())
    assert size <= 6e6
    license = (BUNDLED / 'LICENSE').read_text()
    assert 'MIT' in license
    assert '2017 Zalando SE' in license


def test_two_runs_write_the_same_bytes(idx_folder, tmp_path):
    size = {'train': 50, 'test': 20}
    first, second = (
        make_bundled.write(idx_folder, tmp_path / run, 'small', '1.0.0', size) for run in 'ab'
    )
    assert file_bytes(first) == file_bytes(second)
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == ['small']


def test_program_picks_stratified_and_keeps_images_with_their_labels(idx_folder, tmp_path):
    size = {'train': 50, 'test': 20}
    folder = make_bundled.write(idx_folder, tmp_path / 'out', 'small', '1.0.0', size)
    builder = tfds.builder_from_directory(folder)
    for split, wanted in size.items():
        images, labels = read(builder, split)
        np.testing.assert_array_equal(np.bincount(labels), np.full(10, wanted // 10))
        indices = images[:, 0, 0, 0]
        assert len(set(indices)) == wanted
        np.testing.assert_array_equal(indices % 10, labels)


def test_pick_depends_on_the_seed_alone():
    labels = np.tile(np.arange(10), 20)
    first = make_bundled.pick_stratified(labels, 100, seed=1)
    np.testing.assert_array_equal(first, make_bundled.pick_stratified(labels, 100, seed=1))
    assert (first != make_bundled.pick_stratified(labels, 100, seed=2)).any()


def test_pick_refuses_what_cannot_be_stratified():
    labels = np.tile(np.arange(10), 2)
    with pytest.raises(ValueError, match='shared among 10 classes'):
        make_bundled.pick_stratified(labels, 15, seed=0)
    with pytest.raises(ValueError, match='at least 3 of class T-shirt/top; found 2'):
        make_bundled.pick_stratified(labels, 30, seed=0)


def test_full_data_set_is_taken_as_prepared_by_its_tfds_name(idx_folder, tmp_path):
    folder = make_bundled.write_full(idx_folder, tmp_path)
    builder = tfds.builder('fashion_mnist', data_dir=tmp_path)
    assert builder.is_prepared()
    assert pathlib.Path(builder.data_dir) == folder
    for split, per_class in PER_CLASS.items():
        images, labels = read(builder, split)
        assert sorted(images[:, 0, 0, 0]) == list(range(10 * per_class))
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 10, labels)


def test_program_never_overwrites(idx_folder, tmp_path):
    make_bundled.write_full(idx_folder, tmp_path)
    with pytest.raises(FileExistsError, match='is there already'):
        make_bundled.write_full(idx_folder, tmp_path)


def test_broken_idx_file_is_named(idx_folder):
    broken = idx_folder / 'train-labels-idx1-ubyte.gz'
    broken.write_bytes(gzip.compress(b'not idx'))
    with pytest.raises(ValueError, match=r'train-labels-idx1-ubyte\.gz must be an idx file'):
        make_bundled.read_split(idx_folder, 'train')
