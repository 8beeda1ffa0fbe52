"""Images in folders, sorted into splits and classes or not; see `layout.py` for what is understood.

Beyond tfds.ImageFolder, this reader keeps images encoded, takes slices of splits, images without
labels, class folders without splits, and several folders at once.
"""

from __future__ import annotations

import functools
import mimetypes
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line, printable
from data.config import DataConfig
from data.image_files import decode_file
from data.image_range import check_integers
from data.names import folders_of
from data.sources.files import Files, concatenate
from data.sources.layout import LAYOUT, Asked, Images, understand
from data.sources.listing import (
    FILE,
    FOLDER,
    Identity,
    Listing,
    is_image,
    list_images,
    scan_local,
)
from data.sources.listing_cache import list_with_cache
from data.sources.skipped_files import SkippedFiles, others_in_listing
from data.sources.source import Source
from data.sources.splits import distinct, parts_of, split_names
from data.worker import Worker


def open_image_folder(config: DataConfig) -> Source:
    """Opens the image files below `config.data_dir`: a folder, or several separated by commas.

    Names may be any bytes: they stay as `os` gives them, and TensorFlow gets the bytes.

    Args:
        config: `data_dir`, `train_split`, `eval_split` and `holdout_fraction` are read.

    Returns:
        The source; classes are numbered in alphabetical order over all splits.

    Raises:
        UserError: if there is no such folder, or nothing in it that can be read.
    """
    check_no_keys(config, 'image_folder', 'names of folders')
    roots = folders_of(config.data_dir)
    for root in roots or ['']:
        if not root or not _is_folder(root):
            raise UserError(
                f'--dataset=image_folder needs --data_dir, a folder with {LAYOUT}; found '
                f'{printable(root or repr(config.data_dir))}, which is no folder. Check the path.'
            )
    seen: set[tuple[int, int]] = set()  # a folder may lie in another one that is named
    images = understand([_list(root, seen) for root in roots], asked_by(config))
    return source_of_images('image_folder', images, config)


def check_no_keys(config: DataConfig, dataset: str, labels: str) -> None:
    """Raises UserError if `config` names features, or a range that files of images don't need."""
    for flag in ('image_key', 'label_key'):
        if getattr(config, flag) is not None:
            raise UserError(
                f'--{flag} chooses a feature of a TensorFlow data set; found '
                f'{getattr(config, flag)!r} with --dataset={dataset}, whose labels are the '
                f'{labels}. Leave it out.'
            )
    check_integers(dataset, config.image_range)


def asked_by(config: DataConfig) -> Asked:
    """What `config` asks for of splits."""
    return Asked(
        tuple(split_names(config.train_split)),
        tuple(split_names(config.eval_split)),
        config.holdout_fraction,
    )


def source_of_images(
    name: str, images: Images, config: DataConfig, *, mixed: bool = True
) -> Source:
    """A source of image files.

    Args:
        name: of the data set, for messages.
        images: what was found.
        config: `max_pixels` and `max_bad_fraction` are read.
        mixed: whether files are in the mixed order of `images`; if not, they are as listed.
    """
    classes, splits = images.classes, images.splits

    def select(split: str) -> Files:
        files = splits[split] if split in splits else _select(name, splits, split)
        return files if mixed else files.in_listing_order()

    # A part of a split, or another order, may take long to make.
    selected = functools.lru_cache(maxsize=4)(select)

    return Source(
        name=name,
        num_classes=len(classes) or None,
        class_names=tuple(map(printable, classes)) or None,
        num_examples=lambda split: len(select(split)),
        examples=lambda split: _examples(select(split)),
        decode=functools.partial(decode_file, max_pixels=config.max_pixels),
        share=lambda split, worker: _share(select(split), worker),
        labels=lambda split: iter([select(split).labels]),
        identify=lambda split, positions: _names(images, select(split), positions),
        read=tf.io.read_file,
        splits=distinct(splits),
        in_listing_order=lambda: source_of_images(name, images, config, mixed=False),
        skipped=SkippedFiles(
            name,
            count=lambda split: len(selected(split)),
            read=lambda path: tf.io.read_file(path).numpy(),
            others=lambda split, path: others_in_listing(selected(split), path),
            max_pixels=config.max_pixels,
            max_fraction=config.max_bad_fraction,
        ),
        summary=images.summary,
    )


def _is_folder(path: str) -> bool:
    return tf.io.gfile.isdir(path) if '://' in path else os.path.isdir(path)


def _list(root: str, seen: set[tuple[int, int]]) -> Listing:
    if '://' in root:
        return list_images(root, scan=_scan_remote, identify=_identify_remote)
    return list_with_cache(root, scan_local, seen)


def _identify_remote(folder: str) -> Identity | None:
    del folder  # there are no links


def _scan_remote(folder: str) -> Iterator[tuple[str, str]]:
    """Name and kind of everything in a folder that TensorFlow lists, with few requests."""
    try:
        names = tf.io.gfile.listdir(folder)
        # Where folders are told by their names, nothing is asked for. Elsewhere files whose kind is
        # known aren't: each question is a request.
        told = any(name.endswith('/') for name in names)
        for name in names:
            is_folder = name.endswith('/') or (
                not (told or is_image(name) or mimetypes.guess_type(name)[0])
                and tf.io.gfile.isdir(f'{folder}/{name}')
            )
            yield name.rstrip('/'), FOLDER if is_folder else FILE
    except tf.errors.OpError as error:
        raise OSError(one_line(error)) from error


def _select(dataset: str, splits: dict[str, Files], split: str) -> Files:
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[len(files)], num_bytes=0)
        for name, files in splits.items()
    }
    parts = parts_of(dataset, split, infos)
    chosen = [splits[name].take(slice(n.start, n.stop)) for name, n in parts]
    return chosen[0] if len(chosen) == 1 else concatenate(chosen)


def _names(images: Images, files: Files, positions: Sequence[int]) -> list[str]:
    """Paths of files; of one place relative to it, of several they could be the same."""
    chosen = files.take(np.array(positions, np.int64))
    paths = chosen.relative() if images.places == 1 else chosen.paths()
    return [os.fsdecode(path) for path in paths]


def _examples(files: Files) -> tf.data.Dataset:
    paths = tf.constant(files.paths(), tf.string)
    labels = tf.constant(files.labels)
    return tf.data.Dataset.from_tensor_slices({'image': paths, 'label': labels})


def _share(files: Files, worker: Worker) -> tf.data.Dataset | None:
    if len(files) < worker.count:
        return None
    own = worker.part(len(files))
    return _examples(files.take(slice(own.start, own.stop))).enumerate(own.start)
