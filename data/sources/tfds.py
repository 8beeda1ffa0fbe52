"""Opens any data set of TensorFlow Datasets, by name or as a prepared builder."""

from __future__ import annotations

import functools
import operator
import os
import pathlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line
from data.config import DataConfig
from data.image_range import check_integers, find_range
from data.names import check_downloadable, find_builder
from data.sources.features import Label, find_image, find_label
from data.sources.records import (
    Records,
    check_total,
    examine,
    find_corrupt,
    find_files,
    read_files,
)
from data.sources.source import BYTES_SAMPLED, NO_LABEL, Source
from data.sources.splits import check_split, parts_of, split_names
from data.worker import Worker

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_READ_IN_A_ROW = 16  # consecutive examples of one file, TFDS's own choice
_NUMBERS_PER_BATCH = 65_536
# Builder → examined split → path → good records of a damaged file.
_DAMAGED: weakref.WeakKeyDictionary[Any, dict[str, dict[str, Records]]] = (
    weakref.WeakKeyDictionary()
)


def open_tfds(config: DataConfig) -> Source:
    """Opens `config.dataset`, 'name', 'name/config' or 'name/config:version'.

    A data set that is not in `config.data_dir` yet is downloaded and prepared there.

    Args:
        config: `dataset`, `data_dir`, `image_key` and `label_key` are read.

    Returns:
        The source.

    Raises:
        UserError: if the data set doesn't exist, can't be prepared, has no images, or lacks the
            features that are asked for.
    """
    builder = find_builder(config.dataset, config.data_dir)
    # Checked first, so that a data set without images is not downloaded.
    find_image(config.dataset, builder.info, config.image_key)
    # `is_prepared` warns if the folder does not exist.
    if not tf.io.gfile.isdir(os.fspath(builder.data_path)) or not builder.is_prepared():
        _prepare(config.dataset, builder)
    return source_of_builder(config.dataset, builder, config)


def _prepare(name: str, builder: tfds.core.DatasetBuilder) -> None:
    folder = pathlib.Path(os.fspath(builder._data_dir_root))
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (folder / 'downloads').exists():
        check_downloadable(name, builder.url_infos, str(folder))
    try:
        builder.download_and_prepare()
    # A download can fail in any layer (DNS, HTTP, checksums, manual steps, missing libraries).
    except Exception as error:
        raise UserError(
            f'Data set {name!r} is not prepared in {builder.data_dir} and could not be downloaded; '
            f'prepare it there or give another --data_dir. Cause: {one_line(error)}'
        ) from error


def source_of_builder(name: str, builder: tfds.core.DatasetBuilder, config: DataConfig) -> Source:
    """Makes a Source from a prepared TFDS builder.

    Args:
        name: what the user called the data set.
        builder: prepared builder.
        config: `image_key` and `label_key` are read.

    Returns:
        The source. Only the image and, where there is one, the label are read; images stay
        encoded where TFDS stores them encoded.

    Raises:
        UserError: if there is no image feature, or it lacks the features that are asked for.
    """
    image_key = find_image(name, builder.info, config.image_key)
    label, hint = find_label(
        name, builder.info, config.label_key, functools.partial(_sample, builder)
    )
    if label:
        _check_names(builder, label)
    # Everything that reads a split calls this first, so that the split's files are examined.
    parts = functools.partial(_parts, name, builder)

    def examples(split: str) -> tf.data.Dataset:
        parts(split)
        return _examples(builder, split, image_key, label)

    def labels(split: str) -> Iterator[np.ndarray]:
        parts(split)
        return _labels(builder, split, label)

    def share(split: str, worker: Worker) -> tf.data.Dataset | None:
        read = functools.partial(_examples, builder, image_key=image_key, label=label)
        return _share(builder, split, parts(split), worker, read)

    return Source(
        name=name,
        num_classes=label.num_classes if label else None,
        class_names=label.names if label else None,
        num_examples=lambda split: _count(parts(split)),
        examples=examples,
        decode=_decoder(builder.info.features[image_key]),
        share=share,
        labels=labels if label else None,
        label_bytes=lambda split: _bytes(builder, parts(split)),
        identify=lambda split, positions: _identify(builder, split, parts(split), positions),
        label_hint=hint,
        image_range=_image_range(name, builder, image_key, config),
        splits=[split for split, info in builder.info.splits.items() if info.num_examples],
        corrupt_file=functools.partial(_corrupt_file, builder),
        bytes_per_example=lambda split: _bytes_per_example(builder, parts(split)),
    )


def _check_names(builder: tfds.core.DatasetBuilder, label: Label) -> None:
    if label.names and len(label.names) != label.num_classes:
        raise UserError(
            f'{builder.data_path}/{label.key}.labels.txt must hold the names of '
            f'{label.num_classes} classes, as features.json says; found {len(label.names)}. '
            'Restore the file, or prepare the data set again.'
        )


def _labels(builder: tfds.core.DatasetBuilder, split: str, label: Label) -> Iterator[np.ndarray]:
    read = _read(builder, split, [label.key])
    numbers = read.map(lambda example: label.number(example[label.key]))
    return numbers.batch(_NUMBERS_PER_BATCH).as_numpy_iterator()


def _corrupt_file(builder: tfds.core.DatasetBuilder, place: int) -> str | None:
    splits = [builder.info.splits[split] for split in _DAMAGED.get(builder, {})]
    return find_corrupt(
        (file.filename for info in splits for file in info.file_instructions), place
    )


def _parts(name: str, builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[str, range]]:
    """The parts of `split`, see `parts_of`, after its files are examined."""
    check_split(name, split, builder.info.splits)
    for each in split_names(split):
        _examine(builder, each)
    return parts_of(name, split, builder.info.splits)


def _examine(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Raises UserError if a file of `split` is damaged; skips a few corrupt records."""
    import tensorflow_datasets as tfds

    info, damaged = builder.info.splits[split], _DAMAGED.setdefault(builder, {})
    if split in damaged or isinstance(info, tfds.core.splits.MultiSplitInfo):
        return
    lengths = {f.filename: f.examples_in_shard for f in info.file_instructions}
    files = find_files(lengths)
    found: dict[str, Records] = {}
    if sum(file.size for file in files) > BYTES_SAMPLED:
        check_total(files, int(info.num_bytes))
    elif builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        found = examine(tuple(files))
    if found:
        good = {path: len(records.offsets) for path, records in found.items()}
        left = info.replace(shard_lengths=list({**lengths, **good}.values()))
        others = {**builder.info.splits, split: left}
        builder.info.set_splits(tfds.core.splits.SplitDict(others.values()))
    damaged[split] = found


def _count(parts: Sequence[tuple[str, range]]) -> int:
    return sum(len(numbers) for _, numbers in parts)


def _bytes(builder: tfds.core.DatasetBuilder, parts: Sequence[tuple[str, range]]) -> int:
    """The size of `parts`, in proportion to the sizes of whole splits, which TFDS records."""
    infos = builder.info.splits
    sizes = (
        int(infos[split].num_bytes) * len(numbers) // max(1, infos[split].num_examples)
        for split, numbers in parts
    )
    return sum(sizes)


def _sample(builder: tfds.core.DatasetBuilder, key: str) -> Iterator[np.ndarray]:
    """Values of a feature in all splits; of large splits only the first ones."""
    for split in list(builder.info.splits):
        _examine(builder, split)
        info = builder.info.splits[split]
        share = min(1.0, BYTES_SAMPLED / max(1, info.num_bytes))
        first = int(info.num_examples * share)
        values = _read(builder, split, [key]).take(first).map(lambda example: example[key])
        yield from values.batch(_NUMBERS_PER_BATCH).as_numpy_iterator()


def _identify(
    builder: tfds.core.DatasetBuilder,
    split: str,
    parts: Sequence[tuple[str, range]],
    positions: Sequence[int],
) -> list[str]:
    """For each of `positions` in reading order, the slice that holds only that example."""
    names = [f'{name}[{number}:{number + 1}]' for name, numbers in parts for number in numbers]
    order = _reading_order(builder, split)
    return [names[order[position]] for position in positions]


def _image_range(
    name: str, builder: tfds.core.DatasetBuilder, key: str, config: DataConfig
) -> str | None:
    """The range of floating-point images, given or inferred; None for integers."""
    feature, given = builder.info.features[key], config.image_range
    if np.dtype(feature.np_dtype).kind != 'f':
        check_integers(name, given)
        return None
    if given != 'auto':
        return given
    _parts(name, builder, config.train_split)
    examples, decode = _read(builder, config.train_split, [key]), _decoder(feature)
    return find_range(name, config.train_split, examples.map(lambda example: decode(example[key])))


def _bytes_per_example(
    builder: tfds.core.DatasetBuilder, parts: Sequence[tuple[str, range]]
) -> float | None:
    total, count = _bytes(builder, parts), _count(parts)
    return total / count if total and count else None


def _examples(
    builder: tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_key: str,
    label: Label | None,
) -> tf.data.Dataset:
    keys = [image_key] + ([label.key] if label else [])

    def rename(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        number = label.number(example[label.key]) if label else tf.constant(NO_LABEL)
        return {'image': example[image_key], 'label': number}

    dataset = _read(builder, split, keys)
    return dataset.map(rename, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _read(
    builder: tfds.core.DatasetBuilder, split: str | tfds.core.ReadInstruction, keys: Sequence[str]
) -> tf.data.Dataset:
    """The features `keys` of every example of a split, images as they are stored."""
    import tensorflow_datasets as tfds

    class Only(tfds.decode.PartialDecoding):
        """Skips the base class's comparison of features, which logs a warning."""

        def extract_features(self, features: Any) -> Any:
            return tfds.features.FeaturesDict({key: features[key] for key in keys})

    encoded = [k for k in keys if isinstance(builder.info.features[k], tfds.features.Image)]
    decoders = {key: tfds.decode.SkipDecoding() for key in encoded} or None
    files = builder.info.splits[split].file_instructions
    damaged = {k: v for found in _DAMAGED.get(builder, {}).values() for k, v in found.items()}
    if any(file.filename in damaged for file in files):
        features = tfds.features.FeaturesDict({key: builder.info.features[key] for key in keys})
        records = read_files(
            [(file.filename, file.skip, file.take) for file in files],
            damaged,
            at_once=_files_at_once(builder),
            in_a_row=_READ_IN_A_ROW,
        )
        return records.map(
            lambda record: features.deserialize_example(record, decoders=decoders),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    return builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=Only(keys, decoders=decoders),
        read_config=tfds.ReadConfig(
            try_autocache=False,
            interleave_cycle_length=_files_at_once(builder),
            interleave_block_length=_READ_IN_A_ROW,
        ),
    )


def _files_at_once(builder: tfds.core.DatasetBuilder) -> int:
    # TFDS's own choice, explicit because `_share` relies on it.
    return 1 if builder.info.disable_shuffling else 16


def _share(
    builder: tfds.core.DatasetBuilder,
    split: str,
    parts: Sequence[tuple[str, range]],
    worker: Worker,
    examples: Callable[[Any], tf.data.Dataset],
) -> tf.data.Dataset | None:
    """(position in the split, example) from the worker's part of the files.

    None if there are fewer files than workers.
    """
    if len(builder.info.splits[split].file_instructions) < worker.count:
        return None
    own = worker.part(_count(parts))
    instruction = _cut(parts, own)
    # Files are interleaved, so the reading order is not the order within the files.
    position = np.argsort(_reading_order(builder, split))
    positions = position[own.start + _reading_order(builder, instruction)]
    return tf.data.Dataset.zip(
        (tf.data.Dataset.from_tensor_slices(positions), examples(instruction))
    )


def _cut(parts: Sequence[tuple[str, range]], wanted: range) -> tfds.core.ReadInstruction:
    """An instruction that reads the `wanted` examples of `parts`, (split, its examples) each."""
    import tensorflow_datasets as tfds

    pieces, before = [], 0
    for split, numbers in parts:
        own = numbers[max(0, wanted.start - before) : max(0, wanted.stop - before)]
        if own:
            pieces.append(
                tfds.core.ReadInstruction(split, from_=own.start, to=own.stop, unit='abs')
            )
        before += len(numbers)
    return functools.reduce(operator.add, pieces)


def _reading_order(builder: tfds.core.DatasetBuilder, split: Any) -> np.ndarray:
    """For each example in reading order, its position if files were not interleaved.

    Found by interleaving numbers with the operation that TFDS uses for records.
    """
    lengths = np.array([file.take for file in builder.info.splits[split].file_instructions])
    stops = np.cumsum(lengths)
    places = tf.data.Dataset.from_tensor_slices((stops - lengths, stops)).interleave(
        tf.data.Dataset.range,
        cycle_length=_files_at_once(builder),
        block_length=_READ_IN_A_ROW,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return np.concatenate(list(places.batch(_NUMBERS_PER_BATCH).as_numpy_iterator()))


def _decoder(feature: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return feature.decode_example
    return tf.identity
