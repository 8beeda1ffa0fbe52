"""Entries of methods, readable without importing TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.registry import load
from common.views import View


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One method.

    Attributes:
        implementation: the subclass of `tf2.methods.base.Method`, as 'module:Class'.
        views: its views of each image.
        summary: a line for `--help`, with its source.
        reads: the settings that it reads, of those that not every method reads.
        defaults: setting -> value, for settings of which this method has its own default.
        head_layers: a function of a `tf2.config.ModelConfig` that returns the number of layers of
            its projection head without importing TensorFlow, as 'module:function'; None if the
            head is the one of `Method.projection_head`.
        momentum_copy: whether it always keeps a momentum copy of encoder and projection head.
        needs: settings that must not be 0; they have a default here.
        views_trained: how many views, the first ones, pass through the trained network; None for
            all of them.
        remembers_examples: whether it keeps a row for each training example, and is made with
            their number.
    """

    implementation: str
    views: tuple[View, ...]
    summary: str
    reads: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_layers: str | None = None
    momentum_copy: bool = False
    needs: tuple[str, ...] = ()
    views_trained: int | None = None
    remembers_examples: bool = False

    def load(self) -> type:
        """The class; imports TensorFlow."""
        return load(self.implementation)
