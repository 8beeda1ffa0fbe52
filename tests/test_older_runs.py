"""Folders of an older release can be resumed, evaluated and loaded.

`tests/golden/older_run` was written by the release that had neither class names nor examples seen
in its checkpoints: 8 steps of a ResNet-18 with 2 to 16 channels on 64 of the bundled images.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import run
from tests.support import GOLDEN
from tf2.weights import open_weights

FOLDER = GOLDEN / 'older_run'


def copy(target: pathlib.Path, *steps: int) -> pathlib.Path:
    """A copy of the folder with the checkpoints of `steps` as the only ones."""
    target.mkdir()
    newest = f'model_checkpoint_path: "ckpt-{max(steps)}"\n'
    (target / 'checkpoint').write_text(newest)
    shutil.copy(FOLDER / 'flags.json', target)
    for step in steps:
        for file in FOLDER.glob(f'ckpt-{step}.*'):
            shutil.copy(file, target)
    return target


def values(prefix: pathlib.Path) -> dict[str, np.ndarray]:
    """Model, method and optimizer in a checkpoint."""
    reader = tf.train.load_checkpoint(str(prefix))
    known = tf.train.load_checkpoint(str(FOLDER / 'ckpt-8')).get_variable_to_shape_map()
    parts = ('model/', 'objective/', 'optimizer/')
    return {key: reader.get_tensor(key) for key in known if key.startswith(parts)}


@pytest.mark.smoke
@pytest.mark.usefixtures('bare_runs')
def test_a_run_resumes_as_before(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    folder = copy(tmp_path / 'run', 4)
    flags = json.loads((FOLDER / 'flags.json').read_text())
    names = (
        *('train_split', 'eval_split', 'resnet_depth', 'width_multiplier', 'num_proj_layers'),
        *('proj_out_dim', 'image_size', 'train_batch_size', 'eval_batch_size', 'train_steps'),
        *('checkpoint_steps', 'warmup_epochs', 'knn_neighbors', 'mixed_precision', 'dataset'),
    )
    given = [f'--{name}={flags[name]}' for name in names]
    assert run.main(['run.py', '--mode=train_then_eval', *given, f'--model_dir={folder}']) == 0
    assert 'going on from' in capsys.readouterr().out
    found, expected = values(folder / 'ckpt-8'), values(FOLDER / 'ckpt-8')
    for key, value in expected.items():
        # As a whole: another processor's rounding may switch a ReLU, which moves single values.
        # With another seed, variables differ by several times their size.
        assert np.linalg.norm(found[key] - value) < 0.1 * np.linalg.norm(value) + 1e-5, key


def test_a_run_is_evaluated_to_the_same_result(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    folder = copy(tmp_path / 'run', 8)
    assert run.main(['run.py', '--mode=eval', f'--model_dir={folder}']) == 0
    result = json.loads((folder / 'result.json').read_text())
    expected = json.loads((FOLDER / 'result.json').read_text())
    # After 8 steps images are nearly equally similar: another processor's rounding may give one of
    # the 40 another neighbor.
    accuracy = expected.pop('eval/knn_accuracy')
    assert result['eval/knn_accuracy'] == pytest.approx(accuracy, abs=0.026)
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    capsys.readouterr()


@pytest.mark.parametrize('place', ['', 'ckpt-4', 'module'])
def test_its_weights_are_opened(place: str) -> None:
    weights = open_weights(str(FOLDER / place))
    assert weights.architecture['width_multiplier'] == 0.03125
    assert (weights.num_classes, weights.image_size, weights.head_layers) == (10, 8, 2)
