"""The program as users run it: what it refuses, and small runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

import run
from app import evaluate, experiment, lock, train
from app.config.resolution import from_values, resolve
from app.presets import PRESETS
from app.run_folder import write_flags
from common.interruption import Interrupted
from common.stages import STAGES
from hub_export import publish
from tests.support import mirrored, no_checker
from tf2 import precision
from tf2.config import ModelConfig
from tf2.models.encoder import SimCLRModel, build_model
from tf2.teacher import open_teacher

VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
PROGRAM = pathlib.Path(__file__).parents[1] / 'run.py'


def listed(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(
    folder: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs the program with flags it must refuse; returns the error line."""

    def never_train(*_: object, **__: object) -> None:
        raise AssertionError('The run must end before the training.')

    def check(*arguments: str) -> str:
        monkeypatch.setattr(train, 'train', never_train)
        before = listed(folder)
        given = arguments if '--model_dir' in ' '.join(arguments) else ('--model_dir=m', *arguments)
        assert run.main(['run.py', *given]) == 2
        shown = capsys.readouterr()
        assert shown.out == ''
        assert shown.err.startswith('run.py: error: ')
        assert shown.err.count('\n') == 1 and shown.err.endswith('\n')
        assert listed(folder) == before
        return shown.err

    return check


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--dataset=cifar11'], "no data set 'cifar11'"),
        (['--dataset='], "--dataset must have a value; found ''"),
        (['--mode=train_then_eval', '--eval_split=test[5:2]'], 'must not end before it starts'),
        (['--train_split=train[9:3]+test'], 'must not end before it starts'),
        (['--train_split=train[:0]'], '--train_split must have examples'),
        (['--model_dir='], "--model_dir must have a value; found ''"),
        (['--train_split=tarin'], "no split 'tarin'; its splits are: test, train"),
        (['--mode=train_then_eval', '--eval_split=validation'], "no split 'validation'"),
        (['--mode=train_then_eval', '--eval_split=test[:0]'], '--eval_split must have examples'),
        (
            ['--mode=train_then_eval', '--knn_neighbors=7000'],
            'training examples .*6000; found 7000',
        ),
        (['--resnet_depth=42'], 'must be one of 18, 34, 50, 101, 152, 200; found 42'),
        (['--optimizer=sdg'], 'must be one of momentum, adam, lars, lamb, sgd; found .sdg'),
        (['--preset=demmo'], 'must be one of demo, .*; found .demmo'),
        (['--proj_head_mode=nonlinaer'], 'must be one of none, linear, nonlinear; found'),
        (['--train_batch_size=6001'], 'at most the number of training examples, 6000.*found 6001'),
        (['--train_batch_size=0'], '--train_batch_size must be at least 1; found 0'),
        (['--image_size=0'], '--image_size must be at least 1; found 0'),
        (['--learning_rate=-0.1'], r'--learning_rate must be at least 0; found -0\.1'),
        (
            ['--fine_tune_after_block=2'],
            'is for fine-tuning and distillation; found --train_mode=pr',
        ),
        (['--zero_init_logits_layer'], 'is for fine-tuning'),
        (
            ['--label_fraction=0.1'],
            'is for fine-tuning and distillation; found --train_mode=pretrain',
        ),
        (
            ['--memory_size=300', '--train_batch_size=256'],
            'multiple of --train_batch_size, 256; found 300. Try 256, or 0',
        ),
        (
            ['--memory_size=64', '--train_batch_size=256'],
            'multiple of --train_batch_size, 256; found 64. Try 256, or 0',
        ),
        (['--memory_size=-1'], '--memory_size must be at least 0; found -1'),
        (
            ['--memory_size=512', '--train_mode=finetune', '--train_batch_size=256'],
            'is for pretraining; found --train_mode=finetune',
        ),
        (['--momentum_encoder_decay=1.5'], r'must be less than 1; found 1\.5'),
        (['--momentum_encoder_decay=-0.5'], r'must be at least 0; found -0\.5'),
        (['--export_momentum_encoder'], 'is read with --memory_size only; found --memory_size=0'),
        (
            ['--mode=export', '--checkpoint=x', '--memory_size=512', '--export_momentum_encoder'],
            '--memory_size is for training; found --mode=export',
        ),
        (['--train_mode=distill'], 'needs a --teacher'),
        (
            ['--train_mode=distill', '--teacher=no/run'],
            '--teacher=no/run should be .*nothing there',
        ),
        (['--teacher=x'], '--teacher is for distillation; found --train_mode=pretrain'),
        (
            ['--train_mode=distill', '--teacher=x', '--label_fraction=0.1'],
            '--distill_alpha=1 uses none',
        ),
        (['--train_mode=distill', '--teacher=x', '--distill_alpha=2'], 'at most 1; found 2'),
        (['--train_mode=distill', '--teacher=x', '--distill_temperature=0'], 'greater than 0'),
        (['--train_mode=distill', '--teacher=x', '--teacher_view=same'], 'one of student, eval'),
        (['--use_tpu=True'], 'expects an attached TPU, --tpu_name or --master'),
        (['--mode=eval'], '--mode=eval needs --model_dir'),
        (['--mode=eval', '--model_dir='], '--model_dir must have a value'),
        (['--train_stops=3'], "Unknown command line flag 'train_stops'. Did you mean: train_steps"),
        (['demo'], "Expected only --flags; found 'demo'"),
        (['--train_batch_size=many'], 'must be a whole number; found .many'),
        (['--train_batch_size=2.5'], r'must be a whole number; found .2\.5'),
        (['--temperature=hot'], '--temperature must be a number; found .hot'),
        (['--width_multiplier=wide'], '--width_multiplier must be a number; found .wide'),
        (['--use_blur=perhaps'], '--use_blur must be true or false; found .perhaps'),
        (['--train_batch_size'], 'Missing value for flag --train_batch_size'),
        (['--nouse_blur=True'], '--nouse_blur=True does not take an argument'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_mistakes_are_one_line(refused: Callable, arguments: list[str], words: str) -> None:
    assert re.search(words, refused(*arguments))


def test_batches_that_do_not_split_over_the_replicas_are_refused(
    refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment.distribution, 'build_strategy', lambda config: mirrored(4))
    message = refused('--train_batch_size=258')
    assert 'must be a multiple of the number of replicas, 4; found 258. Try 256.' in message


@pytest.mark.parametrize(
    ('given', 'environment', 'strategy'),
    [
        ({}, {}, None),
        ({}, {'TF_CONFIG': '{}'}, 'multi_worker'),
        ({'strategy': 'auto'}, {'TF_CONFIG': '{}'}, 'multi_worker'),
        ({'strategy': 'one_device'}, {'TF_CONFIG': '{}'}, 'one_device'),
        ({'use_tpu': True}, {'TF_CONFIG': '{}'}, None),  # TPU hosts set it too
        ({}, {'SLURM_STEP_NUM_TASKS': '2'}, 'multi_worker'),
        ({}, {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '8'}, None),
    ],
)
def test_the_environment_determines_the_multi_worker_strategy(
    given: dict, environment: dict, strategy: str | None
) -> None:
    completed = run.complete({**given, 'model_dir': 'm'}, environment)
    assert completed.get('strategy') == strategy


def test_a_folder_is_chosen_if_none_is_given(folder: pathlib.Path) -> None:
    """It is made at once, so that two starts within a second choose different folders."""
    chosen = [run.complete({}, {})['model_dir'] for _ in range(3)]
    assert len(set(chosen)) == 3 and all(pathlib.Path(name).is_dir() for name in chosen)
    assert all(name.startswith('runs/') for name in chosen)
    assert 'model_dir' not in run.complete({'mode': 'export'}, {})
    assert run.complete({'mode': 'check'}, {'TF_CONFIG': '{}'}).keys() == {'mode', 'model_dir'}


@pytest.mark.parametrize('model_dir', ['file', 'file/below'])
def test_a_model_dir_that_is_a_file_is_refused(
    refused: Callable, folder: pathlib.Path, model_dir: str
) -> None:
    (folder / 'file').write_text('')
    (folder / 'file').chmod(0o755)
    assert 'file is a file' in refused(f'--model_dir={model_dir}')


def test_a_model_dir_that_cannot_be_written_is_refused(
    refused: Callable, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The user who runs the tests may have permission to write everywhere.
    monkeypatch.setattr(os, 'access', lambda path, mode: path != str(folder))
    assert 'is not writable' in refused('--model_dir=new/run')


def test_a_model_dir_of_another_architecture_is_refused(
    refused: Callable, folder: pathlib.Path
) -> None:
    config = resolve({'resnet_depth': 34}, PRESETS)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(), str(folder / 'm'), 1, None, 'ckpt')
    manager.save(checkpoint_number=1)
    write_flags(str(folder / 'm'), config, {'num_classes': 10})
    message = refused()
    assert 'checkpoints of resnet_depth 34; this run asks for resnet_depth 18' in message


def test_an_interruption_prints_how_to_resume(
    folder: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(train, 'train', interrupt)
    assert run.main(['run.py', '--model_dir=here']) == 130
    shown = capsys.readouterr().err
    assert shown == '\nStopped by SIGINT. To resume: python run.py --model_dir=here\n'
    # A folder that the program chose is part of the command.
    assert run.main(['run.py', '--preset=demo']) == 130
    again = capsys.readouterr().err.strip()
    assert re.search(r'To resume: python run.py --preset=demo --model_dir=runs/[0-9-]+$', again)


def test_a_tilde_is_the_home_folder(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(folder))
    config = resolve({'model_dir': '~/run'}, PRESETS)
    assert experiment.prepare(config, {}).config.output.model_dir == str(folder / 'run')


def test_the_precision_that_auto_chose_is_recorded_and_kept(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the run resumes on other hardware."""

    def precision_of(hardware: str, **given: str) -> str:
        (folder / 'cpuinfo').write_text(f'flags : {hardware}\n')
        monkeypatch.setattr(precision, 'CPU_INFO', folder / 'cpuinfo')
        config = resolve({'model_dir': 'run', **given}, PRESETS)
        return experiment.prepare(config, given).config.train.mixed_precision

    assert precision_of('avx512_bf16') == 'bfloat16'
    assert precision_of('avx512f') == 'float32'
    (folder / 'run').mkdir()
    config = resolve({'mixed_precision': 'bfloat16'}, PRESETS)
    write_flags('run', config, {'num_classes': 10})
    assert precision_of('avx512f') == 'float32'  # without checkpoints
    (folder / 'run' / 'ckpt-1.index').touch()
    assert precision_of('avx512f') == 'bfloat16'
    assert precision_of('avx512f', mixed_precision='float32') == 'float32'


def program(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    # Without the log level of the tests: users must not see TensorFlow's messages either.
    environment = {key: value for key, value in os.environ.items() if not key.startswith('TF_CPP')}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.smoke
def test_help_prints_no_message_of_tensorflow(tmp_path: pathlib.Path) -> None:
    done = program(tmp_path, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('SimCLR for TensorFlow 2')
    assert '\n  --learning_rate_scaling (linear | sqrt)\n' in done.stdout
    assert listed(tmp_path) == []


@pytest.mark.smoke
def test_the_program_exits_with_status_2_and_one_line(tmp_path: pathlib.Path) -> None:
    done = program(tmp_path, '--train_split=nothing')
    assert (done.returncode, done.stdout) == (2, '')
    # TensorFlow 2.21 prints messages at its import that can't be turned off.
    notes = re.compile(r'WARNING: All log messages before absl::InitializeLog|I0000 ')
    (line,) = [line for line in done.stderr.splitlines() if not notes.match(line)]
    assert line.startswith("run.py: error: Data set bundled has no split 'nothing'")
    assert listed(tmp_path) == []


# --- a whole run

TINY = (
    '--resnet_depth=18',
    '--width_multiplier=0.25',
    '--image_size=8',
    '--train_batch_size=16',
    '--eval_batch_size=20',
)
BUNDLED = (
    *TINY,
    '--dataset=bundled',
    '--train_split=train[:64]',
    '--eval_split=test[:32]',
    '--train_steps=3',
    '--checkpoint_steps=2',
    '--knn_neighbors=5',
)


def main(*arguments: str) -> str:
    """Runs the program in this process; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert run.main(['run.py', *arguments]) == 0
    return shown.getvalue()


def events(folder: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Step and name of everything written for TensorBoard."""
    for path in folder.glob('events.out.tfevents.*'):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            yield from ((event.step, value.tag) for value in event.summary.value)


@pytest.fixture(scope='module')
def finished(
    plain: None, known_labels: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, str]:
    """The folder of a run, and what it printed."""
    model_dir = tmp_path_factory.mktemp('finished') / 'run'
    return model_dir, main('--mode=train_then_eval', f'--model_dir={model_dir}', *BUNDLED)


@pytest.fixture
def train_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips exports and sample views, which take as long as everything else."""
    monkeypatch.setattr(train.hub_export, 'export_module', lambda *_, **__: 'nowhere')
    monkeypatch.setattr(train, '_write_sample_views', lambda *_: None)


def test_a_full_disk_at_the_start_is_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, 'No space left on device')

    monkeypatch.setattr(train, 'write_flags', full)
    assert run.main(['run.py', *BUNDLED, f'--model_dir={tmp_path}']) == 2
    shown = capsys.readouterr().err
    assert 'Make room' in shown and shown.count('\n') == 1


@pytest.mark.parametrize('written', [True, False], ids=['written', 'half written'])
def test_the_last_evaluation_is_repeated_unless_both_of_its_files_are_there(
    written: bool, tmp_path: pathlib.Path
) -> None:
    """A process can be killed after it has written `result_4.json`, but not yet `result.json`."""
    (tmp_path / 'result_4.json').write_text('{"global_step": 4}')
    (tmp_path / 'result.json').write_text(f'{{"global_step": {4 if written else 2}}}')
    measured: list[int] = []
    tracker = types.SimpleNamespace(
        _experiment=types.SimpleNamespace(checkpoint_steps=2),
        folder=str(tmp_path),
        measure=measured.append,
    )
    evaluate.Tracker.catch_up(tracker, 4)
    assert measured == ([] if written else [4])


def test_a_run_leaves_checkpoints_settings_results_and_a_module(
    finished: tuple[pathlib.Path, str],
) -> None:
    model_dir, shown = finished
    checkpoints = {path.stem for path in model_dir.glob('ckpt-*.index')}
    assert checkpoints == {'ckpt-2', 'ckpt-3'}
    flags = json.loads((model_dir / 'flags.json').read_text())
    assert flags['image_size'] == 8 and flags['num_classes'] == 10
    assert (model_dir / 'saved_model' / '3' / 'saved_model.pb').exists()
    assert f'Exported: hub.load({str(model_dir / "saved_model" / "3")!r})' in shown
    assert not list(model_dir.rglob('*partial*'))


def test_a_run_writes_the_results_the_published_program_writes(
    finished: tuple[pathlib.Path, str],
) -> None:
    model_dir, _ = finished
    results = json.loads((model_dir / 'result.json').read_text())
    assert results == json.loads((model_dir / 'result_3.json').read_text())
    assert results['global_step'] == 3
    assert 0 <= results['eval/label_top_1_accuracy'] <= results['eval/label_top_5_accuracy'] <= 1
    assert 0 <= results['eval/knn_accuracy'] <= 1
    assert results['eval/regularization_loss'] > 0


def test_a_run_writes_curves_and_sample_views(finished: tuple[pathlib.Path, str]) -> None:
    written = set(events(finished[0]))
    # 64 images in batches of 16, summaries every 100 steps and at the end.
    trained = ('total_loss', 'contrast_loss', 'contrast_acc', 'contrast_entropy', 'supervised_acc')
    assert {(3, f'train/{name}') for name in trained} <= written
    measured = ('label_top_1_accuracy', 'label_top_5_accuracy', 'knn_accuracy')
    assert {(3, f'eval/{name}') for name in measured} <= written
    assert (3, 'learning_rate') in written
    assert any(name.startswith('train/views') for _, name in written)


@pytest.mark.usefixtures('train_only')
def test_a_finished_run_is_not_trained_again(finished: tuple[pathlib.Path, str]) -> None:
    model_dir, _ = finished
    before = {path.name: path.read_bytes() for path in model_dir.glob('ckpt-*')}
    shown = main('--mode=train', f'--model_dir={model_dir}', *BUNDLED)
    assert f'going on from {model_dir}/ckpt-3' in shown
    assert 'Training is done: 3 steps.' in shown
    assert {path.name: path.read_bytes() for path in model_dir.glob('ckpt-*')} == before


def test_a_run_must_not_end_before_its_position(
    finished: tuple[pathlib.Path, str], capsys: pytest.CaptureFixture
) -> None:
    arguments = ['--mode=train', f'--model_dir={finished[0]}', *BUNDLED, '--train_steps=2']
    assert run.main(['run.py', *arguments]) == 2
    assert 'holds step 3, this run is to end at step 2' in capsys.readouterr().err


@pytest.mark.usefixtures('train_only')
def test_views_finished_on_a_device_give_the_same_weights(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = []

    def begin(*arguments: object, **options: object) -> tf.data.Dataset:
        batches = train_batches(*arguments, **options)
        unfinished.append('seeds' in batches.element_spec)
        return batches

    train_batches = train.train_batches
    monkeypatch.setattr(train, 'train_batches', begin)
    monkeypatch.setattr(train.distribution, 'has_accelerators', lambda strategy: True)
    main('--mode=train', f'--model_dir={tmp_path}', *BUNDLED)
    assert unfinished == [True]
    expected, found = saved_values(finished[0], 3), saved_values(tmp_path, 3)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-3, err_msg=name)


def unfinished(finished: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes `folder` hold the run as it was after its first checkpoint."""
    for path in [*finished.glob('ckpt-2.*'), finished / 'flags.json']:
        shutil.copy(path, folder)


def resume_unfinished(finished: pathlib.Path, folder: pathlib.Path, *flags: str) -> None:
    """Trains the run in `folder` from its first checkpoint to its end."""
    unfinished(finished, folder)
    (folder / 'checkpoint').write_text('model_checkpoint_path: "ckpt-2"\n')
    shown = main('--mode=train', f'--model_dir={folder}', *flags)
    assert f'going on from {folder}/ckpt-2' in shown


@pytest.mark.usefixtures('train_only')
def test_a_killed_run_resumes_with_the_same_result(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    model_dir, _ = finished
    resume_unfinished(model_dir, tmp_path, *BUNDLED)
    expected, found = (
        tf.train.load_checkpoint(str(folder / 'ckpt-3')) for folder in (model_dir, tmp_path)
    )
    names = [name for name in expected.get_variable_to_dtype_map() if '.ATTRIBUTES' in name]
    assert any('optimizer' in name for name in names)
    for name in names:
        np.testing.assert_array_equal(
            found.get_tensor(name), expected.get_tensor(name), err_msg=name
        )


def test_eval_mode_uses_recorded_settings_and_ends_with_the_training(
    finished: tuple[pathlib.Path, str],
) -> None:
    model_dir, _ = finished
    trained = json.loads((model_dir / 'result.json').read_text())
    shown = main('--mode=eval', f'--model_dir={model_dir}', '--eval_name=again')
    assert "Step 3 on 'test[:32]' of bundled: eval/label_top_1_accuracy" in shown
    again = json.loads((model_dir / 'again' / 'result.json').read_text())
    assert again == pytest.approx(trained)
    assert (3, 'eval/label_top_1_accuracy') in set(events(model_dir / 'again'))


def test_an_evaluation_with_a_name_leaves_the_results_of_the_run_alone(
    finished: tuple[pathlib.Path, str],
) -> None:
    model_dir, _ = finished
    before = (model_dir / 'result.json').read_bytes()
    flags = ('--eval_split=test[32:64]', '--eval_name=others')
    main('--mode=eval', f'--model_dir={model_dir}', *flags)
    assert (model_dir / 'result.json').read_bytes() == before
    assert (model_dir / 'others' / 'result_3.json').exists()


@pytest.mark.usefixtures('train_only')
def test_images_without_labels_pretrain_without_classifier(
    plain: None, tmp_path: pathlib.Path
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / 'images' / 'train').mkdir(parents=True)
    for number in range(16):
        image = rng.integers(0, 256, (9, 11, 3), np.uint8)
        path = tmp_path / 'images' / 'train' / f'{number}.png'
        path.write_bytes(tf.io.encode_png(image).numpy())
    # There is no evaluation split, and none is needed.
    data = (
        '--dataset=image_folder',
        f'--data_dir={tmp_path / "images"}',
        '--train_steps=1',
        '--holdout_fraction=0',
    )
    shown = main(f'--model_dir={tmp_path / "run"}', *TINY, *data)
    assert shown.count('Without labels there is no online classifier') == 1
    assert (tmp_path / 'run' / 'ckpt-1.index').exists()
    written = {name for _, name in events(tmp_path / 'run')}
    assert 'train/contrast_loss' in written
    assert not any('supervised' in name for name in written)


# --- pretraining with a memory

MEMORY = (
    *BUNDLED,
    '--train_steps=4',
    '--memory_size=32',
    '--momentum_encoder_decay=0.5',
    '--export_momentum_encoder',
)


@pytest.fixture(scope='module')
def remembering(plain: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """The folder of a run with a memory, and what it printed."""
    model_dir = tmp_path_factory.mktemp('remembering') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        # The check of a module needs another process and is tested elsewhere.
        patch.setattr(publish, '_checker', no_checker)
        patch.setattr(train, '_write_sample_views', lambda *_: None)
        return model_dir, main('--mode=train', f'--model_dir={model_dir}', *MEMORY)


def saved_values(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every variable of a checkpoint."""
    reader = tf.train.load_checkpoint(str(folder / f'ckpt-{step}'))
    names = [name for name in reader.get_variable_to_dtype_map() if name.endswith(VALUE)]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.usefixtures('train_only')
def test_a_stopped_run_with_a_memory_resumes_with_the_same_result(
    remembering: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    model_dir, _ = remembering
    resume_unfinished(model_dir, tmp_path, *MEMORY)
    expected, found = saved_values(model_dir, 4), saved_values(tmp_path, 4)
    (counter,) = [value for name, value in expected.items() if '/queue/enqueued/' in name]
    assert counter == 4 * 16
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    slots = [name for name in expected if name.startswith('optimizer/') and expected[name].ndim]
    assert len(slots) == 41 - 2 * 8  # of the model's weights only


def test_another_memory_size_does_not_fit_checkpoints(
    remembering: tuple[pathlib.Path, str], capsys: pytest.CaptureFixture
) -> None:
    arguments = [*MEMORY, f'--model_dir={remembering[0]}', '--memory_size=64']
    capsys.readouterr()
    assert run.main(['run.py', *arguments]) == 2
    assert 'of memory_size 32; this run asks for memory_size 64' in capsys.readouterr().err


def test_the_momentum_encoder_is_exported_beside_the_model(
    remembering: tuple[pathlib.Path, str],
) -> None:
    model_dir, shown = remembering
    paths = [model_dir / name / '4' for name in ('saved_model', 'momentum_saved_model')]
    assert all(f'Exported: hub.load({str(path)!r})' in shown for path in paths)
    images = np.random.default_rng(0).random([2, 8, 8, 3]).astype(np.float32)
    online, momentum = (tf.saved_model.load(str(path))(images) for path in paths)
    assert set(online) - set(momentum) == {'logits_sup'}
    assert np.abs(online['final_avg_pool'] - momentum['final_avg_pool']).max() > 1e-3
    config = ModelConfig(resnet_depth=18, width_multiplier=0.25)
    encoder = build_model(SimCLRModel(config, 8, None))
    # Within the method, its variables have the names of a model's.
    method = tf.train.Checkpoint(memory=tf.train.Checkpoint(encoder=encoder))
    restored = tf.train.Checkpoint(objective=method).restore(str(model_dir / 'ckpt-4'))
    restored.assert_existing_objects_matched().expect_partial()
    for name, value in encoder(images).items():
        np.testing.assert_allclose(momentum[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.usefixtures('train_only')
@pytest.mark.parametrize('folder', ['', 'saved_model/4', 'momentum_saved_model/4'])
def test_a_run_can_start_from_weights_of_a_run_with_a_memory(
    remembering: tuple[pathlib.Path, str], tmp_path: pathlib.Path, folder: str
) -> None:
    source = remembering[0] / folder
    flags = (f'--checkpoint={source}', f'--model_dir={tmp_path / "run"}', *MEMORY)
    # With a learning rate of 0, weights don't change; moving statistics do.
    shown = main('--mode=train', *flags, '--learning_rate=0', '--train_steps=1')
    classifier = 0 if folder.startswith('momentum') else 2
    assert f'Loaded {39 + classifier} variables' in shown
    run_values = saved_values(tmp_path / 'run', 1)
    below = {'momentum_saved_model/4': 'objective/memory/encoder/'}.get(folder, 'model/')
    source_values = saved_values(remembering[0], 4)
    weights = re.compile(r'(kernel|gamma|beta)/')
    compared = [
        name.removeprefix(below)
        for name in source_values
        if name.startswith(below) and weights.search(name) and 'classifier' not in name
    ]
    assert len(compared) == 39 - 2 * 8  # all but the moving statistics
    for name in compared:
        expected = source_values[below + name]
        np.testing.assert_array_equal(run_values[f'model/{name}'], expected, name)
        # The momentum encoder starts from the loaded weights, not from the initial ones.
        found = run_values[f'objective/memory/encoder/{name}']
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)


# --- distillation


@pytest.mark.usefixtures('train_only')
def test_a_student_learns_from_images_with_few_labels_on_two_replicas(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its teacher's images have 8 pixels, its own 10."""
    monkeypatch.setattr(experiment.distribution, 'build_strategy', lambda config: mirrored(2))
    flags = ('--train_mode=distill', f'--teacher={finished[0]}', '--distill_alpha=0.5')
    size = ('--image_size=10', '--width_multiplier=0.125', '--knn_neighbors=0')
    few = ('--labels_per_class=1', '--mode=train_then_eval', '--train_steps=2')
    shown = main(*BUNDLED, *flags, *size, *few, f'--model_dir={tmp_path}')
    assert f'The teacher is {finished[0]}, 10 classes.' in shown
    results = json.loads((tmp_path / 'result.json').read_text())
    assert results['global_step'] == 2
    # The teacher's accuracy is that of its own run, whatever the student's image size.
    theirs = json.loads((finished[0] / 'result.json').read_text())
    assert results['eval/teacher_top_1_accuracy'] == theirs['eval/label_top_1_accuracy']
    assert 0 <= results['eval/teacher_agreement'] <= 1
    written = {name for _, name in events(tmp_path)}
    metrics = ('distill_loss', 'teacher_agreement', 'supervised_loss', 'supervised_acc')
    assert {f'train/{name}' for name in metrics} <= written
    assert len((tmp_path / train.LABELS_FILE).read_text().splitlines()) == 10
    # Checkpoints contain the student's weights, and not the teacher's.
    kernels = [name for name in saved_values(tmp_path, 2) if name.endswith('kernel' + VALUE)]
    assert len([name for name in kernels if not name.startswith('optimizer')]) == 5 + 3 + 1


@pytest.mark.usefixtures('train_only')
def test_a_student_learns_from_images_without_any_label(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        (tmp_path / 'images' / split).mkdir(parents=True)
        for number in range(16):
            path = tmp_path / 'images' / split / f'{number}.png'
            path.write_bytes(tf.io.encode_png(rng.integers(0, 256, (9, 9, 3), np.uint8)).numpy())
    data = ('--dataset=image_folder', f'--data_dir={tmp_path / "images"}', '--eval_split=test')
    flags = ('--train_mode=distill', f'--teacher={finished[0]}', '--train_steps=1')
    command = (*TINY, *data, *flags, '--mode=train_then_eval', f'--model_dir={tmp_path / "run"}')
    capsys.readouterr()
    assert run.main(['run.py', *command, '--distill_alpha=0.9']) == 2
    assert 'gives weight to labels; image_folder has none' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()
    main(*command)
    results = json.loads((tmp_path / 'run' / 'result.json').read_text())
    measured = {name for name in results if name.startswith('eval/')}
    assert measured == {'eval/teacher_agreement', 'eval/regularization_loss'}


def test_a_teacher_of_other_classes_is_refused(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ('cat', 'dog'):
        (tmp_path / 'images' / 'train' / name).mkdir(parents=True)
        for number in range(8):
            path = tmp_path / 'images' / 'train' / name / f'{number}.png'
            path.write_bytes(tf.io.encode_png(np.zeros([8, 8, 3], np.uint8)).numpy())
    data = ('--dataset=image_folder', f'--data_dir={tmp_path / "images"}', '--holdout_fraction=0')
    flags = ('--train_mode=distill', f'--teacher={finished[0]}', f'--model_dir={tmp_path / "run"}')
    capsys.readouterr()
    assert run.main(['run.py', *TINY, *data, *flags]) == 2
    words = 'has other classes than image_folder: 10 classes, found 2; only there: T-shirt/top'
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


# --- fine-tuning

FINETUNE = (
    '--train_mode=finetune',
    '--dataset=bundled',
    '--train_batch_size=10',
    '--eval_batch_size=20',
    '--train_steps=4',
    '--checkpoint_steps=2',
    '--eval_split=test[:32]',
    '--labels_per_class=2',
)


def test_fine_tuning_takes_the_architecture_of_its_checkpoint(
    finished: tuple[pathlib.Path, str], train_only: None, tmp_path: pathlib.Path
) -> None:
    pretrained, _ = finished
    shown = main(
        '--mode=train_then_eval',
        f'--checkpoint={pretrained}',
        f'--model_dir={tmp_path / "run"}',
        '--ft_proj_selector=1',
        *FINETUNE,
    )
    assert 'bundled: 20 training images' in shown
    # The classifier of pretraining was trained on all labels, this run uses only twenty.
    assert 'Loaded 39 variables' in shown and 'classifier: starts anew' in shown
    assert 'proj_layer1' in shown and 'proj_layer2' not in shown
    flags = json.loads((tmp_path / 'run' / 'flags.json').read_text())
    assert (flags['resnet_depth'], flags['width_multiplier'], flags['image_size']) == (18, 0.25, 8)
    chosen = (tmp_path / 'run' / 'labelled_examples.txt').read_text().splitlines()
    names = sorted(line.split('\t')[1] for line in chosen)
    assert names == sorted([*flags['class_names']] * 2) and 'Ankle boot' in names


def test_fine_tuning_reports_the_final_and_the_best_result(
    finished: tuple[pathlib.Path, str], train_only: None, tmp_path: pathlib.Path
) -> None:
    model_dir = tmp_path / 'run'
    arguments = (f'--checkpoint={finished[0]}', f'--model_dir={model_dir}', *FINETUNE)
    main('--mode=train_then_eval', *arguments)
    by_step = [json.loads((model_dir / f'result_{step}.json').read_text()) for step in (2, 4)]
    final = json.loads((model_dir / 'result.json').read_text())
    name = 'eval/label_top_1_accuracy'
    assert final['global_step'] == 4 and final[name] == by_step[1][name]
    best = max(by_step, key=lambda result: result[name])
    assert final[f'best/{name}'] == best[name]
    assert final['best/global_step'] == best['global_step']


def test_fine_tuning_resumes_and_is_evaluated_without_its_checkpoint(
    finished: tuple[pathlib.Path, str], train_only: None, tmp_path: pathlib.Path
) -> None:
    pretrained, model_dir = tmp_path / 'pretrained', tmp_path / 'run'
    shutil.copytree(finished[0], pretrained)
    arguments = (f'--checkpoint={pretrained}', f'--model_dir={model_dir}', *FINETUNE)
    main('--mode=train', *arguments, '--train_steps=2')
    shutil.rmtree(pretrained)
    shown = main('--mode=train', *arguments)
    assert f'going on from {model_dir / "ckpt-2"}, 4 steps' in shown
    shown = main('--mode=eval', f'--model_dir={model_dir}')
    assert "Step 4 on 'test[:32]' of bundled: eval/label_top_1_accuracy" in shown


@pytest.mark.parametrize('zero', [True, False])
def test_the_classifier_starts_at_zero_if_asked_to(
    finished: tuple[pathlib.Path, str], train_only: None, tmp_path: pathlib.Path, zero: bool
) -> None:
    model_dir = tmp_path / 'run'
    # With a learning rate of 0, the last checkpoint holds the initial weights.
    main(
        '--mode=train',
        f'--checkpoint={finished[0]}',
        f'--model_dir={model_dir}',
        f'--zero_init_logits_layer={zero}',
        *FINETUNE,
        '--train_steps=1',
        '--learning_rate=0',
        '--fine_tune_after_block=4',
    )
    reader = tf.train.load_checkpoint(str(model_dir))
    kernel = reader.get_tensor('model/classifier/kernel/.ATTRIBUTES/VARIABLE_VALUE')
    assert (not kernel.any()) == zero


def test_another_number_of_classes_can_be_fine_tuned(
    finished: tuple[pathlib.Path, str],
    train_only: None,
    tmp_path: pathlib.Path,
) -> None:
    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            folder = tmp_path / 'images' / split / name
            folder.mkdir(parents=True)
            for index in range(6):
                pixels = np.full([9, 9, 3], 20 * index, np.uint8)
                tf.io.write_file(str(folder / f'{index}.png'), tf.io.encode_png(pixels))
    shown = main(
        '--mode=train_then_eval',
        '--train_mode=finetune',
        '--dataset=image_folder',
        f'--data_dir={tmp_path / "images"}',
        '--eval_split=test',
        f'--checkpoint={finished[0]}',
        f'--model_dir={tmp_path / "run"}',
        '--train_batch_size=4',
        '--eval_batch_size=4',
        '--train_steps=1',
    )
    assert '10 classes' in shown and 'eval/label_top_2_accuracy 1.0000' in shown


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--resnet_depth=50',), 'holds resnet_depth 18; the flags ask for resnet_depth 50'),
        (('--image_size=64',), '32 pixels or less'),
        (('--ft_proj_selector=4',), 'ft_proj_selector'),
        (('--fine_tune_after_block=5',), 'fine_tune_after_block'),
        (('--label_fraction=0.0001', '--labels_per_class=0'), 'label_fraction'),
        (('--checkpoint=nowhere',), 'nowhere'),
    ],
)
def test_impossible_fine_tuning_is_refused(
    finished: tuple[pathlib.Path, str],
    capsys: pytest.CaptureFixture,
    tmp_path: pathlib.Path,
    flags: tuple[str, ...],
    words: str,
) -> None:
    arguments = (f'--checkpoint={finished[0]}', f'--model_dir={tmp_path / "run"}', *FINETUNE)
    capsys.readouterr()
    assert run.main(['run.py', *arguments, *flags]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count('\n') == 1
    assert listed(tmp_path) == []


def test_an_exported_classifier_reads_the_layer_it_was_trained_on(
    finished: tuple[pathlib.Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    exported = []
    monkeypatch.setattr(
        train.hub_export, 'export_module', lambda model, *_, **__: exported.append(model) or 'x'
    )
    monkeypatch.setattr(train, '_write_sample_views', lambda *_: None)
    arguments = (f'--checkpoint={finished[0]}', f'--model_dir={tmp_path / "run"}', *FINETUNE)
    for selector in (1, -1):
        shutil.rmtree(tmp_path / 'run', ignore_errors=True)
        main('--mode=train', *arguments, f'--ft_proj_selector={selector}', '--train_steps=1')
        main('--mode=export', f'--checkpoint={tmp_path / "run"}', f'--model_dir={tmp_path / "x"}')
        tuned, read_back = exported[-2:]
        images = tf.random.stateless_uniform([2, 8, 8, 3], [1, 2])
        np.testing.assert_allclose(
            read_back(images)['logits_sup'], tuned(images)['logits_sup'], rtol=1e-5, atol=1e-5
        )


def test_the_weights_of_a_run_are_exported(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, '_checker', no_checker)
    exported = main('--mode=export', f'--checkpoint={finished[0]}', f'--model_dir={tmp_path}')
    assert 'Loaded 41 variables' in exported
    images = np.random.default_rng(0).random([2, 8, 8, 3]).astype(np.float32)
    first, second = (
        tf.saved_model.load(str(folder / 'saved_model' / '3')) for folder in (finished[0], tmp_path)
    )
    for name, value in first(images).items():
        np.testing.assert_allclose(second(images)[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures('train_only')
@pytest.mark.parametrize('odd', ['g[1]', 'back\\slash [x]'])
def test_weights_and_teachers_are_found_in_folders_of_any_name(
    odd: str, finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    """As a run, a checkpoint and a module; evaluation follows a run there too."""
    source = tmp_path / odd / 'run'
    shutil.copytree(finished[0], source)
    for path in (source, source / 'ckpt-3', source / 'saved_model' / '3'):
        shown = main('--mode=export', f'--checkpoint={path}', f'--model_dir={tmp_path / "new"}')
        assert 'Loaded 41 variables' in shown
        teacher = open_teacher(str(path), precision='float32')
        assert teacher.logits(tf.zeros([1, 8, 8, 3])).shape == [1, 10]
    assert 'Step 3 on' in main('--mode=eval', f'--model_dir={source}', '--eval_name=again')


@pytest.mark.parametrize(
    ('mode', 'layers', 'few', 'teacher', 'stays'),
    [
        ('pretrain', (0, 0), False, None, True),
        ('finetune', (0, 0), False, None, True),
        ('finetune', (1, 1), False, None, True),
        ('finetune', (0, 1), False, None, False),  # it reads another layer
        ('finetune', (None, 1), False, None, False),  # it is unknown which layer it reads
        ('finetune', (0, 0), True, None, False),  # it may have been trained on other labels
        ('distill', (1, 1), False, 'start', True),
        ('distill', (1, 1), True, 'start', True),
        ('distill', (1, 1), False, 'other', False),  # and on others than the teacher
    ],
)
def test_a_classifier_is_loaded_only_if_it_fits_and_saw_no_other_labels(
    mode: str, layers: tuple, few: bool, teacher: str | None, stays: bool
) -> None:
    found, wanted = layers
    values = {'train_mode': mode, 'checkpoint': 'start', 'teacher': teacher}
    prepared = types.SimpleNamespace(
        stage=STAGES[mode],
        config=from_values({**values, 'ft_proj_selector': wanted}),
        weights=types.SimpleNamespace(selector=found),
        teacher=teacher,
        subset='some' if few else None,
        classifier_mismatch=None,
    )
    assert (train._why_no_classifier(prepared) is None) is stays
    prepared.classifier_mismatch = 'its classes are others'
    assert train._why_no_classifier(prepared) == 'its classes are others'


# --- evaluation of a run by another process


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, 'SECONDS_BETWEEN_POLLS', 0.01)
    monkeypatch.setattr(evaluate, 'SECONDS_WITHOUT_TRAINING', 0.05)


@pytest.mark.usefixtures('hurried')
def test_evaluation_ends_if_no_training_is_at_work(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """After the last checkpoint, or without any checkpoint."""
    unfinished(finished[0], tmp_path)
    command = ['run.py', '--mode=eval', f'--model_dir={tmp_path}']
    for said in ('it is at step 2', 'it has no checkpoint'):
        capsys.readouterr()
        assert run.main(command) == 2
        shown = capsys.readouterr()
        assert ('Step 2 on' in shown.out) == ('step 2' in said)
        assert f'No training is at work in {tmp_path}; waiting' in shown.out
        assert f'to step 3; {said}, and no training is at work' in shown.err
        assert shown.err.count('\n') == 1
        for path in tmp_path.glob('ckpt-*'):
            path.unlink()


@pytest.mark.usefixtures('hurried')
def test_evaluation_waits_while_a_training_is_at_work(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes; a checkpoint that is removed meanwhile is skipped."""
    unfinished(finished[0], tmp_path)
    load, slept = evaluate.checkpoints.load_model, []

    def prune(path: str, model: SimCLRModel) -> int:
        if path.endswith('ckpt-2'):
            for file in tmp_path.glob('ckpt-2.*'):
                file.unlink()
        return load(path, model)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 100:  # many times as long as without a training
            for path in finished[0].glob('ckpt-3.*'):
                shutil.copy(path, tmp_path)

    monkeypatch.setattr(evaluate.checkpoints, 'load_model', prune)
    monkeypatch.setattr(evaluate.time, 'sleep', sleep)
    monkeypatch.setattr(evaluate.lock, 'holder', lambda folder: lock.Holder())
    shown = main('--mode=eval', f'--model_dir={tmp_path}')
    assert 'Step 3 on' in shown and 'Step 2 on' not in shown and len(slept) == 100


def test_evaluation_waits_for_a_run_with_a_message_and_refuses_other_folders(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder, one in which a training starts, one with other files; unknown presets."""

    def give_up(seconds: float) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(evaluate.time, 'sleep', give_up)
    command = ['run.py', '--mode=eval', f'--model_dir={tmp_path}']
    assert run.main(command) == 130
    assert f'Waiting for a training run to start in {tmp_path}' in capsys.readouterr().out
    with lock.held(str(tmp_path)):
        assert run.main(command) == 130
        assert f'Waiting for process {os.getpid()} on' in capsys.readouterr().out
    for name in ('photo.jpg', 'saved_model'):
        (tmp_path / name).mkdir()
        assert run.main(command) == 2
        assert f'{tmp_path} holds none, but photo.jpg' in capsys.readouterr().err
    assert run.main([*command, '--preset=zz']) == 2
    assert '--preset must be one of demo, ' in capsys.readouterr().err


# --- two processes and one folder


@pytest.mark.usefixtures('train_only')
def test_every_mode_that_writes_refuses_a_folder_in_use(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Training, pipeline and export; an evaluation writes other files than a training."""
    commands = [
        ['--mode=train', *BUNDLED],
        ['--mode=pipeline', '--preset=demo'],
        ['--mode=export', f'--checkpoint={finished[0]}'],
    ]
    with lock.held(str(tmp_path)):
        before = listed(tmp_path)
        for command in commands:
            capsys.readouterr()
            assert run.main(['run.py', *command, f'--model_dir={tmp_path}']) == 2
            message = capsys.readouterr().err
            assert f'found it in use by process {os.getpid()} on' in message
            assert message.count('\n') == 1 and listed(tmp_path) == before
    with lock.held(str(finished[0])):
        main('--mode=eval', f'--model_dir={finished[0]}', '--eval_name=meanwhile')
    assert not (finished[0] / lock.FILE).exists()


def test_a_folder_chosen_for_a_refused_run_is_removed(
    folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    for had in (False, True):
        if had:
            (folder / 'runs').mkdir()
        assert run.main(['run.py', '--train_split=nothing']) == 2
        assert listed(folder) == (['runs'] if had else [])
    assert capsys.readouterr().err.count('\n') == 2
