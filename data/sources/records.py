"""Checks TFRecord files, and reads the good records of damaged ones.

A file is a sequence of records: length, checksum of the length, data, checksum of the data.
TensorFlow's reader stops at a corrupt record; this module also finds the records after it.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError, printable

_HEADER, _FOOTER = 12, 4  # bytes before and after the data of a record
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected
_MASK = 0xA282EAD8
_RECORDS_PER_BATCH = 256
_BYTES_PER_SEARCH = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
        path: of the file.
        expected: number of records that it should have by the metadata of the data set.
        size: bytes on disk.
        modified: time of the last write, in nanoseconds.
    """

    path: str
    expected: int
    size: int
    modified: int


@dataclasses.dataclass(frozen=True)
class Records:
    """The good records of a damaged file.

    Attributes:
        offsets: [n] int64, where the data of each record begins.
        lengths: [n] int64, bytes of data.
        gaps: number of corrupt stretches between them.
        is_cut_off: whether the last record continues beyond the end of the file.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    gaps: int
    is_cut_off: bool


def find_files(expected: Mapping[str, int]) -> list[File]:
    """Finds the files of a split on disk.

    Args:
        expected: path → number of records.

    Raises:
        UserError: if one is missing or empty.
    """
    files = []
    for path, count in expected.items():
        try:
            stat = tf.io.gfile.stat(path)
        except tf.errors.OpError as error:
            what = 'missing' if isinstance(error, tf.errors.NotFoundError) else 'not readable'
            raise _damaged(path, f'hold {count} records', f'it {what}') from error
        if count and not stat.length:
            raise _damaged(path, f'hold {count} records', 'it empty')
        files.append(File(path, count, stat.length, stat.mtime_nsec))
    return files


def check_total(files: Sequence[File], num_bytes: int) -> None:
    """Raises UserError if files have fewer bytes than their records by the metadata."""
    found = sum(file.size for file in files)
    if found < num_bytes:
        smallest = min(files, key=lambda file: file.size / max(1, file.expected))
        raise UserError(
            f'The {len(files)} files of the split of {printable(smallest.path)} should have more '
            f'than {num_bytes:,} bytes, as dataset_info.json says; found {found:,}. Some are cut '
            'off: restore them, or prepare the data set again.'
        )


@functools.cache
def examine(files: tuple[File, ...]) -> dict[str, Records]:
    """Reads all records and checks their checksums and their number.

    Prints how many corrupt records are skipped.

    Args:
        files: of one split.

    Returns:
        Path → good records, only for files with corrupt ones.

    Raises:
        UserError: if a file is cut off, or holds another number of records than it should.
    """
    return {file.path: _salvage(file) for file in files if _count(file.path) != file.expected}


def _count(path: str) -> int:
    """The number of records of a file, -1 if one is corrupt."""
    try:
        # Eagerly, because tracing would take longer than reading a small file.
        return sum(len(batch) for batch in tf.data.TFRecordDataset(path).batch(_RECORDS_PER_BATCH))
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
        return -1


def _salvage(file: File) -> Records:
    """The good records of a file with a few corrupt ones."""
    with tf.io.gfile.GFile(file.path, 'rb') as opened:
        records = find_records(np.frombuffer(opened.read(), np.uint8))
    good, lost = len(records.offsets), file.expected - len(records.offsets)
    if records.is_cut_off:
        raise _damaged(file.path, f'hold {file.expected} records', f'it cut off after {good}')
    if not records.gaps or lost < records.gaps or 2 * good < file.expected:
        corrupt = f', and {records.gaps} corrupt' if records.gaps else ''
        raise _damaged(file.path, f'hold {file.expected} records', f'{good} whole ones{corrupt}')
    are = 'record of {} is' if lost == 1 else 'records of {} are'
    print(f'{lost} {are.format(printable(file.path))} corrupt and skipped.', flush=True)
    return records


def _damaged(path: str, expected: str, found: str) -> UserError:
    return UserError(
        f'{printable(path)} must {expected}, as dataset_info.json says; found {found}. Restore the '
        'file, or prepare the data set again.'
    )


def find_records(content: np.ndarray) -> Records:
    """Finds the records of a file.

    Args:
        content: [n] uint8.
    """
    headers, place, gaps = [np.zeros([0], np.int64)], 0, 0
    while place < len(content):
        found, place = _follow(content, place)
        intact = _checksums(content, found, np.full(len(found), 8)) == _stored(content, found + 8)
        good = len(found) if intact.all() else int(np.argmin(intact))
        headers.append(found[:good])
        if good < len(found):
            gaps += 1
            place = _next_header(content, int(found[good]) + 1)
    starts = np.concatenate(headers)
    sizes = _lengths(content, starts)
    fits = starts + sizes <= len(content) - _HEADER - _FOOTER
    starts, sizes = starts[fits] + _HEADER, sizes[fits]
    whole = _checksums(content, starts, sizes) == _stored(content, starts + sizes)
    return Records(starts[whole], sizes[whole], gaps + int(np.sum(~whole)), place > len(content))


def _follow(content: np.ndarray, place: int) -> tuple[np.ndarray, int]:
    """Where records begin from `place` on, going by lengths alone, and the last one's end."""
    found = []
    while place + _HEADER <= len(content):
        found.append(place)
        place += _HEADER + struct.unpack_from('<Q', content, place)[0] + _FOOTER
    # Bytes too few for a header are a header that is cut off.
    return np.array(found, np.int64), place if place >= len(content) else len(content) + 1


def _lengths(content: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return content[starts[:, np.newaxis] + np.arange(8)].view('<i8')[:, 0]


def find_corrupt(paths: Iterable[str], place: int) -> str | None:
    """Which of several files has corrupt data at byte `place`; None if unknown."""
    for path in paths:
        with tf.io.gfile.GFile(path, 'rb') as file:
            if place < _HEADER or file.size() < place:
                continue
            file.seek(place - _HEADER)
            header = np.frombuffer(file.read(_HEADER), np.uint8)
            if not _is_header(header):
                continue
            (length,) = struct.unpack_from('<Q', header)
            content = np.frombuffer(file.read(length + _FOOTER), np.uint8)
        framed = np.concatenate([header, content])
        if len(content) < length + _FOOTER or find_records(framed).gaps:
            return path
    return None


def _is_header(header: np.ndarray) -> bool:
    return len(header) == _HEADER and len(_headers(header)) == 1


def _next_header(content: np.ndarray, place: int) -> int:
    """Where the next record begins, from `place` on; the end of the file if there is none."""
    for start in range(place, len(content), _BYTES_PER_SEARCH):
        found = _headers(content[start : start + _BYTES_PER_SEARCH + _HEADER - 1])
        if len(found):
            return start + int(found[0])
    return len(content)


def _headers(content: np.ndarray) -> np.ndarray:
    """Offsets in `content` of each length that is followed by its checksum."""
    starts = np.arange(max(0, len(content) - _HEADER + 1))
    lengths = np.full(len(starts), 8)
    return np.flatnonzero(_checksums(content, starts, lengths) == _stored(content, starts + 8))


def _stored(content: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The checksums stored in a file at `places`, [n] uint32."""
    bytes_ = content[places[:, np.newaxis] + np.arange(4)].astype(np.uint32)
    return bytes_ @ (np.uint32(1) << np.arange(0, 32, 8, dtype=np.uint32))


def _checksums(content: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Masked CRC-32C of parts of `content`, vectorized over the parts: [n] uint32."""
    table = _table()
    order = np.argsort(-lengths, kind='stable')  # longest first: unfinished parts are a prefix
    starts, ascending = starts[order], np.sort(lengths)
    state = np.full(len(starts), 0xFFFFFFFF, np.uint32)
    for i in range(int(ascending[-1]) if len(ascending) else 0):
        n = len(starts) - int(np.searchsorted(ascending, i, side='right'))
        state[:n] = table[(state[:n] ^ content[starts[:n] + i]) & 0xFF] ^ (state[:n] >> 8)
    sums = np.empty_like(state)
    sums[order] = ~state
    return ((sums >> 15) | (sums << 17)) + np.uint32(_MASK)


@functools.cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


def read_files(
    files: Sequence[tuple[str, int, int]],
    damaged: Mapping[str, Records],
    *,
    at_once: int,
    in_a_row: int,
) -> tf.data.Dataset:
    """The good records of several files, interleaved as TFDS reads them.

    A damaged file is held in memory while it is read.

    Args:
        files: path, number of records to skip, number to read.
        damaged: path → good records, for damaged files.
        at_once: number of files that are interleaved.
        in_a_row: number of consecutive records of one file.

    Returns:
        Dataset of scalar strings.
    """
    none = np.zeros([0], np.int64)
    found = [damaged.get(path) for path, _, _ in files]
    offsets, lengths = (
        tf.constant(np.concatenate([none, *(getattr(r, key) for r in found if r is not None)]))
        for key in ('offsets', 'lengths')
    )
    sizes = [0 if records is None else len(records.offsets) for records in found]
    first = np.cumsum([0, *sizes[:-1]])
    paths, skip, take = zip(*files, strict=True)
    rows = tf.data.Dataset.from_tensor_slices(
        (list(paths), np.int64(skip), np.int64(take), np.int64(first), np.bool_(sizes))
    )

    def read(
        path: tf.Tensor, skip: tf.Tensor, take: tf.Tensor, first: tf.Tensor, damaged: tf.Tensor
    ) -> tf.data.Dataset:
        whole = (
            tf.data.TFRecordDataset(path)
            .skip(skip)
            .take(tf.where(damaged, tf.zeros_like(take), take))
        )
        content = tf.data.Dataset.from_tensors(path).repeat(tf.cast(damaged, tf.int64))
        parts = content.map(tf.io.read_file).flat_map(
            lambda content: tf.data.Dataset.range(first + skip, first + skip + take).map(
                lambda i: tf.strings.substr(content, offsets[i], lengths[i])
            )
        )
        return whole.concatenate(parts)

    return in_turns(rows, read, at_once=at_once, in_a_row=in_a_row)


def in_turns(
    files: tf.data.Dataset,
    of_file: Callable[..., tf.data.Dataset],
    *,
    at_once: int,
    in_a_row: int,
) -> tf.data.Dataset:
    """What `of_file` makes of each of `files`, in an order that depends on their lengths alone.

    Args:
        files: one element for each file.
        of_file: element → what is in the file.
        at_once: number of files that are interleaved.
        in_a_row: number of consecutive elements of one file.
    """
    return files.interleave(
        tf.autograph.experimental.do_not_convert(of_file),
        cycle_length=at_once,
        block_length=in_a_row,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
