"""Classes that are named now and imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any


def load(path: str) -> Any:
    """What `path` names, such as 'tf2.methods.simclr:SimCLR'.

    So a registry can be read without importing TensorFlow.

    Args:
        path: module, a colon, and the name of something in it.
    """
    module, _, name = path.partition(':')
    return getattr(importlib.import_module(module), name)
