"""Every pretraining method besides SimCLR, from the command line: trained, resumed, fine-tuned."""

from __future__ import annotations

import contextlib
import io
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import run
from app.config.resolution import resolve
from app.presets import PRESETS
from tf2 import collapse
from tf2.methods import METHODS
from tf2.weights import open_weights

pytestmark = pytest.mark.usefixtures('plain', 'bare_runs', 'known_labels')

OTHERS = [name for name in METHODS if name != 'simclr']
NAMES = ('whole', 'parts')
# Settings for so few images, and those that take another way through a method.
MORE = {
    'swav': (
        '--prototypes=10',
        '--queue_size=16',
        '--queue_start_epoch=0',
        '--local_crops=2',
        '--local_crop_size=8',
    ),
}
WITHOUT_STATE = ('invaspread',)  # the model is all they have
TINY = (
    '--train_split=train[:32]',
    '--eval_split=test[:16]',
    '--image_size=16',
    '--train_batch_size=16',
    '--eval_batch_size=16',
    '--width_multiplier=0.0625',
    '--knn_neighbors=5',
)


def main(*arguments: str) -> str:
    """Runs the program in this process; returns its output."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run.main(['run.py', *arguments])
    assert status == 0, said.getvalue()
    return said.getvalue()


@pytest.mark.parametrize('method', OTHERS)
def test_the_default_preset_is_that_of_the_method(method: str) -> None:
    config = resolve({'method': method}, PRESETS)
    assert PRESETS[config.run.preset].flags['method'] == config.learning.method == method
    assert config.data.dataset == 'bundled'


@pytest.mark.parametrize('method', OTHERS)
def test_it_is_trained_resumed_and_fine_tuned(
    method: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any run counts as collapsed.
    monkeypatch.setitem(collapse.LOWEST, 'representation', 10.0)
    flags = (f'--method={method}', *TINY, *MORE.get(method, ()))
    steps = ('--train_steps=3', '--checkpoint_steps=2')
    said = main(*flags, *steps, '--train_summary_steps=1', f'--model_dir={tmp_path}/whole')
    assert said.count('the representation has collapsed') == 1
    shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
    for file in (tmp_path / 'parts').glob('ckpt-3*'):
        file.unlink()
    assert 'ckpt-2' in main(*flags, *steps, f'--model_dir={tmp_path}/parts')
    whole, parts = (tf.train.load_checkpoint(str(tmp_path / n / 'ckpt-3')) for n in NAMES)
    names = [n for n in whole.get_variable_to_shape_map() if n.endswith('VARIABLE_VALUE')]
    own = any(name.startswith('objective/') for name in names)
    assert own is (method not in WITHOUT_STATE)
    for name in names:
        found, expected = parts.get_tensor(name), whole.get_tensor(name)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=name)
    tuned = main(
        *TINY,
        '--mode=train_then_eval',
        '--train_mode=finetune',
        '--ft_proj_selector=1',
        '--label_fraction=1',
        f'--checkpoint={tmp_path}/whole',
        f'--model_dir={tmp_path}/tuned',
        '--train_steps=1',
    )
    assert 'proj_layer1' in tuned
    weights = open_weights(str(tmp_path / 'tuned'))
    assert (weights.method, weights.selector) == (method, 1)
