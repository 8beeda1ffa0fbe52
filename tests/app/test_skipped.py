"""Damaged files in runs: listed beside the run, and replaced the same after a restart."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from app.skipped import listing_skipped_files
from benchmarks import runs
from benchmarks.runs import Reader
from data.config import DataConfig
from data.sources import open_source

DAMAGED = {'cat/3.png': b'', 'dog/1.png': b'version https://git-lfs.github.com/spec/v1\n'}
REASONS = {'cat/3.png': 'it is empty', 'dog/1.png': 'it is a Git LFS pointer, not the file itself'}
LAST = 6
FLAGS = (
    '--mode=train_then_eval',
    '--resnet_depth=18',
    '--width_multiplier=0.125',
    '--image_size=8',
    '--train_batch_size=8',
    '--eval_batch_size=8',
    '--train_steps=6',
    '--checkpoint_steps=3',
    '--optimizer=momentum',
    '--learning_rate=0.005',
    '--max_bad_fraction=0.2',
    '--deterministic',
    '--mixed_precision=float32',
    '--report=False',
)


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder, random = tmp_path_factory.mktemp('skipped') / 'images', np.random.RandomState(0)
    for name in ('cat', 'dog'):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = random.randint(0, 256, [9, 10, 3], np.uint8)
            sound = tf.io.encode_png(pixels).numpy()
            content = DAMAGED.get(f'{name}/{number}.png', sound)
            (folder / name / f'{number}.png').write_bytes(content)
    return folder


@pytest.fixture(scope='module')
def reader() -> Iterator[Reader]:
    with Reader() as opened:
        yield opened


def listed(folder: pathlib.Path) -> dict[str, str]:
    """File -> reason, in the lists of all workers."""
    found = {}
    for path in folder.glob('skipped_files*.txt'):
        for line in path.read_text().splitlines():
            name, reason = line.split('\t')
            found['/'.join(name.split('/')[-2:])] = reason
    return found


@pytest.mark.parametrize('count', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_replaces_the_same_files(
    count: int, images: pathlib.Path, tmp_path: pathlib.Path, reader: Reader
) -> None:
    folder = tmp_path / 'run'
    shown = train(count, images, folder)
    assert sum(' could not be decoded and w' in text for text in shown)
    assert listed(folder) == REASONS
    expected = weights(reader, folder)
    for file in [*folder.glob(f'ckpt-{LAST}.*'), *folder.glob('skipped_files*.txt')]:
        file.unlink()
    shown = train(count, images, folder)
    assert all('going on from' in text for text in shown)
    assert listed(folder) == REASONS
    assert runs.differences(weights(reader, folder), expected) == []


def test_files_that_are_there_again_leave_the_list(
    images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """As after a disk was unmounted; damaged files stay listed."""
    path, damaged = tmp_path / 'skipped_files.txt', 'a.png\tit is empty\n'
    gone = 'b.png\tit cannot be read (b.png; No such file or directory)\n'
    source = open_source(DataConfig(dataset='image_folder', data_dir=str(images)))
    for before, after in ((gone, None), (damaged + gone, damaged)):
        path.write_text(before)
        with listing_skipped_files(source, str(tmp_path), tf.distribute.get_strategy()):
            assert (path.read_text() if path.exists() else None) == after


def train(count: int, images: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Output of each of `count` processes that train together."""
    flags = [*FLAGS, f'--data_dir={images}', f'--model_dir={folder}']
    with runs.workers(count, flags, folder.parent) as workers:
        for worker in workers:
            assert worker.problems(0) == [], worker.shown
    return [worker.shown for worker in workers]


def weights(reader: Reader, folder: pathlib.Path) -> dict:
    """Weights and moving statistics at the end."""
    return {
        name: value
        for name, value in reader.state(folder).items()
        if name.split(':')[-1].startswith('checkpoint model/')
    }
