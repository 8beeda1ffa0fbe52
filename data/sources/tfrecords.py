"""TFRecord files of encoded images, written by whatever program: tf.train.Example each.

What is their image and their label is told by names, or guessed from the first record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line, printable
from data.config import DataConfig
from data.image_files import decode_file
from data.image_range import check_integers
from data.names import PREPARED_FILE, folders_of, how_to_open, is_record_file
from data.sources.image_folder import asked_by
from data.sources.layout import EVALUATION, TRAIN, Asked, describe_classes
from data.sources.record_names import (
    Numbers,
    data_offsets,
    name_of,
    others_in_files,
    read_record,
)
from data.sources.records import find_corrupt, in_turns
from data.sources.skipped_files import SkippedFiles
from data.sources.source import BYTES_SAMPLED, NO_LABEL, Source
from data.sources.splits import distinct, parts_of

_IMAGE_KEYS = ('image/encoded', 'image', 'image_raw', 'encoded', 'jpeg', 'jpg', 'png')
_LABEL_KEYS = ('image/class/label', 'label', 'image/class/text', 'labels', 'class', 'target')
_SPLITS = ('train', 'training', 'validation', 'val', 'valid', 'test')
_BEGINNINGS = (b'\xff\xd8\xff', b'\x89PNG', b'GIF8', b'RIFF', b'BM', b'II*\0', b'MM\0*')
_IN_TURNS = {'at_once': 16, 'in_a_row': 16}  # as TFDS reads
_RECORDS_LOOKED_AT = 100  # for their features
_LABELS_AT_ONCE, _PLACES_AT_ONCE = 1024, 4096
_GZIP = b'\x1f\x8b'


@dataclasses.dataclass(frozen=True)
class _File:
    """A TFRecord file: its path, the number of its records and its size in bytes."""

    path: str
    count: int
    size: int


@dataclasses.dataclass(frozen=True)
class _Features:
    """Which features are read.

    Attributes:
        image: name of the image.
        label: name of the label, None where there is none.
        is_text: whether labels are names of classes.
        hint: where there is no label, what could be one; may be empty.
    """

    image: str
    label: str | None
    is_text: bool = False
    hint: str = ''

    def spec(self, *, image: bool = True) -> dict[str, tf.io.FixedLenFeature]:
        """What `tf.io.parse_single_example` is to read."""
        spec = {self.image: tf.io.FixedLenFeature([], tf.string)} if image else {}
        if self.label and self.is_text:
            spec[self.label] = tf.io.FixedLenFeature([], tf.string, '')
        elif self.label:
            spec[self.label] = tf.io.FixedLenFeature([], tf.int64, NO_LABEL)
        return spec


@dataclasses.dataclass(frozen=True)
class _Part:
    """The records of a split: of `files` those at `chosen` places in reading order, or all."""

    files: tuple[_File, ...]
    chosen: np.ndarray | None = None

    @property
    def count(self) -> int:
        return sum(f.count for f in self.files) if self.chosen is None else int(self.chosen.sum())

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def records(self) -> tf.data.Dataset:
        """(name, serialized example), always in the same order."""
        if self.chosen is None:
            return self._all_records()
        chosen = tf.constant(self.chosen)
        numbered = self._all_records().enumerate().filter(lambda place, _: chosen[place])
        return numbered.map(lambda _, record: record)

    def places(self) -> np.ndarray:
        """Number of the file, and position in it, of each record as `records` reads, [n, 2]."""

        def of_file(file: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.range(count).map(lambda number: tf.stack([file, number]))

        counts = tf.data.Dataset.from_tensor_slices([file.count for file in self.files])
        rows = counts.map(lambda count: tf.cast(count, tf.int64)).enumerate()
        batches = in_turns(rows, of_file, **_IN_TURNS).batch(_PLACES_AT_ONCE)
        places = np.concatenate(list(batches.as_numpy_iterator()))
        return places if self.chosen is None else places[self.chosen]

    def labels(self, features: _Features) -> Iterator[np.ndarray]:
        """The labels as they are stored, in the order of `records`, in arrays of many."""
        spec = features.spec(image=False)
        batches = self._all_records().batch(_LABELS_AT_ONCE)
        read = batches.map(
            lambda _, records: tf.io.parse_example(records, spec)[features.label],
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        before = 0
        for labels in read.as_numpy_iterator():
            after = before + len(labels)
            yield labels if self.chosen is None else labels[self.chosen[before:after]]
            before = after

    def _all_records(self) -> tf.data.Dataset:
        def of_file(path: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
            records = tf.data.TFRecordDataset(path).take(count).enumerate()
            return records.map(lambda number, record: (name_of(path, number), record))

        paths = [os.fsencode(file.path) for file in self.files]
        counts = np.array([file.count for file in self.files], np.int64)
        files = tf.data.Dataset.from_tensor_slices((paths, counts))
        return in_turns(files, of_file, **_IN_TURNS)


def open_tfrecords(config: DataConfig) -> Source:
    """Opens the TFRecord files of `config.data_dir`: a pattern, a folder, files, or several.

    Args:
        config: `data_dir`, `image_key`, `label_key`, `train_split`, `eval_split` and
            `holdout_fraction` are read.

    Raises:
        UserError: if there are none, or they hold no encoded images.
    """
    check_integers('tfrecords', config.image_range)
    files = _find(config.data_dir or '')
    features = _features(files[0], config)
    parts, told = _parts(files, asked_by(config))
    classes = _classes(parts, features) if features.label else None
    label = f'label {features.label}' if features.label else 'no label'
    total = sum(file.count for file in files)
    summary = [
        f'{len(files):,} TFRecord file{"s" if len(files) > 1 else ""} of {total:,} images '
        f'(image {features.image}, {label})',
        *told,
        *(_described(classes) if classes else []),
    ]
    line = f'{printable(config.data_dir or "")}: {"; ".join(summary)}'
    return _source(_Records(parts, features, classes), line, config)


def _described(classes: _Classes) -> list[str]:
    names = classes.names or [str(number) for number in range(len(classes.counts))]
    looked = '' if classes.complete else ' among the first records'
    return [words + looked for words in describe_classes(names, classes.counts, 0)]


@dataclasses.dataclass(frozen=True)
class _Classes:
    """What labels stand for.

    Attributes:
        counts: [c] int64, how often each was seen.
        names: of the classes; None where they are numbers.
        complete: whether all records were looked at.
    """

    counts: np.ndarray
    names: tuple[str, ...] | None
    complete: bool


@dataclasses.dataclass(frozen=True)
class _Records:
    """The records of a data set.

    Attributes:
        parts: split → its records.
        features: which features are read.
        classes: what labels stand for; None without labels.
    """

    parts: Mapping[str, _Part]
    features: _Features
    classes: _Classes | None

    def pieces(self, split: str) -> list[tuple[str, range]]:
        """The parts that `split` consists of, and which of their records."""
        return _pieces(self.parts, split)

    def count(self, split: str) -> int:
        return sum(len(numbers) for _, numbers in self.pieces(split))

    def examples(self, split: str) -> tf.data.Dataset:
        return _read(self.parts, self.pieces(split), self._parse)

    def _parse(self, name: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_single_example(record, self.features.spec())
        label = _numbering(self.features, self.classes)(parsed)
        return {'image': parsed[self.features.image], 'label': label, 'path': name}

    def labels(self, split: str) -> Iterator[np.ndarray]:
        for name, numbers in self.pieces(split):
            for stored in _cut(self.parts[name].labels(self.features), numbers):
                yield _numbers(stored, self.classes)

    def labels_of_file(self, path: str) -> np.ndarray:
        """The labels of all records of a file, [n] int32."""
        (file,) = {f for part in self.parts.values() for f in part.files if f.path == path}
        if self.classes is None:
            return np.full([file.count], NO_LABEL, np.int32)
        return _numbers(np.concatenate(list(_Part((file,)).labels(self.features))), self.classes)

    def mean_size(self, split: str) -> float | None:
        """Bytes per record; None if there is none."""
        found = [self.parts[name] for name, _ in self.pieces(split)]
        count = sum(sum(file.count for file in part.files) for part in found)
        return sum(part.size for part in found) / count if count else None

    def corrupt_file(self, place: int) -> str | None:
        files = (file.path for part in self.parts.values() for file in part.files)
        return find_corrupt(files, place)

    def skipped(self, config: DataConfig) -> SkippedFiles:
        """The damaged ones; what may replace them is looked up once per split and file."""
        members = functools.lru_cache(maxsize=4)(
            lambda split: _members(self.parts, self.pieces(split))
        )
        labels = functools.lru_cache(maxsize=4)(self.labels_of_file)
        return SkippedFiles(
            'tfrecords',
            count=self.count,
            read=lambda name: _image_of(read_record(name), self.features),
            others=lambda split, name: others_in_files(members(split), labels, name),
            max_pixels=config.max_pixels,
            max_fraction=config.max_bad_fraction,
        )


def _source(records: _Records, summary: str, config: DataConfig) -> Source:
    classes = records.classes
    named = classes is not None and classes.names is not None
    return Source(
        name='tfrecords',
        num_classes=len(classes.counts) if classes else None,
        class_names=tuple(map(printable, classes.names)) if named else None,
        num_examples=records.count,
        examples=records.examples,
        decode=functools.partial(decode_file, max_pixels=config.max_pixels),
        labels=records.labels if classes else None,
        label_hint=records.features.hint,
        label_bytes=lambda split: int(records.count(split) * (records.mean_size(split) or 0)),
        identify=lambda split, positions: _identify(records.pieces(split), positions),
        corrupt_file=records.corrupt_file,
        bytes_per_example=records.mean_size,
        skipped=records.skipped(config),
        splits=distinct(records.parts),
        summary=summary,
    )


def _members(parts: Mapping[str, _Part], pieces: Sequence[tuple[str, range]]) -> Numbers:
    """The positions of the records of a split by the file that they are in."""
    found: dict[str, list[np.ndarray]] = {}
    for name, numbers in pieces:
        places = parts[name].places()[numbers.start : numbers.stop]
        for number, file in enumerate(parts[name].files):
            found.setdefault(file.path, []).append(places[places[:, 0] == number, 1])
    return {path: np.unique(np.concatenate(those)) for path, those in sorted(found.items())}


def _image_of(record: bytes, features: _Features) -> bytes:
    return tf.io.parse_single_example(record, features.spec())[features.image].numpy()


def _cut(arrays: Iterator[np.ndarray], numbers: range) -> Iterator[np.ndarray]:
    """Of values that come in arrays those at the places `numbers`."""
    before = 0
    for array in arrays:
        yield array[max(0, numbers.start - before) : max(0, numbers.stop - before)]
        before += len(array)
        if before >= numbers.stop:
            return


def _numbers(stored: np.ndarray, classes: _Classes) -> np.ndarray:
    """Labels as they are stored → classes, [n] int32."""
    if classes.names is None:
        return stored.astype(np.int32)
    number = {os.fsencode(name): label for label, name in enumerate(classes.names)}
    return np.array([number.get(name, NO_LABEL) for name in stored], np.int32)


def _numbering(
    features: _Features, classes: _Classes | None
) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
    """Parsed features → the class, int32 scalar."""
    if classes is None:
        return lambda parsed: tf.constant(NO_LABEL)
    if classes.names is None:
        return lambda parsed: tf.cast(parsed[features.label], tf.int32)
    names = tf.constant([os.fsencode(name) for name in classes.names])

    def number(parsed: Mapping[str, tf.Tensor]) -> tf.Tensor:
        is_it = tf.equal(names, parsed[features.label])
        found = tf.argmax(is_it, output_type=tf.int32)
        return tf.where(tf.reduce_any(is_it), found, NO_LABEL)

    return number


def _pieces(parts: Mapping[str, _Part], split: str) -> list[tuple[str, range]]:
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[part.count], num_bytes=0)
        for name, part in parts.items()
    }
    return parts_of('tfrecords', split, infos)


def _read(
    parts: Mapping[str, _Part],
    pieces: Sequence[tuple[str, range]],
    parse: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
) -> tf.data.Dataset:
    """What `parse` makes of the name and data of each record of `pieces`."""
    plain = tf.autograph.experimental.do_not_convert(parse)
    datasets = [
        parts[name].records().skip(numbers.start).take(len(numbers)) for name, numbers in pieces
    ]
    records = datasets[0]
    for other in datasets[1:]:
        records = records.concatenate(other)
    return records.map(plain, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _identify(pieces: Sequence[tuple[str, range]], positions: Sequence[int]) -> list[str]:
    names = [f'{name}[{number}:{number + 1}]' for name, numbers in pieces for number in numbers]
    return [names[position] for position in positions]


# --- which files, and how many records


def _find(data_dir: str) -> list[_File]:
    """The TFRecord files that `data_dir` names, sorted by path.

    Raises:
        UserError: if there are none, TFDS prepared them, or one of them is damaged.
    """
    paths = sorted({path for place in folders_of(data_dir) for path in _paths(place)})
    for folder in sorted({os.path.dirname(path) for path in paths}):
        if tf.io.gfile.exists(os.path.join(folder, PREPARED_FILE)):
            raise UserError(
                f'--data_dir={printable(data_dir)} must hold TFRecord files of any program; found '
                f'a data set that TensorFlow Datasets prepared. Give {how_to_open(folder)}.'
            )
    files = [_counted(path) for path in paths]
    if not any(file.count for file in files):
        found = f'{len(files)} empty files' if files else 'no such files'
        raise UserError(
            f'--data_dir={printable(data_dir)} must name TFRecord files, such as *.tfrecord or '
            f'train-00000-of-00010; found {found}. Check the pattern.'
        )
    return [file for file in files if file.count]


def _paths(place: str) -> list[str]:
    if tf.io.gfile.isdir(place):
        walk = tf.io.gfile.walk(place)
        return [os.path.join(at, n) for at, _, names in walk for n in names if is_record_file(n)]
    return [path for path in tf.io.gfile.glob(place) if not tf.io.gfile.isdir(path)]


def _counted(path: str) -> _File:
    try:
        with tf.io.gfile.GFile(path, 'rb') as file:
            size, beginning = file.size(), file.read(2)
        if beginning == _GZIP:
            raise UserError(
                f'{printable(path)} must be a TFRecord file without compression; found gzip. '
                'Unpack it first.'
            )
        count = _count_remote(path) if '://' in path else sum(1 for _ in data_offsets(path, size))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f'{printable(path)} must be a TFRecord file that can be read; found otherwise '
            f'({printable(one_line(error))}). Restore it, or leave it out.'
        ) from error
    return _File(path, count, size)


def _count_remote(path: str) -> int:
    records = tf.data.TFRecordDataset(path).batch(256)
    return sum(len(batch) for batch in records)


# --- splits


def _parts(files: Sequence[_File], asked: Asked) -> tuple[dict[str, _Part], list[str]]:
    """The splits, by the names of files and folders, and what to say of them."""
    named: dict[str, list[_File]] = {}
    sorted_in = len({os.path.dirname(file.path) for file in files}) > 1
    for file in files:
        named.setdefault(_split_of(file.path, sorted_in), []).append(file)
    parts = {split: _Part(tuple(found)) for split, found in sorted(named.items())}
    told = ['splits ' + ', '.join(f'{name} {part.count:,}' for name, part in parts.items())]
    told = told if len(parts) > 1 else []
    missing = [name for name in asked.evaluation if name not in parts]
    others = [name for name in _SPLITS[2:] if name in parts]
    if EVALUATION in missing and others:
        parts[EVALUATION] = parts[others[0]]
        told.append(f'{EVALUATION} is the split {others[0]}')
    elif missing and not others and TRAIN in parts and asked.fraction:
        told += _hold_out(parts, missing, asked.fraction)
    return parts, told


def _hold_out(parts: dict[str, _Part], missing: Sequence[str], fraction: float) -> list[str]:
    """Holds out records that lie evenly among all: of every class, were they sorted by class."""
    total, files = parts[TRAIN].count, parts[TRAIN].files
    places = np.floor(np.arange(total + 1) * fraction)
    held = np.diff(places) > 0
    if not held.any():
        return []
    wanted = next((name for name in missing if name in _SPLITS), EVALUATION)
    parts[TRAIN], parts[wanted] = _Part(files, ~held), _Part(files, held)
    count = int(held.sum())
    return [f'{count:,} of {TRAIN} are held out as {wanted} (--holdout_fraction={fraction:g})']


def _split_of(path: str, sorted_in: bool) -> str:
    """The split that a file belongs to, by its name or, where folders sort them, its folder's."""
    folder, name = os.path.split(path)
    words = re.split('[^a-z]+', name.lower())
    words += [os.path.basename(folder).lower()] if sorted_in else []
    found = next((word for word in words if word in _SPLITS), TRAIN)
    return TRAIN if found == 'training' else found


# --- features


def _features(file: _File, config: DataConfig) -> _Features:
    """Image and label, by what the first record with an image holds.

    Raises:
        UserError: if there is no such image, or not what is asked for.
    """
    found = _first_with_image(file)
    image = _image_key(file, found, config.image_key)
    label = _label_key(file, found, config.label_key)
    if label is not None:
        return _Features(image, label, _kind(found[label]) == 'bytes')
    could = [printable(key) for key, f in sorted(found.items()) if _is_label(f) and key != image]
    hint = f'{" or ".join(could[:3])} could be one: choose with --label_key' if could else ''
    return _Features(image, None, hint=hint)


def _first_with_image(file: _File) -> dict[str, tf.train.Feature]:
    """The features of the first record with an image, as some may be damaged, or of the first."""
    records = tf.data.TFRecordDataset(file.path).take(_RECORDS_LOOKED_AT)
    parsed = (_parsed(file, record) for record in records.as_numpy_iterator())
    with _named_if_corrupt([file.path]):
        first = next(parsed)
        both = itertools.chain([first], parsed)
        return next((each for each in both if any(map(_is_image, each.values()))), first)


def _parsed(file: _File, record: bytes) -> dict[str, tf.train.Feature]:
    try:
        return dict(tf.train.Example.FromString(record).features.feature)
    except Exception as error:  # protobuf's, which has no public name in every release
        raise UserError(
            f'{printable(file.path)} must hold tf.train.Example records; found something else '
            f'({one_line(error)}). Write them anew.'
        ) from error


def _image_key(file: _File, found: Mapping[str, tf.train.Feature], asked: str | None) -> str:
    images = [key for key, feature in found.items() if _is_image(feature)]
    if asked is not None:
        if asked in found and _kind(found[asked]) == 'bytes':
            return asked
        raise _wrong_key('image_key', asked, 'encoded image', file, found)
    likely = next((key for key in _IMAGE_KEYS if key in images), None)
    if likely or len(images) == 1:
        return likely or images[0]
    could = f'several: {", ".join(sorted(images))}' if images else 'none'
    raise UserError(
        f'{printable(file.path)} must hold an encoded image; found {could} among '
        f'{_listed(found)}. Choose one with --image_key.'
    )


def _label_key(file: _File, found: Mapping[str, tf.train.Feature], asked: str | None) -> str | None:
    labels = [key for key, feature in found.items() if _is_label(feature)]
    if asked is not None and asked not in labels:
        raise _wrong_key('label_key', asked, 'whole number or text', file, found)
    return asked or next((key for key in _LABEL_KEYS if key in labels), None)


def _wrong_key(
    flag: str, asked: str, kind: str, file: _File, found: Mapping[str, tf.train.Feature]
) -> UserError:
    there = 'another kind' if asked in found else 'no such feature'
    return UserError(
        f'--{flag}={printable(asked)} must name a feature of one {kind}; found {there} in '
        f'{printable(file.path)}, which holds {_listed(found)}. Choose one of these.'
    )


def _kind(feature: tf.train.Feature) -> str:
    """'bytes', 'int64' or 'float' of a feature with one value; '' of others."""
    kind = feature.WhichOneof('kind') or ''
    return kind.removesuffix('_list') if kind and len(getattr(feature, kind).value) == 1 else ''


def _is_image(feature: tf.train.Feature) -> bool:
    if _kind(feature) != 'bytes':
        return False
    content = feature.bytes_list.value[0]
    # AVIF and HEIC say what they are behind the length of their first box.
    return content.startswith(_BEGINNINGS) or content[4:8] == b'ftyp'


def _is_label(feature: tf.train.Feature) -> bool:
    return _kind(feature) == 'int64' or (_kind(feature) == 'bytes' and not _is_image(feature))


def _listed(found: Mapping[str, tf.train.Feature]) -> str:
    return ', '.join(
        f'{printable(key)} ({_kind(feature) or "several values"})'
        for key, feature in sorted(found.items())
    )


@contextlib.contextmanager
def _named_if_corrupt(paths: Iterable[str]) -> Iterator[None]:
    """Raises UserError with the name of the file where a record of one is found to be corrupt."""
    try:
        yield
    except tf.errors.DataLossError as error:
        place = re.search(r'corrupted record at (\d+)', str(error))
        path = find_corrupt(paths, int(place[1])) if place else None
        raise UserError(
            f'{printable(path or "Each TFRecord file")} must hold whole records; found a corrupted '
            f'record{f" at {place[1]}" if place else ""}. Restore the file, or leave it out.'
        ) from error


def _classes(parts: Mapping[str, _Part], features: _Features) -> _Classes:
    """The classes of all splits, by the first records where they are many.

    Raises:
        UserError: if labels are no classes.
    """
    files = {file.path: file for part in parts.values() for file in part.files}
    part = _Part(tuple(files.values()))
    first = int(part.count * min(1.0, BYTES_SAMPLED / max(1, part.size)))
    complete = first >= part.count
    with _named_if_corrupt(files):
        seen = list(_cut(part.labels(features), range(first)))
    values, counts = np.unique(np.concatenate(seen), return_counts=True)
    if features.is_text:
        known = values != b''
        names = tuple(os.fsdecode(name) for name in values[known])
        return _Classes(counts[known], names, complete)
    if values[-1] > 2**31 - 2 or values[0] < NO_LABEL or values[-1] < 0:
        raise UserError(
            f'Labels must be whole numbers from 0 on, or {NO_LABEL} for none; found '
            f'{values[0]} to {values[-1]} in feature {features.label!r}. Choose another '
            '--label_key.'
        )
    known = values >= 0
    by_class = np.zeros([int(values[-1]) + 1], np.int64)
    by_class[values[known]] = counts[known]
    return _Classes(by_class, None, complete)
