"""Two and three workers compared with one process: every stage, the same global batches."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
import tensorflow as tf

from benchmarks import runs
from benchmarks.runs import BUNDLED, SMALL, Reader

STEPS = 10
SHARED = (
    *SMALL,
    *BUNDLED,
    '--preset=demo',
    f'--train_steps={STEPS}',
    '--checkpoint_steps=5',
    # Divisible by two and three workers.
    '--train_batch_size=12',
    '--eval_batch_size=12',
    '--memory_size=36',
    # Small steps, which don't amplify rounding.
    '--optimizer=momentum',
    '--learning_rate=0.005',
)
PRETRAIN = ('--mode=train_then_eval', '--report=False', *SHARED)
PIPELINE = ('--mode=pipeline', '--labels_per_class=2', '--distill_alpha=0.5', *SHARED)


def train(
    workers: int, flags: Sequence[str], place: pathlib.Path, paces: Sequence[float] = ()
) -> pathlib.Path:
    """The folder of a run that several processes trained together."""
    arguments = [*flags, f'--model_dir={place / "run"}']
    with runs.workers(workers, arguments, place, paces) as started:
        for run in started:
            assert run.problems(0) == [], run.shown
    # Only one worker wrote, and all have the results.
    exports = [run.shown.count('Exported: ') for run in started]
    assert exports == [4 if flags is PIPELINE else 1, *[0] * (workers - 1)]
    tables = {tuple(line for line in run.shown.splitlines() if 'eval/' in line) for run in started}
    assert len(tables) == 1
    return place / 'run'


@pytest.fixture(scope='module')
def reader() -> Iterator[Reader]:
    with Reader() as opened:
        yield opened


def compared(state: dict) -> dict:
    """Weights, moving statistics, memory and losses.

    Not accuracies, which rounding changes by whole examples, nor the optimizer's velocities, some
    of which are sums that cancel out.
    """
    parts = ('checkpoint model/', 'checkpoint objective/')
    return {n: v for n, v in state.items() if '_loss' in n or n.split(':')[-1].startswith(parts)}


def check_same(
    reader: Reader,
    workers: int,
    flags: Sequence[str],
    place: pathlib.Path,
    paces: Sequence[float] = (),
) -> pathlib.Path:
    """Trains with one process and with several; returns the folder of the latter."""
    for name in ('alone', 'together'):
        (place / name).mkdir()
    expected = compared(reader.state(train(1, flags, place / 'alone')))
    folder = train(workers, flags, place / 'together', paces)
    assert any('queue' in name for name in expected)
    assert sum('train/contrast_loss' in name for name in expected) == 2
    assert runs.differences(compared(reader.state(folder)), expected, tolerance=5e-3) == []
    assert runs.leftovers(folder) == []
    return folder


def test_two_workers_pretrain_as_one_process_does(reader: Reader, tmp_path: pathlib.Path) -> None:
    # If they didn't agree on the steps in a call of the training function, they would wait
    # for each other forever.
    folder = check_same(reader, 2, PRETRAIN, tmp_path, paces=(60.0, 1e-3))
    # A single process uses what the chief worker exported.
    module = tf.saved_model.load(str(folder / 'saved_model' / str(STEPS)))
    images = tf.random.stateless_uniform([2, 8, 8, 3], [0, 0])
    assert module(images, training=False)['proj_head_output'].shape == [2, 128]


@pytest.mark.slow
@pytest.mark.parametrize('workers', [2, 3])
def test_workers_train_every_stage_as_one_process_does(
    reader: Reader, workers: int, tmp_path: pathlib.Path
) -> None:
    folder = check_same(reader, workers, PIPELINE, tmp_path)
    assert (folder / 'report.html').exists()


def shown_by_program(arguments: list[str], **environment: str) -> tuple[int, str]:
    program = pathlib.Path(__file__).parents[1] / 'run.py'
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ('config', 'flags', 'words'),
    [
        ('{', ['--model_dir=m'], 'expects TF_CONFIG, JSON such as'),
        (
            json.dumps({'cluster': {'worker': ['a:1', 'b:1']}, 'task': {'type': 'worker'}}),
            [],
            'Several workers need a --model_dir',
        ),
    ],
)
def test_workers_that_cannot_start_print_one_line(
    config: str, flags: list[str], words: str
) -> None:
    status, shown = shown_by_program(flags, TF_CONFIG=config)
    assert status == 2
    assert words in shown and shown.count('\n') == 1
