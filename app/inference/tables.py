"""Files of embeddings, .npz, Parquet or CSV, written a chunk of rows at a time."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

ROWS_AT_ONCE = 8192
METADATA_KEY = b'simclr'  # of the record in a Parquet file
PLAIN = {'file': pa.string(), 'split': pa.string(), 'label': pa.int32(), 'class': pa.string()}
_BEGINNING = (1980, 1, 1, 0, 0, 0)  # of ZIP's calendar: files with the same rows are the same


@dataclasses.dataclass(frozen=True)
class Names:
    """What is known of some images.

    Attributes:
        files: [n], name of each file.
        splits: [n], the split it is in.
        labels: [n] int32, its class; -1 for none.
    """

    files: Sequence[str]
    splits: Sequence[str]
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """Embeddings of images, in chunks of `ROWS_AT_ONCE` rows.

    Attributes:
        count: number of rows.
        width: numbers in each.
        vectors: makes an iterator of [n, width] float32.
        names: makes an iterator of the names of the same rows.
        class_names: by label; None if there are no labels.
        record: where the embeddings come from, JSON values.
    """

    count: int
    width: int
    vectors: Callable[[], Iterator[np.ndarray]]
    names: Callable[[], Iterator[Names]]
    class_names: Sequence[str] | None
    record: Mapping[str, Any]


def write_table(path: str, extension: str, table: Table) -> None:
    """Writes `table` to a new file of this machine.

    Args:
        path: of the file.
        extension: '.npz', '.parquet' or '.csv', which is the format.
        table: what to write.
    """
    {'.npz': _write_npz, '.parquet': _write_parquet, '.csv': _write_csv}[extension](path, table)


def _write_npz(path: str, table: Table) -> None:
    """Arrays 'embeddings', 'files', 'splits', 'labels', 'class_names' and 'record', JSON."""
    longest = [1, 1]
    for names in table.names():
        for i, column in enumerate((names.files, names.splits)):
            longest[i] = max(longest[i], *map(len, column))

    def texts(names: Sequence[str], length: int) -> np.ndarray:
        return np.array(names, f'<U{length}')

    files = (texts(names.files, longest[0]) for names in table.names())
    splits = (texts(names.splits, longest[1]) for names in table.names())
    labels = (names.labels.astype('<i4') for names in table.names())
    classes = np.array(list(table.class_names or []), np.str_)
    record = np.array(json.dumps(dict(table.record)))
    with zipfile.ZipFile(path, 'w') as archive:
        shape = (table.count, table.width)
        _add(archive, 'embeddings', '<f4', shape, (v.astype('<f4') for v in table.vectors()))
        _add(archive, 'labels', '<i4', (table.count,), labels)
        _add(archive, 'files', f'<U{longest[0]}', (table.count,), files)
        _add(archive, 'splits', f'<U{longest[1]}', (table.count,), splits)
        for name, array in (('class_names', classes), ('record', record)):
            _add(archive, name, array.dtype.str, array.shape, iter([array]))


def _add(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    chunks: Iterator[np.ndarray],
) -> None:
    """Writes an array as `np.savez` would, chunk by chunk; text, which repeats much, compressed."""
    info = zipfile.ZipInfo(f'{name}.npy', _BEGINNING)
    info.compress_type = zipfile.ZIP_DEFLATED if 'U' in dtype else zipfile.ZIP_STORED
    with archive.open(info, 'w', force_zip64=True) as file:
        header = {'descr': dtype, 'fortran_order': False, 'shape': shape}
        np.lib.format.write_array_header_2_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).tobytes())


def _columns(table: Table) -> Iterator[dict[str, pa.Array]]:
    """'file', 'split', 'label' and 'class' of one chunk after another."""
    classes = table.class_names or ()
    for names in table.names():
        known = names.labels >= 0
        called = [classes[i] if 0 <= i < len(classes) else None for i in names.labels.tolist()]
        yield {
            'file': pa.array(names.files, pa.string()),
            'split': pa.array(names.splits, pa.string()),
            'label': pa.array(names.labels, pa.int32(), mask=~known),
            'class': pa.array(called, pa.string()),
        }


def _write_parquet(path: str, table: Table) -> None:
    """Columns 'file', 'split', 'label', 'class' and 'embedding', a list of `width` float32."""
    fields = {**PLAIN, 'embedding': pa.list_(pa.float32(), table.width)}
    record = {METADATA_KEY: json.dumps(dict(table.record)).encode()}
    schema = pa.schema(fields.items(), metadata=record)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for columns, vectors in zip(_columns(table), table.vectors(), strict=True):
            flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
            columns['embedding'] = pa.FixedSizeListArray.from_arrays(flat, table.width)
            writer.write_table(pa.Table.from_pydict(columns, schema))


def _write_csv(path: str, table: Table) -> None:
    """Columns 'file', 'split', 'label', 'class', and 'e0', 'e1', … for the embedding."""
    axes = {f'e{i}': pa.float32() for i in range(table.width)}
    schema = pa.schema({**PLAIN, **axes}.items())
    with pa.csv.CSVWriter(path, schema) as writer:
        for columns, vectors in zip(_columns(table), table.vectors(), strict=True):
            rows = np.ascontiguousarray(vectors.T)  # [width, n]
            columns |= {name: pa.array(row, pa.float32()) for name, row in zip(axes, rows)}
            writer.write_table(pa.Table.from_pydict(columns, schema))
