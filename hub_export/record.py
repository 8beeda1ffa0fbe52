"""The record in an exported module, from which its model is rebuilt."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

import tensorflow as tf

from common.errors import UserError
from tf2 import records
from tf2.config import LearningConfig, ModelConfig

FOLDER = 'assets.extra'  # TensorFlow reserves this folder of a SavedModel for users
FILE = 'simclr.json'


@dataclasses.dataclass(frozen=True)
class ModuleRecord:
    """Describes an exported model.

    Attributes:
        model: encoder and heads.
        image_size: height and width in pixels for which it was built; its stem depends on them.
        num_classes: of its linear classifier; None without one.
        step: number of updates of its weights.
        class_names: names of the classifier's classes, by label; None if unknown.
        method: the method of pretraining, which determines the projection head.
    """

    model: ModelConfig
    image_size: int
    num_classes: int | None
    step: int
    class_names: Sequence[str] | None = None
    method: str = LearningConfig.method


def write_record(path: str, record: ModuleRecord) -> None:
    """Writes `record` into the SavedModel folder `path`."""
    folder = f'{path}/{FOLDER}'
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(f'{folder}/{FILE}', 'w') as file:
        file.write(json.dumps(dataclasses.asdict(record), indent=2) + '\n')


def has_record(path: str) -> bool:
    """Whether `path` is the folder of a module of this program, and not a link to one."""
    return not os.path.islink(path) and tf.io.gfile.exists(f'{path}/{FOLDER}/{FILE}')


def read_record(path: str) -> ModuleRecord:
    """The record of the exported module in folder `path`.

    `tf.train.Checkpoint(model=...).restore(path + '/variables/variables')` reads the weights.

    Raises:
        UserError: if `path` holds no module of this program, or one of an incompatible version.
    """
    file = f'{path}/{FOLDER}/{FILE}'
    advice = 'Export the module again with this version.'
    values = records.read_json(file, records.MODULE, advice)
    if values is None:
        raise UserError(f'Expected a module exported by this program at {path}; found no {file}.')
    model = records.model_config(file, values['model'], advice)
    others = {name: values[name] for name in ('image_size', 'num_classes', 'step')}
    # Older releases did not record these.
    newer = {name: values[name] for name in ('class_names', 'method') if name in values}
    return ModuleRecord(model, **others, **newer)
