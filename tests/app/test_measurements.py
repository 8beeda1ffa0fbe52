"""Evaluators that lack something they need are refused before a run starts."""

from __future__ import annotations

import pathlib

import pytest

import run
from app import experiment
from app.config.resolution import resolve
from app.presets import PRESETS
from common.errors import UserError
from tf2.evaluators import EVALUATORS

BASE = {
    'mode': 'train_then_eval',
    'preset': 'demo',
    'train_split': 'train[:64]',
    'eval_split': 'test[:32]',
    'train_batch_size': 16,
}


def prepare(folder: pathlib.Path, **given: object) -> experiment.Experiment:
    given = {**BASE, 'model_dir': str(folder / 'run'), **given}
    return experiment.prepare(resolve(given, PRESETS), given)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'evaluators': 'rank,teacher'}, '--evaluators=teacher needs a --teacher'),
        (
            {'evaluators': 'knn', 'knn_neighbors': 0},
            '--evaluators=knn needs --knn_neighbors',
        ),
        (
            {'evaluators': 'confusion', 'lineareval_while_pretraining': False},
            '--evaluators=confusion needs a classifier',
        ),
        ({'evaluators': 'rank', 'knn_neighbors': 3}, '--knn_neighbors is read with knn among'),
    ],
)
def test_an_evaluator_that_lacks_something_is_refused(
    given: dict, words: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=words):
        prepare(tmp_path, **given)


def test_default_evaluators_that_lack_something_are_skipped(tmp_path: pathlib.Path) -> None:
    prepare(tmp_path, knn_neighbors=0, lineareval_while_pretraining=False)
    prepare(tmp_path, evaluators='knn,probe,per_class,confusion,alignment,uniformity,rank')


@pytest.mark.parametrize('names', ['probe', 'per_class', 'confusion', 'classification'])
def test_missing_labels_are_refused_by_name(names: str, tmp_path: pathlib.Path) -> None:
    """For a folder of images without class folders."""
    import tensorflow as tf

    for split in ('train', 'test'):
        (tmp_path / 'images' / split).mkdir(parents=True)
        for number in range(20):
            image = tf.io.encode_png(tf.fill([9, 9, 3], tf.cast(number, tf.uint8)))
            (tmp_path / 'images' / split / f'{number}.png').write_bytes(image.numpy())
    images = {
        'preset': None,
        'dataset': 'image_folder',
        'data_dir': str(tmp_path / 'images'),
        'train_split': 'train',
        'eval_split': 'test',
    }
    with pytest.raises(UserError, match='needs labels in the evaluation split; found none'):
        prepare(tmp_path, **images, evaluators=f'rank,{names}')
    prepare(tmp_path, **images, evaluators='rank,alignment,uniformity')


@pytest.mark.parametrize('names', ['knn,nonsense', 'teacher'])
def test_the_program_prints_one_line_and_exits_with_2(
    names: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [f'--{name}={value}' for name, value in BASE.items()]
    assert run.main(['run.py', *flags, '--model_dir=run', f'--evaluators={names}']) == 2
    said = capsys.readouterr().err
    assert said.startswith('run.py: error: --evaluators') and said.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_the_help_lists_every_evaluator() -> None:
    shown = ' '.join(run.help_text().split())
    for name, entry in EVALUATORS.items():
        assert f'--evaluators={name} {entry.summary}' in shown
