"""A small pipeline: complete, killed in each stage, and refused."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
import shutil
import signal
from typing import Any

import pytest
import tensorflow as tf

import run
from app import pipeline, train
from app.report import page
from common.interruption import Interrupted
from hub_export import publish
from tests.support import no_checker
from tf2.checkpoints import Checkpoints

SMALL = (
    '--mode=pipeline',
    '--preset=demo',
    '--width_multiplier=0.125',
    '--image_size=8',
    '--train_split=train[:64]',
    '--eval_split=test[:40]',
    '--labels_per_class=2',
    '--train_batch_size=16',
    '--train_steps=3',
    '--checkpoint_steps=2',
    '--knn_neighbors=0',
    '--eval_batch_size=40',
    '--num_proj_layers=1',
    '--color_jitter_strength=0',
)
STAGES = ('pretrain', 'finetune', 'self_distill', 'student')


def main(*arguments: str, status: int = 0) -> str:
    """Runs the program in this process; returns what it prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        assert run.main(['run.py', *arguments]) == status
    return shown.getvalue()


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    # The check of a module needs another process and is tested elsewhere.
    monkeypatch.setattr(publish, '_checker', no_checker)


def empty_module(model: object, root: str, step: int, **_: object) -> str:
    """Takes the place of an export."""
    folder = pathlib.Path(root, str(step))
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces reports and modules, which take seconds, by empty ones."""
    write = lambda path, *_: pathlib.Path(path).write_text('brief')  # noqa: E731
    monkeypatch.setattr(page, 'write_report', write)
    monkeypatch.setattr(train.hub_export, 'export_module', empty_module)
    monkeypatch.setattr(train, '_write_sample_views', lambda *_: None)


@pytest.fixture(scope='module')
def finished(
    plain: None, known_labels: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, str]:
    """The folder of a whole pipeline, and what it printed.

    The report reads the modules of the first stage and of the last one; the others are empty.
    """
    model_dir = tmp_path_factory.mktemp('pipeline') / 'all'
    export = train.hub_export.export_module

    def export_some(model: object, root: str, step: int, **options: Any) -> str:
        read = pathlib.Path(root).parent.name in ('pretrain', 'student')
        return (export if read else empty_module)(model, root, step, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, '_checker', no_checker)
        patch.setattr(train.hub_export, 'export_module', export_some)
        patch.setattr(train, '_write_sample_views', lambda *_: None)
        return model_dir, main(*SMALL, f'--model_dir={model_dir}')


def results(model_dir: pathlib.Path) -> dict[str, dict]:
    return {name: json.loads((model_dir / name / 'result.json').read_text()) for name in STAGES}


def table(shown: str) -> list[str]:
    """The rows of the table, without the time that each stage took."""
    lines = shown[shown.rindex('\nStage  ') :].splitlines()
    return [re.sub(r'( +\d+ (h|min|s))+$', '', line) for line in lines[2:6]]


def test_every_stage_leaves_a_run_and_a_table_and_a_report_follow(
    finished: tuple[pathlib.Path, str],
) -> None:
    model_dir, shown = finished
    rows = table(shown)
    for row, (name, result) in zip(rows, results(model_dir).items(), strict=True):
        assert row.startswith(pipeline.TITLES[name])
        assert f'{result["eval/label_top_1_accuracy"]:.2%}' in row
        assert (model_dir / name / 'saved_model' / '3').is_dir()
    written = (model_dir / 'report.html').read_text()
    for name, result in results(model_dir).items():
        assert f'{result["eval/label_top_1_accuracy"]:.2%}' in written
        assert f'--model_dir={model_dir / name}' in written


def test_each_stage_starts_from_the_one_before(finished: tuple[pathlib.Path, str]) -> None:
    model_dir, _ = finished
    flags = {name: json.loads((model_dir / name / 'flags.json').read_text()) for name in STAGES}
    read = {name: (values['checkpoint'], values['teacher']) for name, values in flags.items()}
    assert read == {
        'pretrain': (None, None),
        'finetune': (str(model_dir / 'pretrain'), None),
        'self_distill': (str(model_dir / 'finetune'), str(model_dir / 'finetune')),
        'student': (None, str(model_dir / 'self_distill')),
    }
    measured = results(model_dir)
    key = 'eval/teacher_top_1_accuracy'
    for teacher, student in (('finetune', 'self_distill'), ('self_distill', 'student')):
        assert measured[student][key] == measured[teacher]['eval/label_top_1_accuracy']
    widths = [values['width_multiplier'] for values in flags.values()]
    assert widths == [0.125, 0.125, 0.125, 0.0625]
    # Two labels per class, used only in the stages that need them.
    chosen = [(model_dir / name / train.LABELS_FILE).exists() for name in STAGES]
    assert chosen == [False, True, False, False]
    lines = (model_dir / 'finetune' / train.LABELS_FILE).read_text().splitlines()
    assert len(lines) == 20


@pytest.mark.usefixtures('brief')
def test_finished_stages_are_not_repeated(
    finished: tuple[pathlib.Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir, before = finished

    def never(*_: object, **__: object) -> None:
        raise AssertionError('Nothing is left to train.')

    monkeypatch.setattr(train, 'train', never)
    shown = main(*SMALL, f'--model_dir={model_dir}')
    assert shown.count('It is done.') == 4
    assert table(shown) == table(before)


def die(*_: object, **__: object) -> None:
    raise Interrupted(signal.SIGINT)


@pytest.mark.usefixtures('brief')
def test_a_pipeline_killed_again_and_again_ends_with_the_same_table(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each stage at a checkpoint, then before the export, last evaluation and report."""
    model_dir = tmp_path / 'all'
    save = Checkpoints.save

    def killed_in(owner: object, method: str, by: object = die) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, by)
            shown = main(*SMALL, f'--model_dir={model_dir}', status=130)
        assert 'To resume: python' in shown
        assert not (model_dir / 'report.html').exists()
        return shown

    for number, name in enumerate(STAGES):

        def save_and_die(self: Checkpoints, step: int, name: str = name) -> str:
            path = save(self, step)
            if f'/{name}/' in path:
                raise Interrupted(signal.SIGINT)
            return path

        shown = killed_in(Checkpoints, 'save', save_and_die)
        assert (model_dir / name / 'ckpt-2.index').exists()
        assert not (model_dir / name / 'saved_model').exists()
        # Only the stage that was killed is trained again.
        assert shown.count('It is done.') == max(0, number - 1)
        assert shown.count('going on from') == bool(number)

    last = model_dir / 'student'
    killed_in(train, '_export')
    assert (last / 'ckpt-3.index').exists() and not (last / 'saved_model').exists()
    model_dir = model_dir.rename(tmp_path / 'of another name')
    last = model_dir / 'student'
    killed_in(train.Tracker, 'finish')
    assert (last / 'saved_model' / '3').is_dir()
    killed_in(page, 'write_report')
    shown = main(*SMALL, f'--model_dir={model_dir}')
    assert shown.count('It is done.') == 4
    assert table(shown) == table(finished[1])
    # The best results too: evaluations that the kills prevented are repeated.
    assert results(model_dir) == results(finished[0])
    assert (model_dir / 'report.html').exists()
    assert all((model_dir / name / 'saved_model' / '3').is_dir() for name in STAGES)


def test_other_settings_are_refused_and_change_nothing(
    finished: tuple[pathlib.Path, str],
) -> None:
    model_dir, _ = finished
    files = {path: path.stat().st_mtime_ns for path in model_dir.rglob('*') if path.is_file()}
    flags = (*SMALL, f'--model_dir={model_dir}')
    shown = main(*flags, '--temperature=0.3', status=2)
    assert 'holds a pipeline with other settings: temperature 0.5 in pretrain, now 0.3' in shown
    assert 'labels_per_class 2 in finetune, now 1' in main(*flags, '--labels_per_class=1', status=2)
    assert files == {p: p.stat().st_mtime_ns for p in model_dir.rglob('*') if p.is_file()}


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--preset=cifar10'], '; found cifar10'),
        (['--dataset=bundled'], '; found None'),
        (['--preset=demo', '--teacher=t'], 'chooses --teacher of each stage itself'),
        (
            ['--preset=demo', '--checkpoint=t'],
            "chooses --checkpoint of each stage itself; found 't'",
        ),
        (['--preset=demo', '--checkpoint=pretrain'], 'chooses --checkpoint of each stage itself'),
        (
            ['--preset=demo', '--train_mode=pretrain', '--checkpoint=t'],
            "chooses --checkpoint of each stage itself; found 't'",
        ),
        (['--preset=demo', '--eval_name=pretrain'], 'chooses --eval_name of each stage itself'),
        (['--preset=demo', '--use_tpu=True'], 'expects an attached TPU'),
        (['--preset=demo', '--train_mode=finetune'], 'chooses --train_mode of each stage itself'),
        (['--preset=demo', '--labels_per_class=601'], 'at most 600'),
        (['--preset=demo', '--label_fraction=0.5', '--labels_per_class=3'], 'give one of them'),
        (['--preset=demo', '--distill_temperature=0'], 'greater than 0; found 0'),
        (['--preset=demo', '--eval_split=nothing'], "no split 'nothing'"),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_mistakes_are_one_line(arguments: list[str], words: str, tmp_path: pathlib.Path) -> None:
    shown = main('--mode=pipeline', *arguments, f'--model_dir={tmp_path / "m"}', status=2)
    assert words in shown and shown.count('\n') == 1
    assert not (tmp_path / 'm').exists()


def test_images_without_labels_are_refused_before_anything_is_trained(
    tmp_path: pathlib.Path,
) -> None:
    for split in ('train', 'test'):
        (tmp_path / 'images' / split).mkdir(parents=True)
        for number in range(16):
            path = tmp_path / 'images' / split / f'{number}.png'
            path.write_bytes(
                tf.io.encode_png(tf.fill([8, 8, 3], tf.cast(number, tf.uint8))).numpy()
            )
    data = ('--dataset=image_folder', f'--data_dir={tmp_path / "images"}')
    shown = main(
        *SMALL,
        '--train_split=train',
        '--eval_split=test',
        *data,
        f'--model_dir={tmp_path / "m"}',
        status=2,
    )
    assert 'has none' in shown and 'labels' in shown
    assert not (tmp_path / 'm').exists()


def flags_of(*arguments: str) -> dict[str, dict]:
    """Name of each run -> its flags."""
    given = run.parse(['run.py', '--mode=pipeline', *arguments])
    plan = pipeline._plan('all', given.get('preset', 'demo'), given)
    return {planned.name: dict(planned.given) for planned in plan}


def test_labels_are_the_same_wherever_labels_are_used() -> None:
    chosen = [flags.get('labels_per_class') for flags in flags_of('--seed=1').values()]
    assert chosen == [None, 10, None, None]
    mixed = flags_of('--distill_alpha=0.5')
    assert [flags.get('labels_per_class') for flags in mixed.values()] == [None, 10, 10, 10]
    fractions = flags_of('--distill_alpha=0.5', '--label_fraction=0.1')
    assert [flags.get('label_fraction') for flags in fractions.values()] == [None, 0.1, 0.1, 0.1]
    assert not any('labels_per_class' in flags for flags in fractions.values())


def test_a_flag_goes_to_the_stages_that_read_it() -> None:
    flags = flags_of('--memory_size=1280', '--zero_init_logits_layer', '--seed=4')
    assert [flags[name].get('memory_size') for name in STAGES] == [1280, None, None, None]
    zero = [flags[name].get('zero_init_logits_layer') for name in STAGES]
    assert zero == [None, True, None, None]
    assert [flags[name].get('seed') for name in STAGES] == [4] * 4


def test_a_refused_command_leaves_no_files(tmp_path: pathlib.Path) -> None:
    main(*SMALL, f'--model_dir={tmp_path / "m"}', '--use_tpu=True', status=2)
    assert not (tmp_path / 'm').exists()


def test_a_damaged_record_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'pipeline.json').write_text('{')
    shown = main(*SMALL, f'--model_dir={tmp_path}', status=2)
    assert 'should be JSON' in shown and shown.count('\n') == 1


def test_a_pipeline_is_evaluated_stage_by_stage(finished: tuple[pathlib.Path, str]) -> None:
    model_dir, _ = finished
    shown = main('--mode=eval', f'--model_dir={model_dir}', status=2)
    assert f'such as --model_dir={model_dir / "finetune"}' in shown
    flags = ('--eval_split=test[40:60]', '--eval_name=others', '--eval_batch_size=20')
    shown = main('--mode=eval', f'--model_dir={model_dir / "student"}', *flags)
    assert 'The teacher is not opened' in shown and 'eval/teacher_agreement' not in shown


def test_a_student_is_evaluated_with_a_teacher_only_if_one_is_given(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    shutil.copytree(finished[0] / 'student', tmp_path / 'student')
    flags = json.loads((tmp_path / 'student' / 'flags.json').read_text())
    (tmp_path / 'student' / 'flags.json').write_text(json.dumps({**flags, 'teacher': 'gone'}))
    command = ('--mode=eval', f'--model_dir={tmp_path / "student"}')
    assert '--teacher=none should be' in main(*command, '--teacher=none', status=2)
    expected = results(finished[0])['student']
    for flags, lacking in (
        ([], {'eval/teacher_agreement', 'eval/teacher_top_1_accuracy'}),
        ([f'--teacher={finished[0] / "self_distill"}'], set()),
    ):
        main(*command, *flags)
        result = json.loads((tmp_path / 'student' / 'result.json').read_text())
        known = {name for name in expected if name.startswith('eval/')}
        assert {name for name in result if name.startswith('eval/')} == known - lacking
        assert all(result[name] == expected[name] for name in known - lacking)
