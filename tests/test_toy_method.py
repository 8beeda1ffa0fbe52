"""A method from outside the project, with its own projection head, works in every mode.

It is trained, resumed, evaluated, exported, fine-tuned, used as a teacher, and reported.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

import hub_export
import run
from app.planned_run import PlannedRun
from app.report import predictions, runs
from common.methods import MethodEntry
from common.views import View, op
from hub_export import publish
from tests.support import bare_runs, no_checker
from tf2.methods import METHODS
from tf2.teacher import open_teacher
from tf2.weights import open_weights

BUNDLED = (
    '--dataset=bundled',
    '--train_split=train[:64]',
    '--eval_split=test[:32]',
    '--image_size=16',
    '--train_batch_size=16',
    '--eval_batch_size=16',
)
FLAGS = (
    *BUNDLED,
    '--method=toy',
    '--resnet_depth=18',
    '--width_multiplier=0.0625',
    '--knn_neighbors=5',
    '--optimizer=lars',
)
LAYERS = 5  # of the toy's head, of 6 to 10 channels; SimCLR's has 3
MIDDLE = 4
IMAGES = tf.random.stateless_uniform([4, 16, 16, 3], [1, 2])
ENTRY = MethodEntry(
    'tests.toys:ToyMethod',
    views=(
        View((op('crop', area=(0.5, 1.0)), op('flip'))),
        View((op('crop', area=(0.1, 0.5)), op('solarize', probability=0.5)), size=8, draw=2),
    ),
    summary='Pulls views together.',
    reads=('method', 'temperature', 'lineareval_while_pretraining'),
    defaults={'temperature': 0.7, 'lineareval_while_pretraining': False},
    head_layers='tests.toys:count_layers',
)


@pytest.fixture(scope='module', autouse=True)
def registered(plain: None, known_labels: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, 'toy', ENTRY)
        patch.setattr(publish, '_checker', no_checker)
        yield


def main(*arguments: str) -> tuple[int, str]:
    """Runs the program in this process; returns its status and its output."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run.main(['run.py', *arguments])
    return status, said.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a resumed run."""
    folder = tmp_path_factory.mktemp('toy') / 'run'
    for steps in (2, 3):
        with bare_runs() if steps < 3 else contextlib.nullcontext():
            status, said = main(*FLAGS, f'--model_dir={folder}', f'--train_steps={steps}')
        assert status == 0, said
    return folder


@pytest.mark.smoke
def test_it_trains_its_modules_and_resumes(folder: pathlib.Path) -> None:
    recorded = json.loads((folder / 'flags.json').read_text())
    assert (recorded['method'], recorded['temperature']) == ('toy', 0.7)
    reader = tf.train.load_checkpoint(str(folder / 'ckpt-3'))
    names = reader.get_variable_to_shape_map()
    assert any(name.startswith('objective/predictor/kernel') for name in names)
    slots = [shape for name, shape in names.items() if name.startswith('optimizer/')]
    assert [10, 10] in slots, 'the optimizer updates the predictor'


def test_it_is_evaluated(folder: pathlib.Path) -> None:
    status, said = main('--mode=eval', f'--model_dir={folder}', '--eval_name=again')
    assert status == 0, said
    result = json.loads((folder / 'again' / 'result.json').read_text())
    assert result['global_step'] == 3 and 0 <= result['eval/knn_accuracy'] <= 1


def test_it_is_exported(folder: pathlib.Path) -> None:
    assert hub_export.read_record(str(folder / 'saved_model' / '3')) is not None
    module = tf.saved_model.load(str(folder / 'saved_model' / '3'))
    assert module(tf.zeros([1, 16, 16, 3]))['final_avg_pool'].shape == [1, 32]


@pytest.fixture(scope='module')
def tuned(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a resumed fine-tuning from a middle layer of the head."""
    tuned = tmp_path_factory.mktemp('toy') / 'tuned'
    start = (f'--checkpoint={folder}', f'--ft_proj_selector={MIDDLE}')
    for steps, more in ((1, start), (2, start), (3, start[1:])):
        flags = ('--train_mode=finetune', f'--model_dir={tuned}', f'--train_steps={steps}', *more)
        with bare_runs() if steps < 3 else contextlib.nullcontext():
            status, said = main(*BUNDLED, *flags)
        assert status == 0, said
        # 32 * 6 and 6 biases, then layers with BN of 7, 8 and 9 channels; 9 * 10 and 10 biases.
        assert 'proj_layer1 198, proj_layer2 56, proj_layer3 72, proj_layer4 90, cla' in said
    return tuned


def logits_of(module: pathlib.Path) -> np.ndarray:
    return tf.saved_model.load(str(module))(IMAGES, training=False)['logits_sup'].numpy()


def test_it_is_fine_tuned_from_a_layer_of_its_head(
    folder: pathlib.Path, tuned: pathlib.Path
) -> None:
    assert json.loads((tuned / 'flags.json').read_text())['method'] == 'toy'
    before, after = open_weights(str(folder)), open_weights(str(tuned))
    assert (before.method, after.method) == ('toy', 'toy')
    assert (before.head_layers, after.head_layers, after.selector) == (LAYERS, LAYERS, MIDDLE)
    status, said = main('--mode=eval', f'--model_dir={tuned}', '--eval_name=again')
    assert status == 0, said


@pytest.mark.parametrize('place', ['', 'ckpt-3', 'saved_model/3'])
def test_the_fine_tuned_model_is_exported(
    place: str, tuned: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    status, said = main('--mode=export', f'--checkpoint={tuned}/{place}', f'--model_dir={tmp_path}')
    assert status == 0, said
    assert hub_export.read_record(str(tmp_path / 'saved_model' / '3')).method == 'toy'
    expected = logits_of(tuned / 'saved_model' / '3')
    np.testing.assert_allclose(logits_of(tmp_path / 'saved_model' / '3'), expected, atol=1e-5)


def test_the_fine_tuned_model_is_a_teacher(tuned: pathlib.Path, tmp_path: pathlib.Path) -> None:
    expected = logits_of(tuned / 'saved_model' / '3')
    for place in ('', 'saved_model/3'):
        teacher = open_teacher(f'{tuned}/{place}', precision='float32')
        np.testing.assert_allclose(teacher.logits(IMAGES), expected, atol=1e-5)
    flags = ('--train_mode=distill', f'--teacher={tuned}', f'--checkpoint={tuned}')
    with bare_runs():
        status, said = main(*BUNDLED, *flags, f'--model_dir={tmp_path}', '--train_steps=1')
    assert status == 0, said
    recorded = json.loads((tmp_path / 'flags.json').read_text())
    assert (recorded['method'], recorded['ft_proj_selector']) == ('toy', MIDDLE)


def test_the_fine_tuned_model_is_in_the_report(tuned: pathlib.Path) -> None:
    read = runs.read_run(PlannedRun('Fine-tuning', {'model_dir': str(tuned)}))
    expected = logits_of(tuned / 'saved_model' / '3')
    found = predictions.load_module(read)(IMAGES)['logits_sup']
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model = open_weights(str(tuned)).build()
    unread = model.projection_head.blocks[MIDDLE]
    trained = [v for v in model.trainable_variables if not any(v is u for u in unread.variables)]
    assert runs.count_parameters(read) == sum(v.shape.num_elements() for v in trained)


def test_layers_that_its_head_lacks_are_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    more = (f'--model_dir={tmp_path}', f'--ft_proj_selector={LAYERS + 1}')
    status, said = main(*FLAGS, *more)
    assert status == 2 and f'the number of projection layers, {LAYERS}; found {LAYERS + 1}' in said
    status, said = main(*BUNDLED, '--train_mode=finetune', f'--checkpoint={folder}', *more)
    assert status == 2 and f'found {LAYERS} in --checkpoint={folder}' in said
    status, said = main(*BUNDLED, '--train_mode=finetune', f'--model_dir={tmp_path}', more[1])
    assert status == 2 and f'the number of projection layers, 3; found {LAYERS + 1}' in said


def test_help_choices_and_refusals_follow_from_the_entry(tmp_path: pathlib.Path) -> None:
    assert '--method=toy' in run.help_text()
    status, said = main(*FLAGS, f'--model_dir={tmp_path}', '--memory_size=32')
    assert status == 2
    assert '--memory_size is for --method=simclr or ' in said and '; found --method=toy.' in said
    status, said = main('--method=unheard', f'--model_dir={tmp_path}')
    assert status == 2 and f'--method must be one of {", ".join(METHODS)}; found' in said
