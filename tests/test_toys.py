"""A backbone from outside the project works in every mode."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

import run
from app.planned_run import PlannedRun
from app.report import runs
from hub_export import publish, read_record
from tests.support import bare_runs, no_checker
from tests.toys import ToyBackbone
from tf2.config import ModelConfig
from tf2.memory_estimate import is_known
from tf2.models import BACKBONES, BackboneEntry
from tf2.models.encoder import SimCLRModel, build_model
from tf2.weights import Weights, open_weights
from tf2.weights.layout import own_variables

STEPS = 3
BUNDLED = (
    '--dataset=bundled',
    '--train_split=train[:64]',
    '--eval_split=test[:32]',
    '--image_size=16',
    '--train_batch_size=16',
    '--eval_batch_size=20',
    '--checkpoint_steps=2',
)
HEAD = ('--num_proj_layers=2', '--proj_out_dim=4')


@pytest.fixture(scope='module', autouse=True)
def registered(known_labels: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            BACKBONES, 'toy', BackboneEntry('tests.toys:ToyBackbone', 'tests.toys:count_blocks')
        )
        patch.setattr(publish, '_checker', no_checker)
        yield


def main(*arguments: str) -> str:
    """Runs the program in this process; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert run.main(['run.py', *arguments]) == 0
    return shown.getvalue()


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """The folder of a resumed run, and what it printed the second time."""
    folder = tmp_path_factory.mktemp('toys') / 'run'
    flags = (*BUNDLED, *HEAD, '--backbone=toy', '--memory_size=32', f'--model_dir={folder}')
    with bare_runs():
        assert 'Pretraining toy from scratch' in main(*flags, f'--train_steps={STEPS - 1}')
    return folder, main('--mode=train_then_eval', *flags, f'--train_steps={STEPS}')


def values(weights: Weights) -> dict[str, np.ndarray]:
    """The contents of a file by names of a model's variables."""
    reader = tf.train.load_checkpoint(weights.prefix)
    return {name: reader.get_tensor(key) for name, key in weights.contents.keys.items()}


def toy_model(**settings: object) -> SimCLRModel:
    config = ModelConfig(backbone='toy', num_proj_layers=2, proj_out_dim=4, **settings)
    return build_model(SimCLRModel(config, 16, 10))


@pytest.mark.smoke
def test_it_trains_and_resumes(pretrained: tuple[pathlib.Path, str]) -> None:
    folder, shown = pretrained
    assert f'Pretraining toy going on from {folder}/ckpt-{STEPS - 1}' in shown
    assert json.loads((folder / 'flags.json').read_text())['backbone'] == 'toy'
    assert json.loads((folder / 'result.json').read_text())['global_step'] == STEPS
    assert not is_known(ModelConfig(backbone='toy'))  # so its memory was not estimated


def test_it_is_evaluated(pretrained: tuple[pathlib.Path, str]) -> None:
    folder, _ = pretrained
    before = json.loads((folder / f'result_{STEPS}.json').read_text())
    main('--mode=eval', f'--model_dir={folder}', '--eval_name=again')
    again = json.loads((folder / 'again' / f'result_{STEPS}.json').read_text())
    assert again == pytest.approx(before, abs=1e-6)


def test_its_module_is_loaded(pretrained: tuple[pathlib.Path, str]) -> None:
    folder, _ = pretrained
    path = f'{folder}/saved_model/{STEPS}'
    record = read_record(path)
    model = build_model(SimCLRModel(record.model, record.image_size, record.num_classes))
    tf.train.Checkpoint(model=model).restore(f'{path}/variables/variables').expect_partial()
    assert isinstance(model.backbone, ToyBackbone)
    images = tf.random.stateless_uniform([2, 16, 16, 3], [1, 2])
    found = tf.saved_model.load(path)(images, training=False)
    assert set(found) >= {'last_map', 'final_avg_pool', 'logits_sup'}
    for name, expected in model(images).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


@pytest.mark.parametrize('place', ['', f'ckpt-{STEPS}', f'saved_model/{STEPS}'])
def test_its_weights_are_opened_and_loaded(
    place: str, pretrained: tuple[pathlib.Path, str]
) -> None:
    weights = open_weights(f'{pretrained[0]}/{place}')
    assert weights.recorded and weights.small_images is None
    assert weights.architecture['backbone'] == 'toy'
    found = (weights.num_classes, weights.image_size, weights.head_layers, weights.step)
    assert found == (10, 16, 2, STEPS)
    model = toy_model()
    report = weights.load_into(model, head_layers=-1)
    assert len(report.loaded) == len(model.variables) and not report.missing
    assert set(report.left_out) <= {'not weights'}
    expected = values(weights)
    for name, variable in own_variables(model).items():
        np.testing.assert_array_equal(variable, expected[name], name)


def test_layers_that_do_not_fit_are_left_out(
    pretrained: tuple[pathlib.Path, str],
) -> None:
    weights = open_weights(str(pretrained[0]))
    config = ModelConfig(backbone='toy', num_proj_layers=2, proj_out_dim=5)
    report = weights.load_into(build_model(SimCLRModel(config, 16, 7)))
    reasons = [reason for reason in report.left_out if reason != 'not weights']
    assert reasons == [
        'projection layer 2: kernel 6x4 in the file, 6x5 here',
        'classifier: 10 classes in the file, 7 here',
    ]
    resnet = build_model(SimCLRModel(ModelConfig(resnet_depth=18, width_multiplier=0.1), 16, 7))
    with pytest.raises(run.UserError, match='must be of --backbone=resnet; found toy'):
        weights.load_into(resnet)


def test_it_is_fine_tuned_from_a_block_on(
    pretrained: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    with bare_runs():
        shown = main(
            *BUNDLED,
            '--train_mode=finetune',
            f'--checkpoint={pretrained[0]}',
            f'--model_dir={tmp_path}',
            '--fine_tune_after_block=1',
            '--ft_proj_selector=1',
            '--train_steps=2',
        )
    assert f'Fine-tuning toy from {pretrained[0]}' in shown
    # 3 * 3 * 6 * 6 weights and 12 of BN; 6 * 6 and 12; 6 * 10 and 10 biases.
    assert 'Training 454 parameters: block_group2 336, proj_layer1 48, classifier 70.' in shown
    before, after = values(open_weights(str(pretrained[0]))), values(open_weights(str(tmp_path)))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    frozen = ('model/backbone/blocks/0/', 'model/backbone/blocks/1/')
    head = 'model/projection_head/blocks/1/'  # which the classifier doesn't read
    assert same == {name for name in before if name.startswith((*frozen, head))}


@pytest.mark.parametrize('after_block', [2, 4])  # it has two blocks; presets say 4
def test_it_is_a_teacher(
    after_block: int, pretrained: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    with bare_runs():
        shown = main(
            *BUNDLED,
            '--train_mode=distill',
            '--backbone=toy',
            f'--teacher={pretrained[0]}',
            f'--model_dir={tmp_path / "student"}',
            f'--fine_tune_after_block={after_block}',
            '--train_steps=1',
        )
    assert 'Distilling into toy from scratch' in shown
    assert 'Training 70 parameters: classifier 70.' in shown


def test_it_is_exported(pretrained: tuple[pathlib.Path, str], tmp_path: pathlib.Path) -> None:
    flags = ('--mode=export', f'--checkpoint={pretrained[0]}', f'--model_dir={tmp_path / "new"}')
    assert re.search(r"Exported: hub.load\('.*/new/saved_model/3'\)", main(*flags))


@pytest.mark.parametrize(('after_block', 'linear'), [(-1, False), (1, False), (2, True), (4, True)])
def test_a_report_notes_if_only_the_classifier_was_trained(
    after_block: int,
    linear: bool,
    pretrained: tuple[pathlib.Path, str],
    tmp_path: pathlib.Path,
) -> None:
    recorded = json.loads((pretrained[0] / 'flags.json').read_text())
    changes = {'train_mode': 'finetune', 'fine_tune_after_block': after_block}
    (tmp_path / 'flags.json').write_text(json.dumps({**recorded, **changes}))
    (row,) = runs.table([PlannedRun('Fine-tuning', {'model_dir': str(tmp_path)})])
    assert row.note == 'only the linear classifier was trained' * linear


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--fine_tune_after_block=5',), 'found 5. toy has 2 blocks: with 2 the classifier alone'),
        (('--backbone=resnet',), 'holds backbone toy; the flags ask for backbone resnet'),
        (('--ft_proj_selector=3',), 'projection head; found 2'),
    ],
)
def test_flags_that_do_not_fit_it_are_refused(
    flags: tuple[str, ...],
    words: str,
    pretrained: tuple[pathlib.Path, str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = (*BUNDLED, '--train_mode=finetune', f'--checkpoint={pretrained[0]}', *flags)
    assert run.main(['run.py', *arguments, f'--model_dir={tmp_path / "new"}']) == 2
    assert words in capsys.readouterr().err
