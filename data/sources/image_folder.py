"""Image files in folders: data_dir/<split>/<class>/*.jpg, the layout of tfds.ImageFolder.

Beyond tfds.ImageFolder, this reader keeps images encoded, takes slices of splits and takes
unlabelled images: data_dir/<split>/*.jpg.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line, shown
from data.config import DataConfig
from data.image_range import check_integers
from data.sources.source import NO_LABEL, Source
from data.sources.splits import parts_of, split_names
from data.worker import Worker

EXTENSIONS = ('.jpg', '.jpeg', '.png')
_LAYOUT = '<split>/<class>/*.jpg or *.png (without labels: <split>/*.jpg or *.png)'

# Path of an image and the name of its class, None without one.
_File = tuple[str, str | None]


def open_image_folder(config: DataConfig) -> Source:
    """Opens the image files below `config.data_dir`.

    Names may be any bytes: they stay as `os` gives them, and TensorFlow gets the bytes.

    Args:
        config: `data_dir` is read, and `train_split` for advice.

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
    check_integers('image_folder', config.image_range)
    root = os.path.expanduser(config.data_dir or '')
    if not root or not _is_folder(root):
        raise UserError(
            f'--dataset=image_folder needs --data_dir, a folder with {_LAYOUT}; '
            f'found {config.data_dir!r}, which is no folder.'
        )
    folders, loose = _list(root)
    listed = {split: _list_split(os.path.join(root, split)) for split in folders}
    splits = {split: files for split, files in listed.items() if files}
    _check_layout(root, splits, bool(loose), split_names(config.train_split)[0])
    classes = sorted({name for files in splits.values() for _, name in files if name is not None})
    return Source(
        name='image_folder',
        num_classes=len(classes) or None,
        class_names=tuple(map(shown, classes)) or None,
        num_examples=lambda split: len(_select(splits, split)),
        examples=lambda split: _examples(_select(splits, split), classes),
        decode=_decode,
        share=lambda split, worker: _share(_select(splits, split), classes, worker),
        labels=lambda split: iter([_labels(_select(splits, split), classes)]),
        identify=lambda split, positions: _relative(_select(splits, split), positions, root),
        read=tf.io.read_file,
    )


def _check_layout(root: str, splits: dict[str, list[_File]], loose: bool, wanted: str) -> None:
    """Raises UserError if there are no images, or `root` seems to be the folder of one split."""
    labelled = any(name is not None for files in splits.values() for _, name in files)
    if labelled or wanted in splits:
        return
    path = os.path.abspath(root)
    parent = os.path.dirname(path)
    found, advice = 'no such images', 'Give the folder above the split folders.'
    if splits or loose:
        found = f'{"images" if loose else "folders of images"} right in it'
        advice = f'Move the images of one split into {os.path.join(path, wanted)}, or name another '
        advice += f'--train_split of: {", ".join(map(shown, splits)) or "none"}.'
        if os.path.isdir(os.path.join(parent, wanted)):
            advice = f'It seems to be the folder of one split; give --data_dir={shown(parent)}.'
    raise UserError(f'--data_dir={shown(root)} must hold {_LAYOUT}; found {found}. {advice}')


def _list_split(folder: str) -> list[_File]:
    """The files of one split, in an order that is mixed, but always the same.

    Sorted by class they would need a shuffle buffer as large as the data set.
    """
    folders, images = _list(folder)
    loose: list[_File] = [(path, None) for path in images]
    sorted_in: list[_File] = []
    for name in folders:
        sorted_in += [(path, name) for path in _list(os.path.join(folder, name))[1]]
    if loose and sorted_in:
        raise UserError(
            f'{shown(folder)} must hold either class folders or images without labels; found both, '
            f'such as {shown(loose[0][0])}. Move the loose images into a class or a split of their '
            'own.'
        )
    files = loose + sorted_in
    random.Random(os.fsencode(os.path.basename(folder))).shuffle(files)
    return files


def _is_folder(path: str) -> bool:
    return tf.io.gfile.isdir(path) if '://' in path else os.path.isdir(path)


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders in `folder`, paths of its images; sorted, without hidden ones."""
    try:
        entries = sorted(_entries(folder))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f'{shown(folder)} must be a folder that can be listed; found otherwise '
            f'({one_line(error)}). Let it be read, or move it out of --data_dir.'
        ) from error
    visible = [(name, is_folder) for name, is_folder in entries if not name.startswith('.')]
    folders = [name for name, is_folder in visible if is_folder]
    images = [name for name, is_folder in visible if not is_folder and _is_image(name)]
    return folders, [os.path.join(folder, name) for name in images]


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Name of everything in `folder`, and whether it is a folder."""
    if '://' not in folder:
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.is_dir()) for entry in entries)
        return
    for name in tf.io.gfile.listdir(folder):
        # Images aren't asked for: on a remote file system each question is a request.
        is_folder = name.endswith('/') or (
            not _is_image(name) and tf.io.gfile.isdir(f'{folder}/{name}')
        )
        yield name.rstrip('/'), is_folder


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


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
    paths = tf.constant([os.fsencode(path) for path, _ in files], tf.string)
    labels = tf.constant(_labels(files, classes))
    return tf.data.Dataset.from_tensor_slices({'image': paths, 'label': labels})


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
