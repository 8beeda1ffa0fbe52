"""The record of the architecture beside our checkpoints and in our modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.file_names import FLAGS_FILE
from tf2 import records
from tf2.config import LearningConfig, ModelConfig
from tf2.models import BACKBONES, BackboneEntry

RECORD_KEY = 'record/.ATTRIBUTES/py_state'  # of `Checkpoints.record`
MODULE_RECORD = 'assets.extra/simclr.json'  # in an exported module
FIELDS = (
    'backbone',
    'resnet_depth',
    'width_multiplier',
    'sk_ratio',
    'se_ratio',
    'proj_head_mode',
    'num_proj_layers',
    'proj_out_dim',
    'proj_hidden_dim',
)

_FLAGS = records.Value(
    dict,
    keys={
        **records.of_options(ModelConfig),
        'image_size': records.Value(int, required=True, check=records.at_least(1)),
        'class_names': records.CLASS_NAMES,
        'method': records.METHOD,
    },
)
_ADVICE = 'Restore it, or remove it so that the architecture is inferred.'


@dataclasses.dataclass(frozen=True)
class Record:
    """What was recorded with the weights.

    Attributes:
        file: path of the record.
        architecture: `FIELDS` -> values.
        selector: head layer that the classifier reads; None if not recorded.
        image_size: in pixels, of the training.
        step: number of updates; None if not recorded.
        module: whether it is the record of an exported module.
        method: of the pretraining, whose head the network has.
        class_names: names of the classifier's classes; None if not recorded.
    """

    file: str
    architecture: Mapping[str, Any]
    selector: int | None
    image_size: int
    step: int | None
    module: bool
    method: str
    class_names: tuple[str, ...] | None = None

    @property
    def backbone(self) -> BackboneEntry:
        """What is known about the backbone."""
        return BACKBONES[self.architecture['backbone']]


def read_record(prefix: str) -> Record | None:
    """The record of our own checkpoint `prefix`; None if there is none.

    Raises:
        UserError: if it is invalid.
    """
    folder = prefix.rpartition('/')[0] or '.'
    if prefix.endswith('/variables/variables'):
        return _read(f'{folder.removesuffix("/variables")}/{MODULE_RECORD}', module=True)
    return _read(f'{folder}/{FLAGS_FILE}', module=False)


def _read(file: str, *, module: bool) -> Record | None:
    value = records.MODULE if module else _FLAGS
    values = records.read_json(file, value, _ADVICE)
    if values is None:
        return None
    # Both are flat, except for the model of a module. Settings newer than the file have defaults.
    model = values['model'] if module else values
    known = records.model_config(
        file, {name: model[name] for name in FIELDS if name in model}, _ADVICE
    )
    architecture = {name: getattr(known, name) for name in FIELDS}
    return Record(
        file=file,
        architecture=architecture,
        selector=model.get('ft_proj_selector'),
        image_size=values['image_size'],
        step=values.get('step') if module else None,
        module=module,
        method=values.get('method', LearningConfig.method),
        class_names=tuple(values.get('class_names') or ()) or None,
    )
