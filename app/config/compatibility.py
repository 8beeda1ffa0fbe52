"""Checks whether checkpoints fit a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.config.schema import OPTIONS, PATHS, Config, is_read, to_values
from app.run_folder import read_flags
from common.errors import UserError
from common.limits import SMALL_IMAGE
from common.stages import STAGES
from tf2.models import BACKBONES


def architecture(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a checkpoint and a run must share, from `read_flags` or `to_values`."""
    stage = values['train_mode']
    fixed = {
        name: values[name]
        for name, metadata in OPTIONS.items()
        if metadata['resume'] == 'fixed' and name not in PATHS and is_read(name, values)
    }
    # Only a stage that classifies is tied to one layer of the head.
    selector = {'ft_proj_selector': values['ft_proj_selector']}
    tuned = selector if STAGES[stage].classifies else {}
    return {
        **fixed,
        **tuned,
        'small stem': BACKBONES[values['backbone']].small_stem
        and values['image_size'] <= SMALL_IMAGE,
        # Only float16 adds variables: those of loss scaling.
        'mixed_precision': 'float16'
        if values['mixed_precision'] == 'float16'
        else 'bfloat16 or float32',
        'num_classes': values['num_classes'],
    }


def check_same_architecture(model_dir: str, config: Config, num_classes: int | None) -> None:
    """Raises UserError if `model_dir` has checkpoints of another architecture; shows both."""
    from tf2.files import checkpoints_in

    recorded = read_flags(model_dir)
    if recorded is None or not checkpoints_in(model_dir):
        return
    # Settings that are newer than the folder had their defaults then.
    theirs = architecture({'num_classes': None, **to_values(Config()), **recorded})
    ours = architecture({**to_values(config), 'num_classes': num_classes})
    differing = [name for name in ours if ours[name] != theirs.get(name, ours[name])]
    if differing:
        found = ', '.join(f'{name} {theirs[name]}' for name in differing)
        asked = ', '.join(f'{name} {ours[name]}' for name in differing)
        raise UserError(
            f'--model_dir={model_dir} holds checkpoints of {found}; this run asks for {asked}. '
            'Choose another --model_dir, or the flags it was made with.'
        )
