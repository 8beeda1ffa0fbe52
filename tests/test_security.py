"""Folders from elsewhere are only data: they open no model and write nothing outside."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable

import pytest
import tensorflow as tf
import tensorflow_hub as hub

import run
from app import evaluate
from app.config.resolution import for_evaluation, from_values
from app.config.schema import Config
from app.planned_run import PlannedRun
from app.report import predictions, runs
from app.run_folder import write_flags
from common.errors import UserError
from data import sources
from data.config import DataConfig
from hub_export import publish
from tests.support import no_checker
from tests.tf2.test_teacher import Plain, exported, opened, run_folder, saved, student_of
from tf2.config import EvaluationConfig
from tf2.teacher import open_teacher
from tf2.weights import open_weights

NO_NAMES = ('../x', '..', '.', '/x', 'a/b', 'a b', 'x\n', '\u202e', '~', 'C:x', '')


@pytest.mark.parametrize('name', NO_NAMES[:-1])
def test_an_evaluation_name_must_not_be_a_path(name: str) -> None:
    """On the command line or in a folder's record."""
    with pytest.raises(UserError, match='--eval_name must be a folder name of letters'):
        EvaluationConfig(eval_name=name)
    with pytest.raises(UserError, match='--eval_name must be a folder name of letters'):
        for_evaluation({'eval_name': name}, {'mode': 'eval'})
    EvaluationConfig(eval_name='a-b_c.1')


def test_an_evaluation_does_not_write_through_a_link(tmp_path: pathlib.Path) -> None:
    for name in ('run', 'elsewhere'):
        (tmp_path / name).mkdir()
    (tmp_path / 'run' / 'again').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match=r'must be a folder of its own, .*; found a link to'):
        evaluate._check_is_own(str(tmp_path / 'run'), str(tmp_path / 'run' / 'again'))
    os.symlink(tmp_path / 'run', tmp_path / 'link')  # the user's own
    evaluate._check_is_own(str(tmp_path / 'link'), f'{tmp_path / "link"}/')


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the SavedModels that were loaded as code."""
    loaded: list[str] = []
    real = hub.load

    def note(path: str, *_: object, **__: object) -> object:
        loaded.append(path)
        return real(path)

    def never(path: str, *_: object, **__: object) -> None:
        raise AssertionError(f'{path} was run')

    monkeypatch.setattr(hub, 'load', note)
    monkeypatch.setattr(tf.saved_model, 'load', never)
    return loaded


def test_foreign_models_are_opened_with_a_warning_or_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = saved(tmp_path / 'm', Plain())
    opened(path)
    said = f"--teacher={path} is another program's SavedModel, which runs as code with your rights"
    assert f'{said}.\n' in capsys.readouterr().out
    monkeypatch.setattr(hub, 'load', None)
    with pytest.raises(UserError, match=r'; --safe_weights refuses that'):
        open_teacher(path, precision='float32', safe=True)


@pytest.mark.parametrize('write', [run_folder, exported])
def test_our_own_models_are_read_as_data(
    write: Callable,
    code: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A run and a module, as a teacher and as weights to start from; a module in a report."""
    monkeypatch.setattr(publish, '_checker', no_checker)
    path = write(tmp_path / 'saved_model', student_of())
    open_teacher(path, precision='float32', safe=True)
    assert open_weights(path).num_classes == 5
    assert code == [] and 'as code' not in capsys.readouterr().out
    if write is exported:
        planned = PlannedRun('A', {'model_dir': str(tmp_path)})
        module = predictions.load_module(runs.Run(planned, {}, Config(), {}, {}, None, None))
        assert module(tf.zeros([1, 8, 8, 3]))['logits_sup'].shape == [1, 5]


def test_weights_of_a_foreign_module_are_read_and_its_graph_is_not_run(
    code: list[str], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match='should hold a SimCLR model'):
        open_weights(saved(tmp_path / 'm', Plain()))
    assert code == []


@pytest.mark.parametrize('name', ['huggingface:mnist', 'some_user:mnist', 'a:b/c'])
def test_a_data_set_name_that_downloads_code_is_not_local(name: str) -> None:
    assert not sources.is_here(DataConfig(dataset=name))


def recorded_run(folder: pathlib.Path, **settings: object) -> str:
    """A folder from elsewhere with arbitrary settings in its record."""
    folder.mkdir()
    config = from_values({'image_size': 8, 'resnet_depth': 18, **settings})
    write_flags(str(folder), config, {'num_classes': 10, 'train_examples': 64})
    return str(folder)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (
            {'dataset': 'mnist', 'data_dir': 'nowhere'},
            'must be prepared already; found none in nowhere',
        ),
        ({'dataset': 'huggingface:mnist'}, 'must be prepared already; found none in'),
        ({'dataset': 'mnist', 'tf_data_service': 'grpc://127.0.0.1:1'}, 'found none in'),
        ({'dataset': 'mnist', 'master': 'grpc://127.0.0.1:1'}, 'found none in'),
    ],
)
def test_a_record_causes_no_download_or_connection(
    settings: dict[str, object],
    words: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    folder = recorded_run(tmp_path / 'run', **settings)
    before = sorted(tmp_path.rglob('*'))
    assert run.main(['run.py', '--mode=eval', f'--model_dir={folder}', '--use_tpu=False']) == 2
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('dataset', ['image_folder', 'mnist'])
@pytest.mark.parametrize('data_dir', ['http://host/data', 'foo://data', 'gs://bucket/data'])
def test_a_recorded_data_dir_out_of_reach_is_one_line(
    dataset: str,
    data_dir: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """An unknown file system, and one without credentials."""
    exists = tf.io.gfile.exists

    def refuse(path: str) -> bool:
        if path.startswith('gs'):
            raise tf.errors.PermissionDeniedError(None, None, 'no\ncredentials')
        return exists(path)

    monkeypatch.setattr(tf.io.gfile, 'exists', refuse)
    folder = recorded_run(tmp_path / 'run', dataset=dataset, data_dir=data_dir)
    assert run.main(['run.py', '--mode=eval', f'--model_dir={folder}', '--use_tpu=False']) == 2
    error = capsys.readouterr().err
    assert f'--data_dir={data_dir} must be within reach; found: ' in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('kind', ['foreign', 'ours', 'missing'])
def test_a_record_opens_no_teacher(
    kind: str,
    code: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Whatever the record names; the command line may name it again."""
    teacher = str(tmp_path / 'teacher')
    if kind == 'foreign':
        saved(tmp_path / 'teacher', Plain())
    elif kind == 'ours':
        run_folder(tmp_path / 'teacher', student_of())
    settings = {'train_mode': 'distill', 'teacher': teacher, 'dataset': 'bundled'}
    splits = {'train_split': 'train[:64]', 'eval_split': 'test[:8]', 'train_batch_size': 8}
    folder = recorded_run(tmp_path / 'run', **settings, **splits, width_multiplier=0.0625)
    monkeypatch.setattr(evaluate, '_new_checkpoints', lambda *_: [])
    command = ['run.py', '--mode=eval', f'--model_dir={folder}']
    assert run.main(command) == 0
    assert 'The teacher is not opened' in capsys.readouterr().out
    assert code == []
    assert run.main([*command, f'--teacher={teacher}', '--safe_weights']) == 2
    said = {
        'foreign': '--safe_weights refuses',
        'ours': 'must have the classes of bundled, 10; found 5',
        'missing': 'found nothing there',
    }
    assert said[kind] in capsys.readouterr().err


def test_a_recorded_path_as_evaluation_name_is_damage(tmp_path: pathlib.Path) -> None:
    folder = pathlib.Path(recorded_run(tmp_path / 'run', dataset='bundled'))
    record = json.loads((folder / 'flags.json').read_text())
    (folder / 'flags.json').write_text(json.dumps({**record, 'eval_name': '../x'}))
    assert run.main(['run.py', '--mode=eval', f'--model_dir={folder}']) == 2
    assert not (tmp_path / 'x').exists()
