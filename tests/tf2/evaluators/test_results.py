"""Result files are complete, plain JSON."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import tensorflow as tf

from tf2.evaluators.results import write_results


def test_writes_both_files(tmp_path: pathlib.Path) -> None:
    results = {
        'eval/label_top_1_accuracy': np.float32(0.5),
        'eval/regularization_loss': tf.constant(0.25),
        'examples': np.int64(7),
        'variable': tf.Variable(2.0),
        'nan': float('nan'),
    }
    write_results(str(tmp_path), 12, results)
    expected = {
        'eval/label_top_1_accuracy': 0.5,
        'eval/regularization_loss': 0.25,
        'examples': 7,
        'variable': 2.0,
        'nan': None,
        'global_step': 12,
    }
    assert {path.name for path in tmp_path.iterdir()} == {'result.json', 'result_12.json'}
    for path in tmp_path.iterdir():
        assert json.loads(path.read_text()) == expected


def test_the_last_result_stands(tmp_path: pathlib.Path) -> None:
    write_results(str(tmp_path), 1, {'a': 1.0, 'b': 2.0})
    write_results(str(tmp_path), np.int64(2), {'a': 3.0})
    assert json.loads((tmp_path / 'result.json').read_text()) == {'a': 3.0, 'global_step': 2}
    assert json.loads((tmp_path / 'result_1.json').read_text())['b'] == 2.0
