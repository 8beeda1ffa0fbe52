"""What a command line names, looked for without TensorFlow, whose import takes seconds.

Only what is plainly missing is refused here. Whoever opens a place then looks closely.
"""

from __future__ import annotations

import dataclasses
import glob
import os

from configuration import FLAGS_FILE, Config
from data.names import check_name
from settings import UserError
from tf2.config import WEIGHTS


def check_places(config: Config) -> None:
    """Raises UserError if weights or data set that `config` names are not there at all."""
    objective = config.objective
    if config.run.mode == 'pipeline':  # its stages read each other, and it refuses what is given
        objective = dataclasses.replace(objective, checkpoint=None)
    # A run that goes on needs its own checkpoints only.
    begun = config.train.model_dir and not _is_missing(config.train.model_dir)
    named = {'checkpoint': None if begun else objective.checkpoint, 'teacher': objective.teacher}
    for flag, path in named.items():
        if path and _is_missing(path):
            raise UserError(
                f'--{flag}={os.path.expanduser(path)} should be {WEIGHTS}; found nothing there. '
                'Check the path.'
            )
    if config.data.dataset and config.run.mode != 'export':
        check_name(config.data.dataset, config.data.data_dir)
    _check_apart(config.train.model_dir, config.data.data_dir)


def _check_apart(model_dir: str | None, data_dir: str | None) -> None:
    """Raises UserError if a new run would write among the images."""
    if not model_dir or not data_dir or '://' in model_dir or '://' in data_dir:
        return
    folder, data = (os.path.realpath(os.path.expanduser(path)) for path in (model_dir, data_dir))
    begun = os.path.exists(os.path.join(folder, FLAGS_FILE))
    if os.path.commonpath([folder, data]) == data and not begun:
        raise UserError(
            f'--model_dir must be outside of --data_dir, {data}, where its files would be taken '
            f'for data; found {folder}. Choose another --model_dir.'
        )


def _is_missing(path: str) -> bool:
    """Whether no file or folder of this machine has a name that begins with `path`."""
    local = '://' not in path
    return local and not glob.glob(f'{glob.escape(os.path.expanduser(path).rstrip("/"))}*')
