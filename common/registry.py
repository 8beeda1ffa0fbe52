"""Imports what registries name, when it is used."""

from __future__ import annotations

import importlib
from typing import Any


def load(path: str) -> Any:
    """Imports and returns the object that `path` names, such as 'tf2.methods.simclr:SimCLR'.

    Args:
        path: module, a colon, and the object's name.
    """
    module, _, name = path.partition(':')
    return getattr(importlib.import_module(module), name)
