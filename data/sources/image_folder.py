"""Image files in folders: data_dir/<split>/<class>/*.jpg, the layout of tfds.ImageFolder.

Beyond tfds.ImageFolder, this reader keeps images encoded, takes slices of splits and takes
unlabelled images: data_dir/<split>/*.jpg.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from data.config import DataConfig
from data.sources.source import NO_LABEL, Source
from data.sources.splits import parts_of
from data.worker import Worker
from settings import UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png')
_LAYOUT = '<split>/<class>/*.jpg or *.png (without labels: <split>/*.jpg or *.png)'

# Path of an image and the name of its class, None without one.
_File = tuple[str, str | None]


def open_image_folder(config: DataConfig) -> Source:
    """Opens the image files below `config.data_dir`.

    Args:
        config: `data_dir` is read.

    Returns:
        The source; classes are numbered in alphabetical order over all splits.

    Raises:
        UserError: if there is no such folder, or nothing in it that can be read.
    """
    for flag in ('image_key', 'label_key'):
        if getattr(config, flag) is not None:
            raise UserError(
                f'--{flag} chooses a feature of a TensorFlow data set; found '
                f'{getattr(config, flag)!r} with --dataset=image_folder, whose labels are the '
                'names of folders. Leave it out.'
            )
    root = os.path.expanduser(config.data_dir or '')
    if not root or not tf.io.gfile.isdir(root):
        raise UserError(
            f'--dataset=image_folder needs --data_dir, a folder with {_LAYOUT}; '
            f'found {config.data_dir!r}, which is no folder.'
        )
    listed = {split: _list_split(os.path.join(root, split)) for split in _folders(root)}
    splits = {split: files for split, files in listed.items() if files}
    if not splits:
        raise UserError(
            f'--data_dir={root} must hold {_LAYOUT}; found no such images. '
            'Give the folder above the split folders.'
        )
    classes = sorted({name for files in splits.values() for _, name in files if name is not None})
    return Source(
        name='image_folder',
        num_classes=len(classes) or None,
        class_names=tuple(classes) or None,
        num_examples=lambda split: len(_select(splits, split)),
        examples=lambda split: _examples(_select(splits, split), classes),
        decode=_decode,
        share=lambda split, worker: _share(_select(splits, split), classes, worker),
        labels=lambda split: iter([_labels(_select(splits, split), classes)]),
        identify=lambda split, positions: _relative(_select(splits, split), positions, root),
    )


def _list_split(folder: str) -> list[_File]:
    """The files of one split, in an order that is mixed, but always the same.

    Sorted by class they would need a shuffle buffer as large as the data set.
    """
    loose: list[_File] = [(path, None) for path in _images(folder)]
    sorted_in: list[_File] = []
    for name in _folders(folder):
        sorted_in += [(path, name) for path in _images(os.path.join(folder, name))]
    if loose and sorted_in:
        raise UserError(
            f'{folder} must hold either class folders or images without labels; found both, '
            f'such as {loose[0][0]}. Move the loose images into a class or a split of their own.'
        )
    files = loose + sorted_in
    random.Random(os.path.basename(folder)).shuffle(files)
    return files


def _folders(folder: str) -> list[str]:
    names = [name.rstrip('/') for name in tf.io.gfile.listdir(folder)]
    names = [name for name in names if not name.startswith('.')]
    return sorted(name for name in names if tf.io.gfile.isdir(os.path.join(folder, name)))


def _images(folder: str) -> list[str]:
    names = (name for name in tf.io.gfile.listdir(folder) if not name.startswith('.'))
    paths = (os.path.join(folder, name) for name in names if name.lower().endswith(EXTENSIONS))
    return sorted(paths)


def _select(splits: dict[str, list[_File]], split: str) -> list[_File]:
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[len(files)], num_bytes=0)
        for name, files in splits.items()
    }
    parts = parts_of('image_folder', split, infos)
    return [splits[name][number] for name, numbers in parts for number in numbers]


def _labels(files: list[_File], classes: list[str]) -> np.ndarray:
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number.get(name, NO_LABEL) for _, name in files], np.int32)


def _relative(files: list[_File], positions: Sequence[int], root: str) -> list[str]:
    return [os.path.relpath(files[position][0], root) for position in positions]


def _examples(files: list[_File], classes: list[str]) -> tf.data.Dataset:
    paths = tf.constant([path for path, _ in files], tf.string)
    labels = tf.constant(_labels(files, classes))

    def read(path: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        return {'image': tf.io.read_file(path), 'label': label}

    dataset = tf.data.Dataset.from_tensor_slices((paths, labels))
    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _share(files: list[_File], classes: list[str], worker: Worker) -> tf.data.Dataset | None:
    if len(files) < worker.count:
        return None
    own = worker.part(len(files))
    return _examples(files[own.start : own.stop], classes).enumerate(own.start)


def _decode(encoded: tf.Tensor) -> tf.Tensor:
    # As 16-bit integers both 8-bit and 16-bit files keep their precision: 257 times an 8-bit value
    # is to 65,535 what the value is to 255. TensorFlow multiplies those of JPEGs by 256.
    image = tf.io.decode_image(encoded, channels=3, dtype=tf.uint16, expand_animations=False)
    image = tf.cond(
        tf.io.is_jpeg(encoded), lambda: image + tf.bitwise.right_shift(image, 8), lambda: image
    )
    return tf.ensure_shape(image, [None, None, 3])
