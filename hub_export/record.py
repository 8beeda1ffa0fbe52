"""The record in an exported module: enough to rebuild its model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

import tensorflow as tf

from common.errors import UserError
from tf2 import records
from tf2.config import LearningConfig, ModelConfig

FOLDER = 'assets.extra'  # the folder of a SavedModel that TensorFlow leaves to its users
FILE = 'simclr.json'


@dataclasses.dataclass(frozen=True)
class ModuleRecord:
    """Architecture and age of an exported model.

    Attributes:
        model: encoder and heads.
        image_size: pixels the model was trained at; the encoder's stem depends on it.
        num_classes: of its linear classifier; None where it has none.
        step: number of updates its weights have had.
        class_names: of the classes of its classifier; None where nothing tells.
        method: of its pretraining, whose projection head it has.
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
    """Whether `path` is a folder, and no link to one, that a module of this program is in."""
    return not os.path.islink(path) and tf.io.gfile.exists(f'{path}/{FOLDER}/{FILE}')


def read_record(path: str) -> ModuleRecord:
    """The record of the exported module in folder `path`.

    The weights are then read by `tf.train.Checkpoint(model=...).restore`, from the prefix
    `path + '/variables/variables'`.

    Raises:
        UserError: if `path` holds no module that `export_module` wrote, or one of another version.
    """
    file = f'{path}/{FOLDER}/{FILE}'
    advice = 'Export the module again with this version.'
    values = records.read_json(file, records.MODULE, advice)
    if values is None:
        raise UserError(f'Expected a module exported by this program at {path}; found no {file}.')
    model = records.model_config(file, values['model'], advice)
    others = {name: values[name] for name in ('image_size', 'num_classes', 'step')}
    younger = {name: values[name] for name in ('class_names', 'method') if name in values}
    return ModuleRecord(model, **others, **younger)
