"""Measures how time and memory of NT-Xent with its gradient grow with the global batch.

    python -m benchmarks.speed.loss

One replica, projections of width 128 at temperature 0.1. The program's loss is compared with a
plain one, written as in the paper: concatenated matrices of logits [N, 2N] with a dense mask and
dense labels, all of them kept for the backward pass. Unlike the plain loss, the program's also
computes accuracy and entropy. Each is measured at each size in a separate process: the median time
of several calls, and the growth of the peak memory since before the first call.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from common.legacy_keras import choose_keras_2

choose_keras_2()

import tensorflow as tf

from benchmarks.speed.spread import spread
from tf2.methods.nt_xent import nt_xent

SIZES = (256, 1024, 4096, 8192, 16384)
WIDTH, TEMPERATURE = 128, 0.1
SECONDS = 1.0  # minimum total time of the calls
PLAIN_BYTES = 60  # measured memory of the plain loss per element of N * N, rounded up


def ours(view_a: tf.Tensor, view_b: tf.Tensor) -> Sequence[tf.Tensor]:
    """The program's loss of two views [N, d], and its metrics."""
    return nt_xent(view_a, view_b, TEMPERATURE)


def plain(view_a: tf.Tensor, view_b: tf.Tensor) -> Sequence[tf.Tensor]:
    """The loss of two views [N, d] as section 2.1 of SimCLR (arXiv:2002.05709) describes it."""
    view_a, view_b = (tf.math.l2_normalize(view, 1) for view in (view_a, view_b))
    images = view_a.shape[0]
    labels = tf.one_hot(tf.range(images), 2 * images)  # the partner comes in the first half
    selves = 1e9 * tf.one_hot(tf.range(images), images)

    def losses(rows: tf.Tensor, partners: tf.Tensor) -> tf.Tensor:
        others = tf.matmul(rows, partners, transpose_b=True) / TEMPERATURE  # [N, N]
        alike = tf.matmul(rows, rows, transpose_b=True) / TEMPERATURE - selves  # [N, N]
        return tf.nn.softmax_cross_entropy_with_logits(labels, tf.concat([others, alike], 1))

    return [tf.reduce_mean(losses(view_a, view_b) + losses(view_b, view_a))]


FORMULATIONS = {'ours': ours, 'plain': plain}


def with_gradient(name: str) -> Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]:
    """(view_a, view_b), [N, d] each -> loss, gradients of both views, and any metrics."""

    def compute(view_a: tf.Tensor, view_b: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([view_a, view_b])
            loss, *more = FORMULATIONS[name](view_a, view_b)
        return [loss, *tape.gradient(loss, [view_a, view_b]), *more]

    return compute


def measure(name: str, size: int, repeats: int) -> dict[str, float]:
    """Figures of one formulation at one size, in this process."""
    views = tf.unstack(tf.random.stateless_normal([2, size, WIDTH], [0, 0]))
    function = tf.function(with_gradient(name), autograph=False)
    function.get_concrete_function(*views)
    # Resets the kernel's count of peak memory, which imports may have raised.
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    base = _megabytes('self/status', 'VmRSS')
    function(*views)
    seconds, processor = [], []
    while len(seconds) < repeats or sum(seconds) < SECONDS:
        started, used = time.perf_counter(), time.process_time()
        function(*views)[0].numpy()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return {
        f'{name}_{size}_seconds': statistics.median(seconds),
        f'{name}_{size}_processor_seconds': statistics.median(processor),
        f'{name}_{size}_megabytes': _megabytes('self/status', 'VmHWM') - base,
    }


def _megabytes(file: str, field: str) -> float:
    """A field in a file below /proc, which Linux gives in KiB."""
    text = pathlib.Path('/proc', file).read_text()
    return int(re.search(rf'^{field}:\s*(\d+) kB', text, re.MULTILINE)[1]) * 1024 / 1e6


def measure_apart(name: str, size: int, repeats: int) -> dict[str, float]:
    """`measure` in a separate process; {} if the plain loss would not fit into memory."""
    if name == 'plain' and PLAIN_BYTES * size**2 / 1e6 > _megabytes('meminfo', 'MemAvailable'):
        print(f'Too little memory for the plain loss of {size}: left out.', file=sys.stderr)
        return {}
    command = [sys.executable, '-m', __spec__.name, f'--only={name}', f'--sizes={size}']
    command.append(f'--repeats={repeats}')
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def rows(runs: Sequence[Mapping[str, float]]) -> str:
    """A Markdown table of several runs: median (lowest to highest)."""

    def cell(name: str, divisor: str = '', times: float = 1.0) -> str:
        values = [
            times * run[name] / run.get(divisor, 1.0)
            for run in runs
            if name in run and (not divisor or divisor in run)
        ]
        return spread(values) if values else '–'

    def line(size: int) -> str:
        cells = [f'{size:,}']
        for what, times in (('seconds', 1000), ('processor_seconds', 1000), ('megabytes', 1)):
            ours, plain = (f'{name}_{size}_{what}' for name in ('ours', 'plain'))
            cells += [cell(plain, times=times), cell(ours, times=times), cell(ours, plain)]
        return f'| {" | ".join(cells)} |'

    sizes = sorted({int(name.split('_')[1]) for run in runs for name in run})
    heads = ['global batch']
    for what in ('ms', 'processor ms', 'MB'):
        heads += [f'plain, {what}', f'ours, {what}', 'ratio']
    return '\n'.join([f'| {" | ".join(heads)} |', '| --- ' * len(heads) + '|', *map(line, sizes)])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES, help='global batches')
    parser.add_argument('--repeats', type=int, default=3, help='minimum number of calls')
    parser.add_argument('--only', choices=FORMULATIONS, help='only this one, in this process')
    given = parser.parse_args(argv)
    figures = {}
    if given.only:
        for size in given.sizes:
            figures |= measure(given.only, size, given.repeats)
    else:
        for size in given.sizes:
            for name in FORMULATIONS:
                figures |= measure_apart(name, size, given.repeats)
        print(rows([figures]))
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
