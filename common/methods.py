"""What is known about a method before TensorFlow is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.registry import load
from common.views import View


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One way to learn.

    Attributes:
        implementation: the subclass of `tf2.methods.base.Method`, as 'module:Class'.
        views: what it sees of each image.
        summary: a line for `--help`, with its source.
        reads: the settings that not every method reads and this one does.
        defaults: setting -> value, where this method has a default of its own.
    """

    implementation: str
    views: tuple[View, ...]
    summary: str
    reads: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def load(self) -> type:
        """The class; imports TensorFlow."""
        return load(self.implementation)
