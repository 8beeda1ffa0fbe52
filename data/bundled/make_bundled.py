"""Turns Fashion-MNIST's four idx files into a data set in TFDS's on-disk format.

Without `--full` it makes the small data set that ships in this folder, a stratified and seeded
subset with the same bytes on every run. With `--full` it makes all of Fashion-MNIST, where
`tfds.builder('fashion_mnist', data_dir=OUT)` finds it, so that nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gzip
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

# Silences TensorFlow's start-up log, which a user can't act on.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

LABELS = (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
)
FILE_PREFIX = {'train': 'train', 'test': 't10k'}  # split → prefix of its files' names
SMALL_SIZE = {'train': 6000, 'test': 1000}
SMALL_VERSION = '1.0.0'
SEED = 0
CITATION = """@article{xiao2017fashion,
  title   = {Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author  = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv preprint arXiv:1708.07747},
  year    = {2017}
}"""


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads a gzipped idx file of bytes.

    Args:
        path: the file. After its fourth byte, the rank, come the dimensions in 4 big-endian bytes.

    Returns:
        A uint8 array of the shape in the header.
    """
    raw = gzip.decompress(path.read_bytes())
    if len(raw) < 4 or raw[:3] != b'\0\0\x08':
        raise ValueError(f'{path} must be an idx file of bytes; its first bytes are {raw[:4]!r}.')
    rank = raw[3]
    shape = np.frombuffer(raw, '>i4', rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_split(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads images [n, 28, 28, 1] and labels [n], both uint8, of 'train' or 'test'."""
    prefix = FILE_PREFIX[split]
    images = read_idx(folder / f'{prefix}-images-idx3-ubyte.gz')
    labels = read_idx(folder / f'{prefix}-labels-idx1-ubyte.gz')
    if len(images) != len(labels):
        raise ValueError(f'{folder}: {len(images)} {split} images, but {len(labels)} labels.')
    return images[..., np.newaxis], labels


def pick_stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Picks the same number of examples of each class, at random.

    Args:
        labels: [n], every class of LABELS among them.
        size: total number to pick, a multiple of the number of classes.
        seed: of the random choice.

    Returns:
        [size] indices into `labels`, ascending.
    """
    each, rest = divmod(size, len(LABELS))
    if rest:
        raise ValueError(f'{size} examples cannot be shared among {len(LABELS)} classes.')
    # RandomState rather than default_rng, because NumPy guarantees its stream.
    rng = np.random.RandomState(seed)
    picked = []
    for label, name in enumerate(LABELS):
        members = np.flatnonzero(labels == label)
        if len(members) < each:
            raise ValueError(f'Expected at least {each} of class {name}; found {len(members)}.')
        picked.append(rng.permutation(members)[:each])
    return np.sort(np.concatenate(picked))


def examples(
    images: np.ndarray, labels: np.ndarray, indices: np.ndarray
) -> Iterator[tuple[int, dict]]:
    """Yields (key, example). TFDS derives the order on disk from the keys alone."""
    for index in indices:
        yield int(index), {'image': images[index], 'label': int(labels[index])}


def write(
    folder: pathlib.Path,
    out: pathlib.Path,
    name: str,
    version: str,
    size: Mapping[str, int] | None,
) -> pathlib.Path:
    """Writes the train and test split below `out`.

    Args:
        folder: where the idx files are.
        out: where the folder name/version is created.
        name: of the data set.
        version: of the data set.
        size: split → number of examples to pick; None for all of them.

    Returns:
        The new data set's folder, for `tfds.builder_from_directory`.
    """
    target = out / name / version
    if target.exists():
        raise FileExistsError(f'{target} is there already: remove it to write it anew.')
    splits = {}
    for split in FILE_PREFIX:
        images, labels = read_split(folder, split)
        everything = np.arange(len(labels))
        picked = pick_stratified(labels, size[split], SEED) if size else everything
        splits[split] = examples(images, labels, picked)
    builder = tfds.dataset_builders.AdhocBuilder(
        name=name,
        version=version,
        features=tfds.features.FeaturesDict(
            {
                'image': tfds.features.Image(shape=(28, 28, 1), encoding_format='png'),
                'label': tfds.features.ClassLabel(names=LABELS),
            }
        ),
        split_datasets=splits,
        data_dir=out,
        description=describe(size),
        homepage='https://github.com/zalandoresearch/fashion-mnist',
        citation=CITATION,
    )
    # Nothing is downloaded, but by default TFDS would look for a prepared copy on the network, and
    # it always creates a folder for downloads.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads, download_config=config)
    sort_features(target)
    return target


def sort_features(folder: pathlib.Path) -> None:
    """Rewrites each record with its features in the order of their names.

    TFDS leaves their order to protobuf, some versions of which change it from run to run.
    """
    for path in map(str, folder.glob('*.tfrecord-*')):
        records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                example = tf.train.Example.FromString(record)
                writer.write(example.SerializeToString(deterministic=True))


def describe(size: Mapping[str, int] | None) -> str:
    """The description that is stored with the data set."""
    text = "Fashion-MNIST: 28x28 gray images of Zalando's articles in 10 classes."
    if size:
        text += f' A stratified random part of it, picked with seed {SEED}.'
    return text + ' Copyright 2017 Zalando SE, MIT license.'


def write_small(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Writes the data set that ships with the project; see `write`."""
    return write(folder, out, 'fashion_mnist_small', SMALL_VERSION, SMALL_SIZE)


def write_full(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Writes all of Fashion-MNIST; see `write`."""
    # TFDS accepts a prepared folder only in the version of its own builder.
    version = str(tfds.builder_cls('fashion_mnist').VERSION)
    return write(folder, out, 'fashion_mnist', version, None)


def main() -> None:
    """Reads the command line and writes the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=pathlib.Path, help="where Fashion-MNIST's idx .gz files are")
    parser.add_argument('out', type=pathlib.Path, help='TFDS data_dir to write below')
    parser.add_argument('--full', action='store_true', help='all images, not the small part')
    args = parser.parse_args()
    tfds.disable_progress_bar()  # writing takes only seconds
    try:
        made = (write_full if args.full else write_small)(args.folder, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f'Wrote {made}')


if __name__ == '__main__':
    main()
