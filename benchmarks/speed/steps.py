"""Times a pretraining step, fed from memory, beside a plain Keras step and the machine's peak.

    python -m benchmarks.speed.steps --depth=18 --size=32 --batch=64 --precision=bfloat16

All are timed in turns in one process: what slows the machine down for a while slows all of them.
Memory is the most that a process held which did nothing but the program's steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from settings import choose_keras_2

choose_keras_2()

import tensorflow as tf

from benchmarks.scaling import Network, flops, trace
from benchmarks.speed import plain_keras
from tf2.config import ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from tf2.models.encoder import SimCLRModel, build_model
from tf2.objectives.nt_xent import Pretraining
from tf2.optimizers import builder, decay
from tf2.trainer import Penalty, Trainer

CLASSES = 10
MATRIX = 2048  # rows and columns of the product whose rate counts as the machine's peak

Call = Callable[[], object]


def own_step(case: argparse.Namespace) -> Call:
    """The program's step on one batch: both heads, LARS, all metrics, as `run.py` builds it."""
    config = ModelConfig(case.depth, case.width)
    model = build_model(
        SimCLRModel(
            config,
            case.size,
            CLASSES,
            precision=case.precision,
            filter_products=case.precision == 'bfloat16',
            detach_classifier=True,
        )
    )
    decayed = [
        *decay.decayed_kernels(model.backbone),
        *decay.decayed_kernels(model.projection_head),
    ]
    optimizer = builder.build(OptimizerConfig(), 0.01, decayed)
    penalty = Penalty(1e-6, [model.classifier.kernel])
    trainer = Trainer(Pretraining(model, ObjectiveConfig()), optimizer, penalty, TrainConfig())
    step = tf.function(trainer.replica_step)
    views, labels = batch_of(case)
    batch = {'views': tuple(tf.unstack(views)), 'label': labels}
    return lambda: step(batch).numpy()


def plain_step(case: argparse.Namespace) -> Call:
    """The plain Keras step on the same batch."""
    step = plain_keras.step_of(case.depth, case.width, case.size, CLASSES, case.precision)
    views, labels = batch_of(case)
    together = tf.concat(tf.unstack(views), 0)
    return lambda: step(together, labels).numpy()


def batch_of(case: argparse.Namespace) -> tuple[tf.Tensor, tf.Tensor]:
    """Two views of each image [2, b, size, size, 3], and labels [b]."""
    shape = [2, case.batch, case.size, case.size, 3]
    labels = tf.random.stateless_uniform([case.batch], [0, 1], 0, CLASSES, tf.int32)
    return tf.random.stateless_uniform(shape, [0, 0]), labels


def product(precision: str) -> Call:
    """A square matrix product in the step's precision."""
    dtype = tf.float32 if precision == 'float32' else tf.as_dtype(precision)
    matrix = tf.cast(tf.random.stateless_normal([MATRIX, MATRIX], [0, 0]), dtype)
    multiply = tf.function(lambda one: tf.matmul(one, one)[0, 0])
    return lambda: multiply(matrix).numpy()


def step_flops(case: argparse.Namespace) -> float:
    """Floating-point operations of a step an image, of convolutions and products."""
    network = Network(ModelConfig(case.depth, case.width), case.size, 'float32')
    graph = trace(network, 2, global_bn=False)
    return sum(map(flops, [*graph.forward, *graph.backward])) / 2


def in_turns(calls: Mapping[str, Call], rounds: int, steps: int) -> dict[str, float]:
    """Name -> median seconds of a call; each round calls each of them `steps` times."""
    for call in calls.values():
        call()
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(steps):
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(case: argparse.Namespace) -> dict[str, float]:
    """Rates and shares of one case."""
    calls = {'own': own_step(case), 'plain': plain_step(case), 'product': product(case.precision)}
    seconds = in_turns(calls, case.rounds, case.steps)
    peak = 2 * MATRIX**3 / seconds['product']
    work = step_flops(case)
    found = {'peak_gflops': peak / 1e9, 'gflop_per_image': work / 1e9}
    for name in ('own', 'plain'):
        found[f'{name}_images_per_second'] = case.batch / seconds[name]
        found[f'{name}_share_of_peak'] = case.batch / seconds[name] * work / peak
    return found


def peak_megabytes(case: argparse.Namespace) -> float:
    """The most memory a process of its own holds that does two of the program's steps."""
    command = [sys.executable, '-m', 'benchmarks.speed.steps', *sys.argv[1:], '--memory']
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])['own_megabytes']


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--depth', type=int, default=18)
    parser.add_argument('--width', type=float, default=1)
    parser.add_argument('--size', type=int, default=32, help='of the images, in pixels')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--precision', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=2, help='of each kind in a round')
    parser.add_argument('--memory', action='store_true', help='measure the memory only')
    return parser.parse_args(arguments)


def main() -> None:
    """Prints one JSON object."""
    case = parsed()
    if case.memory:
        step = own_step(case)
        step(), step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({'own_megabytes': peak / 1e6}))
        return
    print(json.dumps({**measure(case), 'own_megabytes': peak_megabytes(case)}))


if __name__ == '__main__':
    main()
