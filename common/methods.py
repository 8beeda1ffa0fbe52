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
        head_layers: number of layers of its projection head, as 'module:function' of a
            `tf2.config.ModelConfig`, where no TensorFlow is imported; None where the head is the
            one of `Method.projection_head`.
    """

    implementation: str
    views: tuple[View, ...]
    summary: str
    reads: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_layers: str | None = None

    def load(self) -> type:
        """The class; imports TensorFlow."""
        return load(self.implementation)
