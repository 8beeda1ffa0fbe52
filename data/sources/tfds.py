"""Any TensorFlow Datasets name, and builders that were prepared on disk."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from data.config import DataConfig
from data.names import find_builder, one_line
from data.sources.source import NO_LABEL, Source
from data.sources.splits import check_split, malformed_split
from data.worker import Worker
from settings import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_READ_IN_A_ROW = 16  # examples of one file before the next one's, TFDS's own choice
_NUMBERS_AT_ONCE = 65_536


def open_tfds(config: DataConfig) -> Source:
    """Opens `config.dataset`, 'name', 'name/config' or 'name/config:version'.

    What is not yet in `config.data_dir` is downloaded and prepared there.

    Args:
        config: `dataset` and `data_dir` are read.

    Returns:
        The source.

    Raises:
        UserError: if the data set doesn't exist, cannot be had or has no images.
    """
    builder = find_builder(config.dataset, config.data_dir)
    # Looked at first: a data set without images shouldn't be downloaded to find that out.
    find_image_feature(config.dataset, builder.info)
    if not builder.is_prepared():
        _prepare(config.dataset, builder)
    return source_of_builder(config.dataset, builder)


def _prepare(name: str, builder: tfds.core.DatasetBuilder) -> None:
    try:
        builder.download_and_prepare()
    # A download can fail in any layer (DNS, HTTP, checksums, manual steps, missing libraries).
    except Exception as error:
        raise UserError(
            f'Data set {name!r} is not prepared in {builder.data_dir} and could not be downloaded; '
            f'prepare it there or give another --data_dir. Cause: {one_line(error)}'
        ) from error


def source_of_builder(name: str, builder: tfds.core.DatasetBuilder) -> Source:
    """Makes a Source of a prepared TFDS builder.

    Args:
        name: what the user called the data set.
        builder: prepared builder.

    Returns:
        The source. Only the image and, where there is one, the label are read; images stay
        encoded where TFDS stores them encoded.

    Raises:
        UserError: if there is no image feature.
    """
    image_key = find_image_feature(name, builder.info)
    label_key = _find_label_feature(builder.info)
    label_feature = builder.info.features[label_key] if label_key else None
    names = label_feature.names if label_feature else None

    def examples(split: Any) -> tf.data.Dataset:
        return _examples(builder, split, image_key, label_key)

    def whole(split: str) -> tf.data.Dataset:
        _split_info(name, builder, split)
        return examples(split)

    def share(split: str, worker: Worker) -> tf.data.Dataset | None:
        files = _split_info(name, builder, split).file_instructions
        if len(files) < worker.count:
            return None
        return _share(builder, split, worker, examples)

    return Source(
        name=name,
        num_classes=label_feature.num_classes if label_feature else None,
        class_names=tuple(names) if names else None,
        num_examples=lambda split: _split_info(name, builder, split).num_examples,
        examples=whole,
        decode=_decoder(builder.info.features[image_key]),
        share=share,
    )


def find_image_feature(name: str, info: tfds.core.DatasetInfo) -> str:
    """The key of the image: the supervised input, 'image', or the only image there is.

    Raises:
        UserError: if there is none, with the features that exist.
    """
    images = [key for key, feature in info.features.items() if _holds_image(feature)]
    supervised = info.supervised_keys[0] if info.supervised_keys else None
    for key in (supervised, 'image'):
        if key in images:
            return key
    if len(images) == 1:
        return images[0]
    wanted = f'an image named "image" (of {", ".join(images)})' if images else 'an image'
    listed = ', '.join(f'{key} ({type(value).__name__})' for key, value in info.features.items())
    raise UserError(
        f'Data set {name!r} must have {wanted}; its features are: {listed}. '
        'Choose a data set of images.'
    )


def _holds_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return True
    if type(feature) is not tfds.features.Tensor or feature.np_dtype.kind not in 'uifb':
        return False
    shape = feature.shape
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] in (None, 1, 2, 3, 4))


def _find_label_feature(info: tfds.core.DatasetInfo) -> str | None:
    """The key of the class label: the supervised target, 'label', or the only one there is."""
    import tensorflow_datasets as tfds

    is_label = tfds.features.ClassLabel
    labels = [key for key, feature in info.features.items() if isinstance(feature, is_label)]
    supervised = info.supervised_keys[1] if info.supervised_keys else None
    for key in (supervised, 'label'):
        if key in labels:
            return key
    return labels[0] if len(labels) == 1 else None


def _split_info(name: str, builder: tfds.core.DatasetBuilder, split: str) -> Any:
    check_split(name, split, builder.info.splits)
    try:
        return builder.info.splits[split]
    except (ValueError, AssertionError, KeyError) as error:
        raise malformed_split(name, split) from error


def _examples(
    builder: tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_key: str,
    label_key: str | None,
) -> tf.data.Dataset:
    import tensorflow_datasets as tfds

    wanted = [key for key in (image_key, label_key) if key]

    class Only(tfds.decode.PartialDecoding):
        """As its parent, without comparing features with themselves, which logs a warning."""

        def extract_features(self, features: Any) -> Any:
            return tfds.features.FeaturesDict({key: features[key] for key in wanted})

    is_encoded = isinstance(builder.info.features[image_key], tfds.features.Image)
    decoders = {image_key: tfds.decode.SkipDecoding()} if is_encoded else None
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=Only(wanted, decoders=decoders),
        read_config=tfds.ReadConfig(
            try_autocache=False,
            interleave_cycle_length=_files_at_once(builder),
            interleave_block_length=_READ_IN_A_ROW,
        ),
    )

    def rename(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        label = example[label_key] if label_key else tf.constant(NO_LABEL)
        return {'image': example[image_key], 'label': tf.cast(label, tf.int32)}

    return dataset.map(rename, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _files_at_once(builder: tfds.core.DatasetBuilder) -> int:
    # TFDS's own choice, said here because `_share` has to know it.
    return 1 if builder.info.disable_shuffling else 16


def _share(
    builder: tfds.core.DatasetBuilder,
    split: str,
    worker: Worker,
    examples: Callable[[Any], tf.data.Dataset],
) -> tf.data.Dataset:
    """(position in the split, example) of the part of the files that is the worker's."""
    import tensorflow_datasets as tfds

    infos = builder.info.splits
    parts = [
        (part.splitname, range(infos[part.splitname].num_examples)[part.from_ : part.to])
        for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    ]
    own = worker.part(sum(len(numbers) for _, numbers in parts))
    instruction = _cut(parts, own)
    # Several files are read in turns, so the order of reading is not the one within the files.
    position = np.argsort(_reading_order(builder, split))
    positions = position[own.start + _reading_order(builder, instruction)]
    return tf.data.Dataset.zip(
        (tf.data.Dataset.from_tensor_slices(positions), examples(instruction))
    )


def _cut(parts: Sequence[tuple[str, range]], wanted: range) -> tfds.core.ReadInstruction:
    """What reads the `wanted` ones of all examples of `parts`, (split, its examples) each."""
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
    """For every example that is read, its place if the files were read one after the other.

    Found with the operation that TFDS reads with, over numbers.
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
    return np.concatenate(list(places.batch(_NUMBERS_AT_ONCE).as_numpy_iterator()))


def _decoder(feature: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return feature.decode_example
    return tf.identity
