"""Times a pretraining step, fed from memory, a plain Keras step and the machine's peak.

    python -m benchmarks.speed.steps

The three are timed in turns in one process, so that slow spells of the machine slow all of them.
Each case has its own process. Memory is that process's peak after two of the program's steps,
before anything else ran.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from common.legacy_keras import choose_keras_2

choose_keras_2()

import tensorflow as tf

from app.assembly import assemble
from app.config.resolution import from_values
from benchmarks.scaling import Network, flops, trace
from benchmarks.speed import plain_keras
from benchmarks.speed.case import add_case
from benchmarks.speed.spread import spread
from benchmarks.speed.timing import Call, clock, in_turns
from tf2.config import ModelConfig
from tf2.distribution import build_strategy
from tf2.methods import METHODS

# Depth, width, pixels, images per step, precision.
CASES = (
    (18, 1, 32, 64, 'float32'),
    (18, 1, 32, 64, 'bfloat16'),
    (18, 0.25, 28, 256, 'float32'),
    (18, 0.25, 28, 256, 'bfloat16'),
    (50, 1, 32, 32, 'bfloat16'),
)
CLASSES = 10
MATRIX = 2048  # rows and columns of the matrix product that stands for the machine's peak


def own_step(case: argparse.Namespace, method: str = 'simclr', **settings: object) -> Call:
    """The program's step on one batch: head, classifier, optimizer, metrics, as `run.py` builds it.

    Args:
        case: the network, the batch and the precision.
        method: of pretraining.
        settings: those that differ from the method's defaults.
    """
    settings = {
        **METHODS[method].defaults,
        'method': method,
        'resnet_depth': case.depth,
        'width_multiplier': case.width,
        'image_size': case.size,
        'mixed_precision': case.precision,
        'train_batch_size': case.batch,
        **settings,
    }
    config = from_values(settings)
    strategy = build_strategy(config.devices)
    with strategy.scope():
        made = assemble(config, num_classes=CLASSES, train_examples=50_000)
    step = tf.function(lambda batch: strategy.run(made.trainer.replica_step, (batch,)))
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
    multiply = tf.function(lambda one: tf.matmul(one, one)[0, 0], autograph=False)
    return lambda: multiply(matrix).numpy()


def step_flops(case: argparse.Namespace) -> float:
    """FLOPs of a step per image, in convolutions and matrix products."""
    network = Network(
        ModelConfig(resnet_depth=case.depth, width_multiplier=case.width), case.size, 'float32'
    )
    graph = trace(network, 2, global_bn=False)
    return sum(map(flops, [*graph.forward, *graph.backward])) / 2


def measure(case: argparse.Namespace) -> dict[str, float]:
    """Rates, shares and memory of one case, in this process."""
    own = own_step(case)
    own()
    own()
    # Only the program's own steps have run so far.
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    calls = {'own': own, 'plain': plain_step(case), 'product': product(case.precision)}
    clocks = {name: clock(call) for name, call in calls.items()}
    seconds = in_turns(clocks, case.rounds, case.steps)
    peak = 2 * MATRIX**3 / seconds['product']
    work = step_flops(case)
    found = {'peak_gflops': peak / 1e9, 'own_megabytes': held / 1e6}
    for name in ('own', 'plain'):
        found[f'{name}_images_per_second'] = case.batch / seconds[name]
        found[f'{name}_share_of_peak'] = case.batch / seconds[name] * work / peak
    return found


def profile(call: Call) -> dict[str, float]:
    """Type of operation -> milliseconds in a call, over all threads, in descending order."""
    from tensorflow.core.profiler.protobuf import xplane_pb2

    space, found = xplane_pb2.XSpace(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
        space.ParseFromString(file.read_bytes())
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            # 'operation name:type'; other events are functions of the runtime.
            match = re.fullmatch(r'[^:]+:([A-Z_]\w+)', plane.event_metadata[event.metadata_id].name)
            if match and not match[1].startswith('__'):
                found[match[1]] += event.duration_ps / 1e9
    return dict(found.most_common())


def profile_rows(found: Mapping[str, float]) -> str:
    """A Markdown table of operation types with at least 1% of the time, and the rest together."""
    whole = sum(found.values())
    kept = {kind: spent for kind, spent in found.items() if spent >= whole / 100}
    lines = ['| operation | ms, over all threads | share |', '| --- | --- | --- |']
    for kind, spent in {**kept, 'all others': whole - sum(kept.values())}.items():
        lines.append(f'| {kind} | {spent:,.0f} | {100 * spent / whole:.1f}% |')
    return '\n'.join(lines)


def measure_apart(case: Sequence[object], given: argparse.Namespace) -> dict[str, float]:
    """Figures of one case, measured in a separate process; names are 'CASE: FIGURE'."""
    numbers = zip(('depth', 'width', 'size', 'batch', 'precision'), case)
    command = [sys.executable, '-m', 'benchmarks.speed.steps', '--single']
    command += [f'--rounds={given.rounds}', f'--steps={given.steps}']
    command += [f'--{name}={value}' for name, value in numbers]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    depth, width, size, batch, precision = case
    name = f'ResNet-{depth} width {width}, {size} px, batch {batch}, {precision}'
    return {f'{name}: {figure}': value for figure, value in found.items()}


def rows(runs: Sequence[Mapping[str, float]]) -> str:
    """A Markdown table of several runs: median (lowest to highest)."""
    lines = [
        '| step | images/s | share of peak | plain Keras, images/s | its share | times plain Keras '
        '| peak, GFLOP/s | memory, MB |',
        '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for case in dict.fromkeys(name.split(': ')[0] for run in runs for name in run):
        own, plain = (
            [run[f'{case}: {name}_images_per_second'] for run in runs] for name in ('own', 'plain')
        )
        own_share, plain_share = (
            [100 * run[f'{case}: {name}_share_of_peak'] for run in runs]
            for name in ('own', 'plain')
        )
        cells = [
            spread(own),
            spread(own_share, '%'),
            spread(plain),
            spread(plain_share, '%'),
            spread([one / other for one, other in zip(own, plain)]),
            spread([run[f'{case}: peak_gflops'] for run in runs]),
            spread([run[f'{case}: own_megabytes'] for run in runs]),
        ]
        lines.append(f'| {case} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_case(parser)
    parser.add_argument('--precision', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=1, help='steps of each kind per round')
    parser.add_argument('--single', action='store_true', help='only this case, in this process')
    parser.add_argument(
        '--profile',
        action='store_true',
        help="profile this case's step with TensorFlow's profiler",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of all cases, or of one, and the figures as JSON in the last line."""
    given = parsed(arguments)
    if given.profile:
        step = own_step(given)
        step()
        step()
        print(profile_rows(profile(step)))
        return
    if given.single:
        print(json.dumps(measure(given)))
        return
    figures = {}
    for case in CASES:
        figures |= measure_apart(case, given)
    print(rows([figures]))
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
