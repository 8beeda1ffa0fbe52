"""One run of a pipeline, as its flags define it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

from app.config.resolution import resolve
from app.config.schema import Config
from app.presets import PRESETS
from common.errors import command_line


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a pipeline.

    Attributes:
        title: for users: 'Self-distillation'.
        given: its flags, as if they were given on the command line; among them `model_dir`.
    """

    title: str
    given: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Its model folder."""
        return self.given['model_dir']

    @property
    def name(self) -> str:
        """The name of its folder: 'self_distill'."""
        return os.path.basename(self.folder)

    @functools.cached_property
    def config(self) -> Config:
        """The settings that its flags give.

        Raises:
            UserError: if a value is out of bounds or contradicts another.
        """
        return resolve(self.given, PRESETS)

    @property
    def command(self) -> str:
        """The command that repeats it."""
        flags = [f'--{name}={value}' for name, value in self.given.items()]
        return command_line(['python', 'run.py', *flags])
