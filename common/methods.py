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
        untrained_views: how many views do not pass through the trained network.
        local_view: how its local crops are made, apart from size and area; None if it takes no
            crops besides `views`. It then reads `tf2.methods.CROPS`.
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
    untrained_views: int = 0
    local_view: View | None = None
    remembers_examples: bool = False

    def load(self) -> type:
        """The class; imports TensorFlow."""
        return load(self.implementation)
