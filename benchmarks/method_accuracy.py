"""Compares methods of pretraining: accuracy, speed and memory on all of Fashion-MNIST.

    python -m data.bundled.make_bundled --full /usr/share/datasets/fashion-mnist DATA
    python -m benchmarks.method_accuracy DATA RUNS --tune
    python -m benchmarks.method_accuracy DATA RUNS

All methods have the same encoder, that of the preset `fashion_mnist`, and see as many views. With
`--tune`, three learning rates are compared, one half of, as much as and twice what the method's
preset says, on held-out training images: trained on the first 54,000, measured on the other 6,000.
Without, the rate found best there is used, if any, and what is printed are figures of the test
images: 8 nearest neighbors, a linear classifier, and fine-tuning on 1% of the labels.

Each run has a folder below RUNS. Repeated after an interruption, the command goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from app.presets import PRESETS
from benchmarks.speed.spread import spread
from common.legacy_keras import choose_keras_2
from tf2.files import write_text
from tf2.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
UNTRAINED = 'untrained'
SEEDS = dict.fromkeys(('simclr', 'moco_v2', 'byol', 'swav'), (0, 1, 2))  # others: 0
IMAGES = 60_000
HELD_OUT = {'train_split': 'train[:54000]', 'eval_split': 'train[54000:]'}
FACTORS = (0.5, 1.0, 2.0)
WARMUP = 0.1  # of the run
KNN, TOP_1 = 'eval/knn_accuracy', 'eval/label_top_1_accuracy'
RATE, MEMORY = 'images_per_second', 'megabytes'
# An untrained encoder only adapts its moving statistics.
STANDING_STILL = {'learning_rate': 1e-12, 'warmup_epochs': 0, 'train_steps': 100}


def preset_of(method: str) -> str:
    """The preset of a method for Fashion-MNIST."""
    own = (
        name
        for name, preset in PRESETS.items()
        if preset.flags.get('dataset') == 'fashion_mnist'
        and preset.flags.get('method', 'simclr') == method
    )
    return next(own)


def pretraining(method: str, views: int, factor: float = 1.0) -> dict[str, Any]:
    """Flags of a pretraining that sees `views` views, with the preset's rate times `factor`."""
    if method == UNTRAINED:
        return {'preset': preset_of('simclr'), **STANDING_STILL}
    flags = PRESETS[preset_of(method)].flags
    images = views // len(METHODS[method].views)
    rate = flags['learning_rate'] * factor
    return {
        'preset': preset_of(method),
        'train_steps': round(images / flags['train_batch_size']),
        'warmup_epochs': WARMUP * images / IMAGES,
        'learning_rate': rate,
    }


def run(folder: pathlib.Path, data: str, flags: Mapping[str, Any]) -> dict[str, float]:
    """The results of a run in `folder`, which is made unless it is complete.

    Returns:
        What result.json holds, images per second of the training, and the peak of memory in MB of
        the process that ended it.
    """
    record = folder / 'measured.json'
    if record.exists():
        return json.loads(record.read_text())
    given = {'mode': 'train_then_eval', 'data_dir': data, 'model_dir': folder, **flags}
    command = [f'--{name}={value}' for name, value in given.items()]
    print('python run.py', *command, flush=True)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'run.py'), *command], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'It ended with status {os.waitstatus_to_exitcode(status)}.')
    found = {**json.loads((folder / 'result.json').read_text()), **speed(folder)}
    found[MEMORY] = usage.ru_maxrss / 1000
    write_text(str(record), json.dumps(found, indent=2))
    return found


def speed(folder: pathlib.Path) -> dict[str, float]:
    """The median of the images per second that a run recorded."""
    from app.report.events import read_events

    recorded = read_events(str(folder)).scalars.get(f'train/{RATE}', {})
    return {RATE: statistics.median(recorded.values())} if recorded else {}


def tune(given: argparse.Namespace) -> dict[str, dict[float, float]]:
    """Method -> factor -> accuracy of the nearest neighbors on held-out images."""
    found: dict[str, dict[float, float]] = {}
    for method, factor in itertools.product(given.methods, FACTORS):
        if method == UNTRAINED:
            continue
        flags = {**pretraining(method, given.views, factor), **HELD_OUT, 'seed': 0}
        folder = given.runs / 'tuning' / f'{method}_{factor:g}'
        found.setdefault(method, {})[factor] = run(folder, given.data, flags)[KNN]
    return found


def best_factor(runs: pathlib.Path, method: str) -> float:
    """The factor that was best in the runs of `tune`; 1 if there are none."""
    found = {
        factor: json.loads(record.read_text())[KNN]
        for factor in FACTORS
        if (record := runs / 'tuning' / f'{method}_{factor:g}' / 'measured.json').exists()
    }
    return max(found, key=found.get, default=1.0)


def measure(method: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """Figures of one method and seed on the test images; accuracies in percent."""
    folder = given.runs / method / str(seed)
    flags = pretraining(method, given.views, best_factor(given.runs, method))
    pretrained = run(folder / 'pretrained', given.data, {**flags, 'seed': seed})
    found = {'neighbors': pretrained[KNN], 'linear': 0.0, 'fine-tuned': 0.0}
    for name, preset in (
        ('linear', 'fashion_mnist_linear'),
        ('fine-tuned', 'fashion_mnist_finetune'),
    ):
        later = {'preset': preset, 'checkpoint': folder / 'pretrained', 'seed': seed}
        found[name] = run(folder / name, given.data, later)[TOP_1]
    percent = {name: 100 * value for name, value in found.items()}
    return {**percent, RATE: pretrained.get(RATE, 0.0), MEMORY: pretrained[MEMORY]}


def rows(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A Markdown table: a row for each method, median (lowest to highest) over its seeds."""
    titles = {
        'neighbors': '8 nearest neighbors, %',
        'linear': 'linear, %',
        'fine-tuned': 'fine-tuned on 1%, %',
        RATE: 'images/s',
        MEMORY: 'memory, MB',
    }
    lines = [f'| method | seeds | {" | ".join(titles.values())} |', '| --- ' * 7 + '|']
    for method, runs in found.items():
        cells = [spread([run[name] for run in runs]) for name in titles]
        lines.append(f'| {method} | {len(runs)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def tuning_rows(found: Mapping[str, Mapping[float, float]]) -> str:
    """A Markdown table: the accuracy of the neighbors in percent by learning rate."""
    lines = ['| method | half the rate | the rate | twice the rate |', '| --- ' * 4 + '|']
    for method, accuracies in found.items():
        cells = [f'{100 * accuracies[factor]:.1f}' for factor in FACTORS]
        lines.append(f'| {method} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', help='folder with Fashion-MNIST, see make_bundled')
    parser.add_argument('runs', type=pathlib.Path, help='folder for the runs')
    names = [UNTRAINED, *METHODS]
    parser.add_argument('--methods', nargs='+', choices=names, default=names)
    parser.add_argument('--views', type=int, default=4 * IMAGES, help='number of views seen')
    parser.add_argument('--tune', action='store_true', help='compare learning rates')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    choose_keras_2()
    given = parsed(arguments)
    if given.tune:
        print(tuning_rows(tune(given)))
        return
    found = {
        method: [measure(method, seed, given) for seed in SEEDS.get(method, (0,))]
        for method in given.methods
    }
    print(rows(found))


if __name__ == '__main__':
    main()
