"""A method from outside of the project trains, goes on, is evaluated and exported."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator

import pytest
import tensorflow as tf

import hub_export
import run
from common.methods import MethodEntry
from common.views import View, op
from hub_export import publish
from tests.support import no_checker
from tf2.methods import METHODS

FLAGS = (
    '--method=toy',
    '--dataset=bundled',
    '--train_split=train[:64]',
    '--eval_split=test[:32]',
    '--image_size=16',
    '--resnet_depth=18',
    '--width_multiplier=0.0625',
    '--train_batch_size=16',
    '--eval_batch_size=16',
    '--knn_neighbors=5',
    '--optimizer=lars',
)
ENTRY = MethodEntry(
    'tests.toys:ToyMethod',
    views=(
        View((op('crop', area=(0.5, 1.0)), op('flip'))),
        View((op('crop', area=(0.1, 0.5)), op('solarize', probability=0.5)), size=8, draw=2),
    ),
    summary='Pulls views together.',
    reads=('method', 'temperature', 'lineareval_while_pretraining'),
    defaults={'temperature': 0.7, 'lineareval_while_pretraining': False},
)


@pytest.fixture(scope='module', autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, 'toy', ENTRY)
        patch.setattr(publish, '_checker', no_checker)
        yield


def main(*arguments: str) -> tuple[int, str]:
    """Runs the program in this process; returns its status and what it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run.main(['run.py', *arguments])
    return status, said.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that was begun and went on."""
    folder = tmp_path_factory.mktemp('toy') / 'run'
    for steps in (2, 3):
        status, said = main(*FLAGS, f'--model_dir={folder}', f'--train_steps={steps}')
        assert status == 0, said
    return folder


@pytest.mark.smoke
def test_it_trains_what_it_says_and_goes_on(folder: pathlib.Path) -> None:
    recorded = json.loads((folder / 'flags.json').read_text())
    assert (recorded['method'], recorded['temperature']) == ('toy', 0.7)
    reader = tf.train.load_checkpoint(str(folder / 'ckpt-3'))
    names = reader.get_variable_to_shape_map()
    assert any(name.startswith('objective/predictor/kernel') for name in names)
    slots = [shape for name, shape in names.items() if name.startswith('optimizer/')]
    assert [128, 128] in slots, 'the optimizer updates the predictor'


def test_it_is_evaluated(folder: pathlib.Path) -> None:
    status, said = main('--mode=eval', f'--model_dir={folder}', '--eval_name=again')
    assert status == 0, said
    result = json.loads((folder / 'again' / 'result.json').read_text())
    assert result['global_step'] == 3 and 0 <= result['eval/knn_accuracy'] <= 1


def test_it_is_exported(folder: pathlib.Path) -> None:
    assert hub_export.read_record(str(folder / 'saved_model' / '3')) is not None
    module = tf.saved_model.load(str(folder / 'saved_model' / '3'))
    assert module(tf.zeros([1, 16, 16, 3]))['final_avg_pool'].shape == [1, 32]


def test_help_choices_and_refusals_follow_from_the_entry(tmp_path: pathlib.Path) -> None:
    assert '--method=toy' in run.help_text()
    status, said = main(*FLAGS, f'--model_dir={tmp_path}', '--memory_size=32')
    assert status == 2
    assert '--memory_size is for --method=simclr; found --method=toy.' in said
    status, said = main('--method=unheard', f'--model_dir={tmp_path}')
    assert status == 2 and '--method must be one of simclr, toy; found' in said
