"""Runs with `--data_dir=FOLDER` alone, on folders of images of any layout."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import run
from app import experiment
from app.config.resolution import resolve
from app.presets import PRESETS

TINY = (
    '--resnet_depth=18',
    '--width_multiplier=0.125',
    '--image_size=8',
    '--train_batch_size=8',
    '--train_steps=1',
)


def write_images(root: pathlib.Path, *folders: str, count: int) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = np.full([9, 8, 3], 20 * number, np.uint8)
            (root / folder / f'{number}.png').write_bytes(tf.io.encode_png(image).numpy())


def main(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        status = run.main(['run.py', *arguments])
    return status, shown.getvalue(), said.getvalue()


def test_a_folder_of_images_is_enough(tmp_path: pathlib.Path, plain: None, bare_runs: None) -> None:
    """Pretraining, evaluated on the hold-out; a resumed run keeps its hold-out."""
    images, folder = tmp_path / 'images', tmp_path / 'run'
    write_images(images, 'cat', 'dog', count=10)
    command = (*TINY, f'--data_dir={images}', f'--model_dir={folder}')
    status, shown, said = main('--mode=train_then_eval', '--train_mode=pretrain', *command)
    assert status == 0, said
    assert shown.count(f'{images}: ') == 1
    assert (
        f'{images}: class folders; 20 images; 2 classes (cat 10, dog 10); 2 of train are held out '
        'as validation (--holdout_fraction=0.1).\n'
        'image_folder: 18 training images, 2 classes of 9; 2 to evaluate on, 2 classes of 1.\n'
    ) in shown
    assert json.loads((folder / 'result.json').read_text())['global_step'] == 1
    recorded = json.loads((folder / 'flags.json').read_text())
    assert (recorded['preset'], recorded['train_examples']) == ('own_images', 18)
    assert main('--mode=train_then_eval', *command)[0] == 0
    line = main('--mode=train', *command, '--holdout_fraction=0.5')[2]
    assert 'holdout_fraction 0.1' in line and '--allow_changes=holdout_fraction' in line
    older_run(folder, images)


def older_run(folder: pathlib.Path, images: pathlib.Path) -> None:
    """A run of a release without hold-out, which keeps all its images."""
    recorded = json.loads((folder / 'flags.json').read_text())
    del recorded['holdout_fraction']
    (folder / 'flags.json').write_text(json.dumps({**recorded, 'train_examples': 20}))
    given = {
        **{flag: recorded[flag] for flag in ('resnet_depth', 'width_multiplier', 'image_size')},
        **{flag: recorded[flag] for flag in ('train_batch_size', 'train_steps')},
        'data_dir': str(images),
        'model_dir': str(folder),
        'mode': 'train',
    }
    prepared = experiment.prepare(resolve(given, PRESETS), given)
    assert prepared.train_examples == 20
    changed = {change.setting for change in prepared.history.changes}
    assert not changed & {'train_examples', 'holdout_fraction'}


@pytest.mark.parametrize(
    ('folders', 'flags', 'words'),
    [
        ((), (), 'must hold images'),
        (('x',), ('--train_mode=finetune',), 'needs labels; image_folder has none'),
        (('train/x',), ('--train_mode=finetune',), 'two classes to tell apart, or more; image_fo'),
        (('a', 'b'), ('--eval_split=night',), "no split 'night'; its splits are: train, valida"),
        (('a', 'b'), ('--train_split=day',), "no split 'day'; its splits are: train"),
        (('val/a', 'test/b'), (), "images in a folder 'train' beside test, val; found none"),
        (('train/a', 'test'), ('--train_mode=finetune', '--train_split=test'), 'needs labels'),
        (('a',), ('--dataset=bundled',), 'Give --dataset=image_folder too'),
    ],
    ids=str,
)
def test_a_faulty_folder_is_one_line(
    tmp_path: pathlib.Path, folders: tuple[str, ...], flags: tuple[str, ...], words: str
) -> None:
    write_images(tmp_path / 'images', *folders, count=12)
    (tmp_path / 'images').mkdir(exist_ok=True)
    command = (*TINY, *flags, f'--data_dir={tmp_path}/images', f'--model_dir={tmp_path}/run')
    status, _, said = main('--mode=train_then_eval', *command)
    assert status == 2 and words in said
    assert said.count('\n') == 1
    assert not (tmp_path / 'run').exists()
