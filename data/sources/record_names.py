"""Records of TFRecord files by name: `file[#position]`, from 0."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from data.sources.source import NO_LABEL

_HEADER, _FOOTER = 12, 4  # bytes before and after the data of a record
_LENGTH = 8  # bytes at the beginning of the header

Numbers = Mapping[str, np.ndarray]  # path → positions of records, ascending


def name_of(path: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """The name of record `number` of a file, scalar string."""
    return tf.strings.join([path, '[#', tf.strings.as_string(number), ']'])


def encoded_name(path: str, number: int) -> bytes:
    """As `name_of`, outside of graphs."""
    return os.fsencode(f'{path}[#{number}]')


def parse_name(name: bytes) -> tuple[str, int]:
    """Path and position of the record with a `name`."""
    path, number = os.fsdecode(name)[:-1].rsplit('[#', 1)
    return path, int(number)


def data_offsets(path: str, size: int) -> Iterator[tuple[int, int]]:
    """Where the data of each record begin in a local file of `size` bytes, and their length.

    Raises:
        OSError: if the file can't be read, or a record is cut off.
    """
    place = count = 0
    with open(path, 'rb', buffering=0) as file:
        while place < size:
            file.seek(place)
            header = file.read(_LENGTH)
            length = struct.unpack('<Q', header)[0] if len(header) == _LENGTH else size
            if place + _HEADER + length + _FOOTER > size:
                raise OSError(f'what follows record {count} is none, or is cut off')
            yield place + _HEADER, length
            place += _HEADER + length + _FOOTER
            count += 1


def read_record(name: bytes) -> bytes:
    """The data of a record.

    Raises:
        OSError: if there is no such record.
        tf.errors.OpError: as OSError, where files are not local.
    """
    path, number = parse_name(name)
    if '://' in path:
        return next(tf.data.TFRecordDataset(path).skip(number).as_numpy_iterator(), b'')
    for position, (offset, length) in enumerate(data_offsets(path, os.path.getsize(path))):
        if position == number:
            with open(path, 'rb') as file:
                file.seek(offset)
                return file.read(length)
    raise OSError(f'it has no record {number}')


def others_in_files(
    numbers: Numbers, labels: Callable[[str], np.ndarray], name: bytes
) -> Iterator[tuple[bytes, bool]]:
    """The other records of a split in the order in which they may replace one of them.

    The next ones of its class in its file come first, round and round; then the file's others and,
    as reading labels takes long, all records of the files after it.

    Args:
        numbers: which records of each file are in the split.
        labels: path → labels [n] of all its records, NO_LABEL for none.
        name: of the record.

    Yields:
        Name, and whether it stands for the same class.
    """
    path, number = parse_name(name)
    known = labels(path)
    # Without a class all are alike.
    has_class = known[number] != NO_LABEL
    there = np.roll(numbers[path], -np.searchsorted(numbers[path], number))
    there = there[there != number]
    is_same = known[there] == known[number]
    yield from ((encoded_name(path, other), True) for other in there[is_same])
    yield from ((encoded_name(path, other), not has_class) for other in there[~is_same])
    paths = list(numbers)
    place = paths.index(path)
    for file in paths[place + 1 :] + paths[:place]:
        yield from ((encoded_name(file, other), not has_class) for other in numbers[file])
