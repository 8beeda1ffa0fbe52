"""Files of embeddings, read a chunk of rows at a time."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import tensorflow as tf

from app.inference.tables import METADATA_KEY, PLAIN, ROWS_AT_ONCE
from common.errors import UserError, one_line

RECORDED = {
    'checkpoint': str,
    'step': int,
    'weights': str,
    'layer': str,
    'image_size': int,
    'mixed_precision': str,
    'dataset': str,
    'data_dir': str,
}
_UNREADABLE = (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, EOFError)
_TEXTS = ('file', 'split', 'class')

# Vectors [n, d] float32, and the file, split and class of each; '' where there is none.
Rows: TypeAlias = tuple[np.ndarray, list[str], list[str], list[str]]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file of embeddings, open.

    Attributes:
        width: numbers in each row.
        record: where the embeddings come from; None if the file doesn't say.
        rows: makes an iterator of rows, once.
    """

    width: int
    record: Mapping[str, Any] | None
    rows: Callable[[], Iterator[Rows]]


@contextlib.contextmanager
def open_table(path: str) -> Iterator[Stored]:
    """Opens a file that `tables.write_table` wrote, by its extension.

    Args:
        path: of the file, on any file system TensorFlow knows.

    Raises:
        UserError: if it is something else; within the context too, where rows are read.
    """
    extension = os.path.splitext(path)[1].lower()
    if extension not in _READERS:
        raise UserError(
            f'--embeddings must be a file that ends in {", ".join(_READERS)}; found {path!r}.'
        )
    try:
        with _local(path) as place, _READERS[extension](place) as stored:
            yield stored
    except (*_UNREADABLE, zipfile.BadZipFile, pa.ArrowException) as error:
        raise UserError(
            f'--embeddings={path} must be a file that --mode=embed wrote; it cannot be read '
            f'({one_line(error)}). Write it again.'
        ) from error


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
    """A path of this machine by which the file can be read."""
    if '://' not in path:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        tf.io.gfile.copy(path, f'{folder}/file')
        yield f'{folder}/file'


def _record(text: str | bytes | None) -> dict[str, Any] | None:
    """What `Table.record` held; raises ValueError if its values are of other types."""
    if text is None:
        return None
    record = json.loads(text)
    for name, kind in RECORDED.items():
        if not isinstance(record[name], kind):
            raise ValueError(f'{name} of its record must be of type {kind.__name__}')
    return record


@contextlib.contextmanager
def _open_npz(path: str) -> Iterator[Stored]:
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))

        def member(name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype]:
            file = stack.enter_context(archive.open(f'{name}.npy'))
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            if dtype.hasobject:
                raise ValueError(f'{name} holds Python objects')
            return file, shape, dtype

        def whole(name: str) -> np.ndarray:
            file, shape, dtype = member(name)
            return np.frombuffer(file.read(), dtype).reshape(shape)

        def column(name: str) -> Iterator[np.ndarray]:
            file, shape, dtype = member(name)
            row = shape[1:]
            size = dtype.itemsize * math.prod(row)
            for first in range(0, shape[0], ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, shape[0] - first)
                yield np.frombuffer(file.read(count * size), dtype).reshape(count, *row)

        def rows() -> Iterator[Rows]:
            classes = whole('class_names').tolist()
            columns = map(column, ('embeddings', 'files', 'splits', 'labels'))
            for vectors, files, splits, labels in zip(*columns, strict=True):
                named = [classes[i] if 0 <= i < len(classes) else '' for i in labels.tolist()]
                yield vectors, files.tolist(), splits.tolist(), named

        width = member('embeddings')[1][1]
        yield Stored(width, _record(str(whole('record'))), rows)


@contextlib.contextmanager
def _open_parquet(path: str) -> Iterator[Stored]:
    with pa.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        width = schema.field('embedding').type.list_size

        def rows() -> Iterator[Rows]:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                vectors = batch['embedding'].flatten().to_numpy().reshape(-1, width)
                yield vectors, *(_texts(batch[name]) for name in _TEXTS)

        yield Stored(width, _record((schema.metadata or {}).get(METADATA_KEY)), rows)


@contextlib.contextmanager
def _open_csv(path: str) -> Iterator[Stored]:
    with open(path, newline='', encoding='utf-8') as file:
        names = next(csv.reader(file), [])
    axes = [name for name in names if name not in PLAIN]
    if names != [*PLAIN, *(f'e{i}' for i in range(len(axes)))] or not axes:
        raise ValueError(f'its columns are {", ".join(names[:6])}')
    types = {**PLAIN, **dict.fromkeys(axes, pa.float32())}
    reader = pa.csv.open_csv(
        path,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=types),
    )

    def rows() -> Iterator[Rows]:
        for batch in reader:
            vectors = np.stack([batch[name].to_numpy() for name in axes], axis=1)
            yield vectors, *(_texts(batch[name]) for name in _TEXTS)

    with reader:
        yield Stored(len(axes), None, rows)


def _texts(column: pa.Array) -> list[str]:
    return [text or '' for text in column.to_pylist()]


_READERS = {'.npz': _open_npz, '.parquet': _open_parquet, '.csv': _open_csv}
