"""Resuming a run: its position, and which settings may change."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from app.config.resolution import allowed_changes, from_values, why_unread
from app.config.schema import DEFAULTS, LABELS, OPTIONS, PATHS, TRAIN_EXAMPLES, Config, to_values
from app.run_folder import read_flags
from common.errors import UserError
from tf2.checkpoints import recorded_in
from tf2.files import checkpoints_in, step_of
from tf2.schedules import Position
from tf2.trainer import EXAMPLES_SEEN


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that a resumed run changes.

    Attributes:
        setting: its name.
        before: the value so far.
        after: the value from now on.
    """

    setting: str
    before: Any
    after: Any


@dataclasses.dataclass(frozen=True)
class History:
    """What the model folder records about a run; everything is empty for a new run.

    Attributes:
        recorded: settings and facts about the data; empty if nothing was trained yet.
        position: of the newest checkpoint.
        changes: settings that the resumed run changes.
    """

    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    position: Position = Position()
    changes: tuple[Change, ...] = ()

    def all_changes(self) -> list[dict[str, Any]]:
        """The recorded changes and the new ones, as `flags.json` will hold them."""
        changes = [
            {
                'step': self.position.step,
                'setting': change.setting,
                'from': change.before,
                'to': change.after,
            }
            for change in self.changes
        ]
        return [*self.recorded.get('changes', []), *changes]

    def at(self, step: int, record: Mapping[str, Any], batch: int) -> History:
        """The history up to another checkpoint: an older one, if the newest is damaged.

        Args:
            step: updates of the checkpoint.
            record: `Checkpoints.record` of it.
            batch: batch size of the run, for folders that don't record it.
        """
        seen = record.get(EXAMPLES_SEEN)
        if seen is None:
            seen = step * self._batch_before(step, batch)
        return dataclasses.replace(self, position=Position(step, seen))

    def _batch_before(self, step: int, batch: int) -> int:
        """The batch size up to `step`, for checkpoints that don't record the examples seen."""
        for change in self.recorded.get('changes', []):
            if change['setting'] == 'train_batch_size' and change['step'] >= step:
                return change['from']
        return self.recorded.get('train_batch_size', batch)


def read_history(model_dir: str, batch: int) -> History:
    """The history of the run in `model_dir`, with the settings it has recorded.

    Args:
        model_dir: a folder, which need not exist.
        batch: batch size, for folders that don't record it.

    Raises:
        UserError: if the recorded settings can't be read.
    """
    found = checkpoints_in(model_dir)
    if not found:
        return History()
    history = History(read_flags(model_dir) or {})
    try:
        record = recorded_in(found[-1]) or {}
    except UserError:  # damaged or out of reach; restoring it will raise the error
        record = {}
    return history.at(step_of(found[-1]), record, batch)


def check_changes(config: Config, train_examples: int, history: History) -> History:
    """`history` with the settings that `config` changes.

    Args:
        config: settings of the resumed run; `output.model_dir` is set.
        train_examples: number of training examples now.
        history: what `read_history` found.

    Raises:
        UserError: if a change is not allowed; shows both values.
    """
    if not history.recorded:
        return history
    images = history.recorded.get(TRAIN_EXAMPLES, train_examples)
    if config.learning.entry.remembers_examples and images != train_examples:
        raise UserError(
            f'--model_dir={config.output.model_dir} holds a memory bank of {images} images; this '
            f'run has {train_examples}. Choose another --model_dir, or the images it was made with.'
        )
    changes = _changes(config, train_examples, history.recorded)
    allowed = allowed_changes(config)
    refused = [c for c in changes if _rule(c.setting) == 'refuse' and c.setting not in allowed]
    for change in changes:
        if change.setting == 'checkpoint':
            raise UserError(
                f'--checkpoint={change.after} is for a new run; --model_dir='
                f'{config.output.model_dir} holds one that started from '
                f'{change.before or "scratch"} and resumes from its own checkpoints. Leave it '
                'out, or choose another --model_dir.'
            )
    if refused:
        before = ', '.join(f'{change.setting} {change.before}' for change in refused)
        after = ', '.join(f'{change.setting} {change.after}' for change in refused)
        names = ','.join(change.setting for change in refused)
        raise UserError(
            f'--model_dir={config.output.model_dir} holds a run with {before}; this one asks for '
            f'{after}, which changes its result. Choose another --model_dir, the flags it was '
            f'made with, or --allow_changes={names}.'
        )
    return dataclasses.replace(history, changes=tuple(changes))


def settings_before(history: History) -> Config:
    """The settings of the run before it was resumed."""
    settings = {name: history.recorded[name] for name in OPTIONS if name in history.recorded}
    return from_values({**settings, 'mode': 'eval'})


def _changes(config: Config, train_examples: int, recorded: Mapping[str, Any]) -> list[Change]:
    # Settings that are newer than the folder had their defaults then, or did not exist.
    before = {**DEFAULTS, 'mixed_precision': 'float32', 'holdout_fraction': 0.0, **recorded}
    after = to_values(config)
    # Settings that the run doesn't read have no effect.
    read = [name for name in OPTIONS if _rule(name) != 'free' and why_unread(name, after) is None]
    changes = [
        Change(name, before[name], after[name]) for name in read if not _same(name, before, after)
    ]
    # A change of these settings explains another number of images; else files have changed.
    images = recorded.get(TRAIN_EXAMPLES, train_examples)
    data = ('dataset', 'train_split', 'holdout_fraction', 'seed', *LABELS)
    if images != train_examples and not any(change.setting in data for change in changes):
        changes.append(Change(TRAIN_EXAMPLES, images, train_examples))
    return changes


def _rule(setting: str) -> str:
    return 'refuse' if setting == TRAIN_EXAMPLES else OPTIONS[setting]['resume']


def _same(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    old, new = before[name], after[name]
    if DEFAULTS[name] == 'auto' and 'auto' in (old, new):
        return True  # not resolved yet, or by a release that did not record the value
    if name not in PATHS or old is None or new is None:
        return old == new
    places = [os.path.abspath(os.path.expanduser(path)) for path in (old, new)]
    folders = [os.path.expanduser(values['model_dir'] or '') for values in (before, after)]
    beside = [os.path.relpath(place, folder or '.') for place, folder in zip(places, folders)]
    return (
        places[0] == places[1] or beside[0] == beside[1]
    )  # the folders may have been moved together
