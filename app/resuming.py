"""Resuming a run: where it stands, and which settings may change."""

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
        before: value until now.
        after: value from now on.
    """

    setting: str
    before: Any
    after: Any


@dataclasses.dataclass(frozen=True)
class History:
    """What the model folder of a run says about it; all empty for a new run.

    Attributes:
        recorded: settings and facts that were written down; none where nothing was trained yet.
        position: of the newest checkpoint.
        changes: settings that the resumed run changes.
    """

    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    position: Position = Position()
    changes: tuple[Change, ...] = ()

    def all_changes(self) -> list[dict[str, Any]]:
        """Those that are recorded, and those of now: what `flags.json` is to hold."""
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
        """The history from another checkpoint on: an older one, where the newest is damaged.

        Args:
            step: updates of the checkpoint.
            record: `Checkpoints.record` of it.
            batch: batch size of the run, for folders that don't say it.
        """
        seen = record.get(EXAMPLES_SEEN)
        if seen is None:
            seen = step * self._batch_before(step, batch)
        return dataclasses.replace(self, position=Position(step, seen))

    def _batch_before(self, step: int, batch: int) -> int:
        """The batch size up to `step`, of a run whose checkpoints don't tell how much they saw."""
        for change in self.recorded.get('changes', []):
            if change['setting'] == 'train_batch_size' and change['step'] >= step:
                return change['from']
        return self.recorded.get('train_batch_size', batch)


def read_history(model_dir: str, batch: int) -> History:
    """The history of the run in `model_dir`, with the settings it has recorded.

    Args:
        model_dir: a folder, which need not exist.
        batch: batch size, for folders that don't say it.

    Raises:
        UserError: if the recorded settings can't be read.
    """
    found = checkpoints_in(model_dir)
    if not found:
        return History()
    history = History(read_flags(model_dir) or {})
    try:
        record = recorded_in(found[-1]) or {}
    except UserError:  # damaged or out of reach, which is told when it is to be restored
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
    """The settings that the run was trained with last."""
    settings = {name: history.recorded[name] for name in OPTIONS if name in history.recorded}
    return from_values({**settings, 'mode': 'eval'})


def _changes(config: Config, train_examples: int, recorded: Mapping[str, Any]) -> list[Change]:
    # Settings that are younger than the folder had their defaults then, or did nothing.
    before = {**DEFAULTS, 'mixed_precision': 'float32', 'holdout_fraction': 0.0, **recorded}
    after = to_values(config)
    # What the run doesn't read changes nothing in it.
    read = [name for name in OPTIONS if _rule(name) != 'free' and why_unread(name, after) is None]
    changes = [
        Change(name, before[name], after[name]) for name in read if not _same(name, before, after)
    ]
    # Other data come with other settings; if they don't, the files are others.
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
        return True  # nothing was found out yet, or by a release that did not say what
    if name not in PATHS or old is None or new is None:
        return old == new
    places = [os.path.abspath(os.path.expanduser(path)) for path in (old, new)]
    folders = [os.path.expanduser(values['model_dir'] or '') for values in (before, after)]
    beside = [os.path.relpath(place, folder or '.') for place, folder in zip(places, folders)]
    return places[0] == places[1] or beside[0] == beside[1]  # both may have been moved
