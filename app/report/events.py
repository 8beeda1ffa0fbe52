"""Reads what a run wrote for TensorBoard: curves, sample views, and how long it took."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from tf2.files import names_in

_FILE = re.compile(r'\.tfevents\.\d+\.(?P<process>.+)\.\d+\.v2$')  # process: host and number


@dataclasses.dataclass(frozen=True)
class Events:
    """The contents of the event files in a folder.

    Attributes:
        scalars: tag -> step -> value, steps ascending; for steps that were repeated after an
            interruption, the later value.
        views: the images of 'train/views' of the last session, as PNG files.
        seconds: how long the run took, see `_seconds`.
        damaged: names of the files whose end can't be read.
    """

    scalars: dict[str, dict[int, float]]
    views: list[bytes]
    seconds: float
    damaged: list[str]


@dataclasses.dataclass(frozen=True)
class _File:
    """One event file.

    Attributes:
        process: host and ID of the process that wrote it.
        events: in the order in which they were written.
        whole: whether all of the file could be read.
    """

    process: str
    events: Sequence[Any]
    whole: bool

    @property
    def first(self) -> float:
        return self.events[0].wall_time

    @property
    def last(self) -> float:
        return self.events[-1].wall_time

    @property
    def trains(self) -> bool:
        """Whether a training session wrote it, not an evaluation."""
        tags = (value.tag for event in self.events for value in event.summary.value)
        return any(tag.startswith('train/') for tag in tags)


def read_events(folder: str) -> Events:
    """Reads all events of the files in `folder`, but not in its subfolders."""
    names = names_in(folder) if tf.io.gfile.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if '.tfevents.' in name]
    files = [_read(path) for path in paths]
    damaged = [os.path.basename(path) for path, file in zip(paths, files) if not file.whole]
    files = sorted((file for file in files if file.events), key=lambda file: file.first)
    scalars: dict[str, dict[int, float]] = {}
    views: list[bytes] = []
    for file in files:
        for event in file.events:
            for value in event.summary.value:
                kind = value.metadata.plugin_data.plugin_name
                if kind == 'scalars':
                    number = float(tf.make_ndarray(value.tensor))
                    scalars.setdefault(value.tag, {})[event.step] = number
                elif kind == 'images' and value.tag == 'train/views':
                    views = list(value.tensor.string_val[2:])  # after width and height
    ordered = {tag: dict(sorted(points.items())) for tag, points in scalars.items()}
    return Events(ordered, views, _seconds(files), damaged)


def _process(path: str) -> str:
    found = _FILE.search(path)
    return found['process'] if found else path


def _read(path: str) -> _File:
    """A file; a process that was killed may have left its last event incomplete."""
    events = []
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            events.append(tf.compat.v1.Event.FromString(record))
    except (tf.errors.DataLossError, DecodeError):
        return _File(_process(path), events, whole=False)
    return _File(_process(path), events, whole=True)


def _seconds(files: Sequence[_File]) -> float:
    """The time that a run took: its sessions of training, with their evaluations.

    A session starts with the first event of a file that has training scalars. It ends with the last
    event that its process wrote before the next session, to any file, because each evaluation has a
    file of its own. Evaluations by other processes don't count, nor does the time between sessions.

    Args:
        files: in the order of their first events.
    """
    sessions = [file for file in files if file.trains]
    ends = [*(file.first for file in sessions[1:]), math.inf]
    total = 0.0
    for session, end in zip(sessions, ends):
        own = [f for f in files if f.process == session.process and session.first <= f.first < end]
        total += max(file.last for file in own) - session.first
    return total
