"""Reads and writes what the folder of a run, or of a pipeline, holds."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from app.config.schema import SECTIONS, TRAIN_EXAMPLES, Config, to_values
from common.file_names import (
    DATA_FILE,
    DETAILS_FILE,
    FLAGS_FILE,
    MODULES,
    PIPELINE_FILE,
    RESULT_FILE,
)
from tf2 import records

_CHANGE = records.Value(
    dict,
    keys={
        'step': records.Value(int, required=True, check=records.at_least(0)),
        'setting': records.Value(str, required=True),
    },
)
FLAGS = records.Value(
    dict,
    keys={
        **{k: v for section in SECTIONS.values() for k, v in records.of_options(section).items()},
        'num_classes': records.Value(int, nullable=True, check=records.at_least(1)),
        'class_names': records.CLASS_NAMES,
        TRAIN_EXAMPLES: records.Value(int, check=records.at_least(1)),
        'changes': records.Value(list, items=_CHANGE),
    },
)
_COUNTS = records.Value(list, nullable=True, items=records.Value(int))
# What a run understood of its data: the lines that it printed, the names of the classes, and how
# many of the labels that were read are of each class.
DATA = records.Value(
    dict,
    keys={
        'lines': records.Value(list, required=True, items=records.Value(str)),
        'class_names': records.CLASS_NAMES,
        'train': _COUNTS,
        'eval': _COUNTS,
    },
)
RESTORE = 'Restore it, or choose another --model_dir.'


def write_flags(model_dir: str, config: Config, facts: Mapping[str, Any]) -> None:
    """Writes `flags.json`: all settings, and `facts` about the data such as 'num_classes'."""
    from tf2.files import write_text

    text = json.dumps({**to_values(config), **facts}, indent=1, sort_keys=True)
    write_text(os.path.join(model_dir, FLAGS_FILE), f'{text}\n')


def read_flags(model_dir: str, need: Iterable[str] = ()) -> dict[str, Any] | None:
    """The contents of `flags.json` in `model_dir`; None if there is no such file.

    Args:
        model_dir: folder of a run.
        need: names that must be in it. Older releases did not write all settings.

    Raises:
        UserError: if the file holds something else.
    """
    value = dataclasses.replace(
        FLAGS,
        keys={k: dataclasses.replace(v, required=k in need) for k, v in FLAGS.keys.items()},
    )
    return records.read_json(os.path.join(model_dir, FLAGS_FILE), value, RESTORE)


def read_pipeline(model_dir: str) -> dict[str, Any] | None:
    """Name of each run -> its settings, of the pipeline in `model_dir`; None if there is none.

    Raises:
        UserError: if the file holds something else.
    """
    value = records.Value(dict, items=FLAGS)
    return records.read_json(os.path.join(model_dir, PIPELINE_FILE), value, RESTORE)


def recorded_run(model_dir: str) -> Mapping[str, Any] | None:
    """The recorded settings of the run in `model_dir`; None if it has no checkpoint yet."""
    from tf2.files import checkpoints_in

    recorded = read_flags(model_dir)
    return recorded if recorded and checkpoints_in(model_dir) else None


def read_result(folder: str) -> dict[str, Any]:
    """The newest evaluation in `folder`, name -> value; empty if there is none.

    Raises:
        UserError: if the file holds something else.
    """
    from tf2.evaluators.results import read_results

    return read_results(os.path.join(folder, RESULT_FILE))


def read_details(folder: str) -> dict[str, Any]:
    """The contents of `details.json` in `folder`; empty if there is no such file.

    Raises:
        UserError: if the file holds something else.
    """
    path = os.path.join(folder, DETAILS_FILE)
    return records.read_json(path, records.DETAILS, 'Restore it, or remove it.') or {}


def write_data(model_dir: str, described: Mapping[str, Any]) -> None:
    """Writes `data.json`: what a run understood of its data, see `DATA`."""
    from tf2.files import write_text

    text = json.dumps(described, indent=1)
    write_text(os.path.join(model_dir, DATA_FILE), f'{text}\n')


def read_data(model_dir: str) -> dict[str, Any] | None:
    """The contents of `data.json`; None if there is none, as in runs of older releases.

    Raises:
        UserError: if the file holds something else.
    """
    return records.read_json(os.path.join(model_dir, DATA_FILE), DATA, 'Restore it, or remove it.')


def newest_module(model_dir: str) -> str | None:
    """The path of the module that a run exported last; None if there is none."""
    import tensorflow as tf

    from tf2.files import names_in

    folder = os.path.join(model_dir, MODULES)
    found = names_in(folder) if tf.io.gfile.isdir(folder) else []
    steps = [int(name) for name in found if name.isdecimal()]
    return os.path.join(folder, str(max(steps))) if steps else None


def has_module(model_dir: str, step: int) -> bool:
    """Whether a run exported its model at `step`."""
    import tensorflow as tf

    return tf.io.gfile.isdir(os.path.join(model_dir, MODULES, str(step)))
