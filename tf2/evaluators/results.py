"""Evaluation results on disk, where the published program puts them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from common.file_names import DETAILS_FILE, RESULT_FILE
from tf2 import records
from tf2.files import write_text


def write_results(model_dir: str, step: int, results: Mapping[str, Any]) -> None:
    """Writes `result.json` and `result_{step}.json`, each atomically.

    Args:
        model_dir: existing folder, on any file system TensorFlow knows.
        step: number of updates the evaluated model had; written as 'global_step'.
        results: name -> scalar: a Python number, NumPy scalar or scalar tensor. Values that aren't
            finite are written as null, because JSON has no such numbers.
    """
    plain = {name: _number(value) for name, value in results.items()}
    text = json.dumps({**plain, 'global_step': int(step)}, indent=2, allow_nan=False) + '\n'
    for name in (f'result_{int(step)}.json', RESULT_FILE):
        write_text(os.path.join(model_dir, name), text)


def write_details(model_dir: str, step: int, details: Mapping[str, Any]) -> None:
    """Writes results that aren't single numbers, and 'global_step', to `details.json`, atomically.

    Args:
        model_dir: existing folder, on any file system TensorFlow knows.
        step: number of updates the evaluated model had.
        details: name -> lists and dictionaries of finite numbers.
    """
    text = json.dumps({**details, 'global_step': int(step)}, indent=1, allow_nan=False) + '\n'
    write_text(os.path.join(model_dir, DETAILS_FILE), text)


def read_results(path: str) -> dict[str, Any]:
    """The results that `write_results` wrote to `path`; empty if there is no such file.

    Raises:
        UserError: if the file holds something else.
    """
    return records.read_json(path, records.RESULT, 'Restore it, or remove it.') or {}


def _number(value: Any) -> int | float | None:
    value = value.numpy() if isinstance(value, (tf.Tensor, tf.Variable)) else value
    value = value.item() if hasattr(value, 'item') else value
    return value if math.isfinite(value) else None
