"""Many files with their classes, held compactly: a million take some 30 MB, not hundreds."""

from __future__ import annotations

import array
import dataclasses
import hashlib
import os
import random
from collections.abc import Iterable, Sequence

import numpy as np

NO_CLASS = -1
_SEPARATOR = ord('/')
_AT_ONCE = 65_536  # paths that are put together at a time


@dataclasses.dataclass(frozen=True)
class Group:
    """Files of one class in one folder.

    Attributes:
        place: path of the folder, as `os` gives it.
        shown: the same path as a person finds it, relative to what was opened.
        names: of the files, joined by '/', which no name holds.
        label: number of the class, NO_CLASS for none.
    """

    place: str
    shown: str
    names: str
    label: int


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths and classes of n files.

    Attributes:
        places: paths of the folders that the files are in.
        shown: the same, relative to what was opened.
        names: all names, one after the other.
        folders: [n] int32, which of `places` each file is in.
        starts: [n] int64, where in `names` its name begins.
        sizes: [n] int32, bytes of its name.
        labels: [n] int32, its class, NO_CLASS for none.
    """

    places: Sequence[bytes]
    shown: Sequence[bytes]
    names: bytes
    folders: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray | slice) -> Files:
        """The files at `chosen` positions, in that order."""
        columns = ('folders', 'starts', 'sizes', 'labels')
        return dataclasses.replace(self, **{key: getattr(self, key)[chosen] for key in columns})

    def paths(self) -> list[bytes]:
        """The path of each file."""
        return self._joined(self.places)

    def find(self, path: bytes) -> int:
        """The position of a file among them.

        Raises:
            ValueError: if it is none of them.
        """
        folder, name = os.path.split(path)
        places = [
            i for i, place in enumerate(self.places) if place.rstrip(b'/') == folder.rstrip(b'/')
        ]
        alike = np.isin(self.folders, places) & (self.sizes == len(name))
        for position in np.flatnonzero(alike):
            start = self.starts[position]
            if self.names[start : start + len(name)] == name:
                return int(position)
        raise ValueError(f'{path!r} is none of the {len(self)} files.')

    def relative(self) -> list[bytes]:
        """The path of each file below what was opened."""
        return self._joined(self.shown)

    def _joined(self, folders: Sequence[bytes]) -> list[bytes]:
        begin = [folder and os.path.join(folder, b'') for folder in folders]
        found: list[bytes] = []
        for first in range(0, len(self), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            columns = (self.folders[part], self.starts[part], self.sizes[part])
            rows = zip(*(column.tolist() for column in columns), strict=True)
            found += [begin[f] + self.names[start : start + size] for f, start, size in rows]
        return found

    def in_listing_order(self) -> Files:
        """The same files folder by folder, each in the order of its names."""
        return self.take(np.lexsort((self.starts, self.folders)))

    def shuffled(self, seed: bytes) -> Files:
        """The same files in an order that is mixed, but always the same."""
        order = array.array('l', range(len(self)))
        random.Random(seed).shuffle(order)
        return self.take(np.frombuffer(order, np.int64) if len(order) else slice(0))


def files_of(groups: Iterable[Group]) -> Files:
    """The files of all `groups`, in their order."""
    groups = [group for group in groups if group.names]
    blobs = [os.fsencode(group.names) for group in groups]
    none = np.zeros([0], np.int64)
    starts, sizes, counts, before = [none], [none], [], 0
    for blob in blobs:
        ends = np.append(np.flatnonzero(np.frombuffer(blob, np.uint8) == _SEPARATOR), len(blob))
        begins = np.append(0, ends[:-1] + 1)
        starts.append(begins + before)
        sizes.append(ends - begins)
        counts.append(len(ends))
        before += len(blob)
    labels = np.array([group.label for group in groups], np.int32)
    return Files(
        places=tuple(os.fsencode(group.place) for group in groups),
        shown=tuple(os.fsencode(group.shown) for group in groups),
        names=b''.join(blobs),
        folders=np.repeat(np.arange(len(groups), dtype=np.int32), counts),
        starts=np.concatenate(starts),
        sizes=np.concatenate(sizes).astype(np.int32),
        labels=np.repeat(labels, counts),
    )


def concatenate(parts: Sequence[Files]) -> Files:
    """The files of all `parts`, one after the other."""
    places = np.cumsum([0, *(len(part.places) for part in parts)])
    names = np.cumsum([0, *(len(part.names) for part in parts)])
    return Files(
        places=[place for part in parts for place in part.places],
        shown=[place for part in parts for place in part.shown],
        names=b''.join(part.names for part in parts),
        folders=np.concatenate([p.folders + np.int32(n) for p, n in zip(parts, places)]),
        starts=np.concatenate([p.starts + n for p, n in zip(parts, names)]),
        sizes=np.concatenate([p.sizes for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
    )


def hold_out(files: Files, fraction: float) -> tuple[Files, Files]:
    """Takes a share of every class away, by a hash of each file's path.

    Neither the order of `files` nor a run's seed matters, and a file stays on its side when others
    come or go, but for those at the edge.

    Args:
        files: of any classes; those without one are a class here.
        fraction: of each class, at least one file of those with two or more.

    Returns:
        What is left, and what was taken away; each in the order of `files`.
    """
    digests = (hashlib.blake2b(path, digest_size=8).digest() for path in files.relative())
    hashes = np.frombuffer(b''.join(digests), '<u8')
    order = np.lexsort((hashes, files.labels))
    _, first, counts = np.unique(files.labels[order], return_index=True, return_counts=True)
    wanted = np.clip(np.rint(counts * fraction).astype(np.int64), 1, np.maximum(counts - 1, 0))
    rank = np.arange(len(files)) - np.repeat(first, counts)
    held = np.zeros([len(files)], bool)
    held[order] = rank < np.repeat(wanted, counts)
    return files.take(~held), files.take(held)
