"""Times whole runs of the program, each in its own process.

    python -m benchmarks.speed.start

A run takes one step of pretraining on the bundled images, writes a checkpoint, and exports and
checks a module. For comparison, the lower bound is Python importing TensorFlow; a plain Keras
script builds the same network, fits it to one batch of random numbers and writes its weights. Usage
errors and `--help` are timed too. Processor seconds are user and system time of the process and its
children; they depend less on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from benchmarks.speed.case import add_case
from benchmarks.speed.spread import spread
from common.legacy_keras import choose_keras_2

ROOT = pathlib.Path(__file__).parents[2]
PARTS = {
    'import_tensorflow': 'python -c "import tensorflow"',
    'plain_keras': 'plain Keras script, one step',
    'run': 'run.py, one step, checkpoint and export',
    'help': 'run.py --help',
    'usage_flag': 'run.py, a value that a flag does not take',
    'usage_checkpoint': 'run.py, a checkpoint that is not there',
    'usage_dataset': 'run.py, a data set that does not exist',
}


def command_of(part: str, given: argparse.Namespace, folder: str) -> tuple[list[str], int]:
    """The command of one of PARTS, which may write to `folder`, and its expected exit status."""
    if part == 'import_tensorflow':
        return [sys.executable, '-c', 'import tensorflow'], 0
    if part == 'plain_keras':
        shape = [f'--{name}={getattr(given, name)}' for name in ('depth', 'width', 'size', 'batch')]
        return [sys.executable, '-m', 'benchmarks.speed.start', f'--plain={folder}', *shape], 0
    training = [
        '--mode=train',
        '--report=False',
        '--train_mode=pretrain',
        '--optimizer=lars',
        '--train_steps=1',
        f'--resnet_depth={given.depth}',
        f'--width_multiplier={given.width}',
        f'--image_size={given.size}',
        f'--train_batch_size={given.batch}',
        f'--model_dir={folder}/run',
    ]
    flags, status = {
        'run': (training, 0),
        'help': (['--help'], 0),
        'usage_flag': (['--mode=sometimes'], 2),
        'usage_checkpoint': ([*training, f'--checkpoint={folder}/none'], 2),
        'usage_dataset': ([*training, '--dataset=cifer10', f'--data_dir={folder}'], 2),
    }[part]
    return [sys.executable, str(ROOT / 'run.py'), *flags], status


def timed(command: Sequence[str], status: int) -> tuple[float, float]:
    """Seconds and processor seconds of `command`, until its process has ended.

    Raises:
        RuntimeError: if it ends with an exit status other than `status`.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, ended, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(ended)
        if process.returncode != status:
            output.seek(0)
            raise RuntimeError(
                f'{command} ended with {process.returncode} instead of {status}: {output.read()!r}'
            )
    return seconds, used.ru_utime + used.ru_stime


def plain_script(given: argparse.Namespace) -> None:
    """Does what a user's own script would: build, compile, fit to one batch, save the weights."""
    choose_keras_2()
    import numpy as np
    import tensorflow as tf

    from benchmarks.speed import plain_keras

    classes = 10
    model = plain_keras.network(given.depth, given.width, given.size, classes)
    model.compile(
        # Keras would compile the update with XLA, which takes seconds.
        tf.keras.optimizers.SGD(0.01, momentum=0.9, jit_compile=False),
        [
            lambda _, projections: plain_keras.contrast(projections),
            tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ],
    )
    rows = 2 * given.batch  # two views of each image
    images = np.random.rand(rows, given.size, given.size, 3).astype(np.float32)
    labels = np.random.randint(classes, size=rows)
    model.fit(images, [labels, labels], batch_size=rows, epochs=1, verbose=0)
    model.save_weights(f'{given.plain}/weights')


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Times each of the given parts."""
    found = {}
    for part in given.parts:
        with tempfile.TemporaryDirectory() as folder:
            seconds, used = timed(*command_of(part, given, folder))
        found |= {f'{part}_seconds': seconds, f'{part}_cpu_seconds': used}
    return found


def rows(runs: Sequence[Mapping[str, float]]) -> str:
    """A Markdown table of several runs: median (lowest to highest)."""
    lines = [
        '| what | seconds | processor seconds | seconds, times plain Keras |',
        '| --- | --- | --- | --- |',
    ]
    for part, name in PARTS.items():
        if not all(f'{part}_seconds' in run for run in runs):
            continue
        cells = [
            spread([run[f'{part}_{kind}'] for run in runs]) for kind in ('seconds', 'cpu_seconds')
        ]
        shares = [
            run[f'{part}_seconds'] / run['plain_keras_seconds']
            for run in runs
            if 'plain_keras_seconds' in run
        ]
        cells.append(spread(shares) if shares else 'not timed')
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_case(parser)
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, default=list(PARTS), help='what to time'
    )
    parser.add_argument('--plain', metavar='FOLDER', help='run the plain script, writing there')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and the figures as JSON in the last line."""
    given = parsed(arguments)
    if given.plain:
        plain_script(given)
        return
    figures = measure(given)
    print(rows([figures]))
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
