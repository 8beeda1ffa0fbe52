"""Runs resumed with other settings: what is refused, printed and recorded."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
import shutil

import pytest
import tensorflow as tf

import run
from app import experiment, resuming, train
from app.config.resolution import resolve, why_unread
from app.config.schema import DEFAULTS, OPTIONS, to_values
from app.presets import PRESETS
from app.resuming import History
from common.errors import UserError
from tests.support import GOLDEN
from tf2 import schedules
from tf2.checkpoints import recorded_in
from tf2.config import OptimizerConfig, TrainConfig
from tf2.schedules import Position

pytestmark = pytest.mark.usefixtures('plain', 'known_labels', 'bare_runs')

OLDER = GOLDEN / 'older_run'
COMMAND = (
    '--resnet_depth=18',
    '--width_multiplier=0.03125',
    '--image_size=8',
    '--num_proj_layers=2',
    '--proj_out_dim=8',
    '--dataset=bundled',
    '--train_split=train[:64]',
    '--eval_split=test[:32]',
    '--train_batch_size=8',
    '--train_epochs=2',
    '--warmup_epochs=0.5',
    '--checkpoint_epochs=10',
    '--color_jitter_strength=0',
    '--use_blur=False',
)


def main(*arguments: str, status: int = 0) -> str:
    """Runs the program in this process; returns what it prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        assert run.main(['run.py', *arguments]) == status
    return shown.getvalue()


def flags_in(folder: pathlib.Path) -> dict:
    return json.loads((folder / 'flags.json').read_text())


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of two epochs in batches of 8."""
    folder = tmp_path_factory.mktemp('resuming') / 'run'
    main(*COMMAND, f'--model_dir={folder}')
    return folder


@pytest.fixture
def folder(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the folder of that run."""
    shutil.copytree(finished, tmp_path / 'run')
    return tmp_path / 'run'


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first example of each training."""
    found: list[int] = []

    def note(*arguments: object, start: int, **options: object) -> tf.data.Dataset:
        found.append(start)
        return batches(*arguments, start=start, **options)

    batches = train.train_batches
    monkeypatch.setattr(train, 'train_batches', note)
    return found


def test_a_larger_batch_and_more_epochs_end_after_their_examples(
    folder: pathlib.Path, starts: list[int], capsys: pytest.CaptureFixture
) -> None:
    """Two epochs at batch 8, then 8 at batch 24, with an interruption and evaluations."""
    assert recorded_in(str(folder / 'ckpt-17'))['examples_seen'] == 17 * 8
    more = (*COMMAND, '--train_batch_size=24', '--train_epochs=8', f'--model_dir={folder}')
    shown = main(*more)
    assert 'From step 17 on train_batch_size is 24; it was 8.' in shown
    assert 'From step 17 on train_epochs is 8; it was 2.' in shown
    # 64 * 8 // 24 + 1 = 22 batches of 24, of which the 136 images seen make 5.
    assert '34 steps of 24 images' in shown
    record = recorded_in(str(folder / 'ckpt-34'))
    assert record['examples_seen'] == 136 + 17 * 24 >= 64 * 8
    assert starts == [136]
    rates = [float(rate) for rate in re.search(r'resumes at (\S+); .*been (\S+)\.', shown).groups()]
    schedule = schedules.build(
        OptimizerConfig(warmup_epochs=0.5),
        TrainConfig(train_batch_size=24, train_epochs=8),
        64,
    )
    assert rates[0] == pytest.approx(float(schedule(5)), rel=1e-3) and rates[1] == 0
    changes = flags_in(folder)['changes']
    assert changes == [
        {'step': 17, 'setting': 'train_batch_size', 'from': 8, 'to': 24},
        {'step': 17, 'setting': 'train_epochs', 'from': 2, 'to': 8},
    ]
    # The same command resumes, and prints nothing about changes.
    for file in folder.glob('ckpt-34.*'):
        file.unlink()
    assert 'From step' not in main(*more)
    assert flags_in(folder)['changes'] == changes
    assert recorded_in(str(folder / 'ckpt-34'))['examples_seen'] == record['examples_seen']
    assert "Step 34 on 'test[:32]'" in main('--mode=eval', f'--model_dir={folder}')
    line = main(*more, '--train_epochs=2', status=2)
    assert 'holds step 34, this run is to end at step' in line and line.count('\n') == 1


@pytest.mark.parametrize(
    ('arguments', 'before', 'after'),
    [
        (['--seed=1'], 'seed 0', 'seed 1'),
        (['--temperature=0.2'], 'temperature 0.5', 'temperature 0.2'),
        (['--learning_rate=0.7'], 'learning_rate 2.0', 'learning_rate 0.7'),
        (['--train_split=train[:60]'], 'train_split train[:64]', 'train_split train[:60]'),
        (['--image_size=9'], 'image_size 8', 'image_size 9'),
        (['--noglobal_bn'], 'global_bn True', 'global_bn False'),
        (['--nohidden_norm', '--weight_decay=0.1'], 'weight_decay 0.0001', 'weight_decay 0.1'),
    ],
)
def test_changes_of_the_result_are_refused_with_both_values(
    finished: pathlib.Path, arguments: list[str], before: str, after: str
) -> None:
    files = {path: path.read_bytes() for path in finished.rglob('*') if path.is_file()}
    preset = ('--preset=demo', *COMMAND)
    line = main(*preset, *arguments, f'--model_dir={finished}', status=2)
    assert 'holds a run with' in line and line.count('\n') == 1
    assert '--allow_changes=' in line
    assert after in line
    assert {p: p.read_bytes() for p in finished.rglob('*') if p.is_file()} == files


def history(**recorded: object) -> History:
    values = to_values(resolve({'model_dir': 'm'}, PRESETS))
    return History({**values, 'train_examples': 6000, **recorded}, Position(10, 1280))


def checked(now: History, examples: int = 6000, **given: object) -> History:
    config = resolve({'model_dir': 'm', **given}, PRESETS)
    return resuming.check_changes(config, examples, now)


STRANGE = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v * 0.5 + 0.125}


@pytest.mark.parametrize('name', OPTIONS)
def test_every_setting_follows_its_resume_rule(name: str) -> None:
    """Free, continued with a message, refused unless allowed, or fixed."""
    metadata, default = OPTIONS[name], DEFAULTS[name]
    values = to_values(resolve({'model_dir': 'm'}, PRESETS))
    if why_unread(name, values) or name in ('train_mode', 'checkpoint', 'teacher'):
        return
    choices = [choice for choice in metadata['choices'] or () if choice != values[name]]
    other = choices[0] if choices else STRANGE.get(type(default), lambda v: 'other')(values[name])
    now = history(**{name: other})
    if metadata['resume'] == 'fixed':
        return  # see `check_same_architecture`
    if metadata['resume'] == 'refuse' and default != 'auto':
        with pytest.raises(UserError, match=f'{name} .*--allow_changes={name}'):
            checked(now)
        found = checked(now, allow_changes=f'seed, {name}')
    else:
        found = checked(now)
    expected = [] if metadata['resume'] == 'free' or default == 'auto' else [name]
    assert [change.setting for change in found.changes] == expected


def test_a_folder_without_a_setting_had_its_default() -> None:
    recorded = {**history().recorded, 'temperature': 0.5}
    del recorded['crop_min_area'], recorded['seed']
    with pytest.raises(UserError, match=r'crop_min_area 0.08; .*crop_min_area 0.2'):
        checked(History(recorded, Position(1, 128)))


def test_other_images_in_the_same_place_are_refused() -> None:
    """Only their number can tell."""
    with pytest.raises(UserError, match=r'train_examples 6000; .*train_examples 5999'):
        checked(history(), 5999)
    assert len(checked(history(), 5999, allow_changes='train_examples').changes) == 1
    # Other data settings explain another number of images.
    (change,) = checked(
        history(), 60, train_split='train[:1%]', allow_changes='train_split'
    ).changes
    assert change.setting == 'train_split'


@pytest.mark.parametrize(
    ('before', 'after', 'fits'),
    [
        (('/a/runs/x', '/a/pre'), ('/b/runs/x', '/b/pre'), True),  # moved together
        (('runs/x', 'pre'), ('runs/x', './pre'), True),
        (('runs/x', 'pre'), ('runs/x', 'other'), False),
        (('runs/x', 'gs://a/pre'), ('runs/x', 'gs://b/pre'), False),
        (('runs/x', None), ('runs/x', 'pre'), False),
    ],
)
@pytest.mark.parametrize('name', ['checkpoint', 'teacher'])
def test_runs_that_were_moved_together_fit(
    name: str, before: tuple, after: tuple, fits: bool
) -> None:
    values = [{'model_dir': folder, name: path} for folder, path in (before, after)]
    assert resuming._same(name, *values) is fits


def test_a_resumed_run_ignores_its_starting_weights() -> None:
    now = history(checkpoint='pre', train_mode='finetune')
    given = {'train_mode': 'finetune', 'checkpoint': 'other'}
    with pytest.raises(UserError, match=r'--checkpoint=other is for a new run; .* from pre and'):
        checked(now, **given)
    config = resolve({'model_dir': 'm', 'train_mode': 'finetune'}, PRESETS)
    kept, _ = experiment._as_recorded(config, {}, now.recorded)
    assert kept.learning.checkpoint == 'pre'


def test_an_allowed_change_is_recorded_beside_the_old_value(
    folder: pathlib.Path, starts: list[int]
) -> None:
    more = (*COMMAND, f'--model_dir={folder}', '--train_epochs=3', '--temperature=0.4')
    shown = main(*more, '--allow_changes=temperature')
    assert 'From step 17 on temperature is 0.4; it was 0.1.' in shown
    main(*more)  # it is recorded, so it need not be allowed again
    assert 'temperature 0.4; this one asks for temperature 0.1' in main(
        *more, '--temperature=0.1', status=2
    )
    main(*more, '--temperature=0.3', '--train_epochs=4', '--allow_changes=temperature')
    changed = {(c['step'], c['from'], c['to']) for c in flags_in(folder)['changes']}
    assert changed == {(17, 2, 3), (17, 0.1, 0.4), (25, 3, 4), (25, 0.4, 0.3)}
    assert starts == [17 * 8, 25 * 8]


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        ('temprature', "found 'temprature'"),
        ('seed,resnet_depth', 'cannot name resnet_depth'),
        ('seed,,model_dirr', "found 'model_dirr'"),
    ],
)
def test_only_changeable_settings_can_be_allowed(names: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve({'allow_changes': names}, PRESETS)


def test_a_replaced_list_of_labels_is_kept(tmp_path: pathlib.Path) -> None:
    path = tmp_path / train.LABELS_FILE
    path.write_text('1 2\n')

    def write(listing: str | None, *changes: str, resumed: str | None = 'ckpt-3') -> list[str]:
        now = History({}, Position(3, 24), tuple(resuming.Change(c, 1, 2) for c in changes))
        config = resolve({'model_dir': str(tmp_path)}, PRESETS)
        subset = None
        if listing is not None:
            subset = type('Subset', (), {'listing': lambda self: listing})()
        prepared = type('E', (), {'config': config, 'history': now, 'subset': subset})()
        train._write_labels(prepared, resumed)
        return sorted(file.name for file in tmp_path.iterdir())

    assert write('3 4\n') == [path.name] and path.read_text() == '1 2\n'
    kept = 'labelled_examples_before_3.txt'
    assert write('3 4\n', 'seed') == [path.name, kept]
    assert (path.read_text(), (tmp_path / kept).read_text()) == ('3 4\n', '1 2\n')
    assert write(None, 'labels_per_class') == [kept]


# --- folders of an older release, whose checkpoints don't say how many examples they saw


@pytest.mark.parametrize(
    ('changes', 'seen'),
    [
        ([], 8 * 16),
        ([{'step': 8, 'setting': 'train_batch_size', 'from': 4, 'to': 16}], 8 * 4),
        ([{'step': 3, 'setting': 'train_batch_size', 'from': 4, 'to': 16}], 8 * 16),
        ([{'step': 8, 'setting': 'seed', 'from': 4, 'to': 16}], 8 * 16),
    ],
)
def test_an_older_checkpoint_counts_the_batch_size_of_its_time(
    tmp_path: pathlib.Path, changes: list, seen: int
) -> None:
    folder = tmp_path / 'run'
    shutil.copytree(OLDER, folder)
    flags = {**json.loads((OLDER / 'flags.json').read_text()), 'train_batch_size': 16}
    (folder / 'flags.json').write_text(json.dumps({**flags, 'changes': changes}))
    assert resuming.read_history(str(folder), 99).position == Position(8, seen)


# --- what is said about the schedule


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (
            ['--train_steps=2', '--warmup_epochs=1'],
            r'The warm-up of 8 steps .*after 2: .*1[23]% of',
        ),
        (['--train_epochs=1', '--warmup_epochs=10'], r'The warm-up of 80 .*after 9: .*10% of'),
        (['--train_steps=2', '--warmup_epochs=0.125'], None),
    ],
)
def test_a_warm_up_longer_than_the_run_is_noted_once(
    tmp_path: pathlib.Path, arguments: list[str], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, '_fit', lambda *_: None)
    shown = main(*COMMAND, *arguments, f'--model_dir={tmp_path}')
    assert shown.count('warm-up') == (words is not None)
    assert words is None or re.search(words, shown)


@pytest.mark.parametrize(
    ('first', 'latest', 'told'), [(5.0, 60.0, True), (0.1, 9.0, False), (5.0, 40.0, False)]
)
def test_a_diverged_loss_causes_a_warning(
    first: float, latest: float, told: bool, capsys: pytest.CaptureFixture
) -> None:
    train._warn_if_diverged(first, latest)
    assert ('diverged' in capsys.readouterr().out) is told
    train._warn_if_diverged(None, None)
