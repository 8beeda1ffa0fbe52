"""Runs all benchmarks of speed several times and writes benchmarks/results.md.

    make bench
    make bench ARGS='--runs=1 --parts steps loss'

All of it takes about an hour on two otherwise idle cores. Each run goes through all parts once,
so that slow spells of the machine are spread over them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from benchmarks.speed.spread import spread
from common.legacy_keras import choose_keras_2
from tf2.files import write_text

RESULTS = pathlib.Path(__file__).parents[1] / 'results.md'
LIMITS = pathlib.Path(__file__).with_name('limits.md')  # why some goals are not reached
PARTS = {
    'steps': 'Training step',
    'peers': 'The same step by other programs',
    'methods': 'Steps of other methods',
    'inputs': 'Input',
    'start': 'Start',
    'loss': 'Growth of the loss',
    'inference': 'Embedding and prediction',
}
PACKAGES = ('tensorflow', 'keras', 'numpy')

Runs = Sequence[Mapping[str, float]]

# Figures of the published TF2 program, measured once on such a machine at full speed: 47.7 images/s
# and 1.78 GB in the first case of `steps`, where float32 matrix products reach 431 GFLOP/s and a
# plain Keras step 52.9 images/s; 574 JPEGs/s, where one core decodes 931/s, or 329/s with plain
# crops and colors; at least 22.5 s for a whole run of one step; 3.7 GB for the loss of 8,192
# images. Shares of the machine's peak carry over to other machines. Start-up time is scaled by the
# inverse of one core's decoding rate.
CASE = 'ResNet-18 width 1, 32 px, batch 64'
PUBLISHED_STEP_SHARE = 0.74
PUBLISHED_STEP_OF_PLAIN = 47.7 / 52.9
PUBLISHED_INPUT_SHARE = 574 / (2 * 931)
PUBLISHED_INPUT_OF_PLAIN = 574 / (2 * 329)
PUBLISHED_START_SECONDS = 22.5
PUBLISHED_START_DECODES = 931
PUBLISHED_STEP_MEGABYTES = 1780
PUBLISHED_LOSS_MEGABYTES = 3700


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure with a bound to meet.

    Attributes:
        what: description.
        at_least: whether `bound` is a lower bound.
        bound: the bound.
        values: one per run.
    """

    what: str
    at_least: bool
    bound: float
    values: Sequence[float]

    @property
    def met(self) -> bool:
        """Whether the median meets the bound."""
        middle = statistics.median(self.values)
        return middle >= self.bound if self.at_least else middle <= self.bound


def goals(found: Mapping[str, Runs]) -> list[Goal]:
    """The goals of the parts that were run."""
    decodes = [run['decode_1_thread_images_per_second'] for run in found.get('inputs', ())]
    judges = {
        'steps': _goals_of_steps,
        'inputs': _goals_of_inputs,
        'start': lambda runs: _goals_of_start(runs, decodes),
        'loss': _goals_of_loss,
        'inference': _goals_of_inference,
    }
    return [goal for part in judges if part in found for goal in judges[part](found[part])]


def _goals_of_steps(runs: Runs) -> list[Goal]:
    single, half = (
        [run[f'{CASE}, {precision}: own_images_per_second'] for run in runs]
        for precision in ('float32', 'bfloat16')
    )
    plain = [run[f'{CASE}, float32: plain_images_per_second'] for run in runs]
    shares = [run[f'{CASE}, float32: own_share_of_peak'] for run in runs]
    by_peak = [
        rate / share * PUBLISHED_STEP_SHARE for rate, share in zip(single, shares, strict=True)
    ]
    by_plain = [rate * PUBLISHED_STEP_OF_PLAIN for rate in plain]
    made = []
    for precision, rates, bound in (('float32', single, 1.15), ('bfloat16', half, 1.8)):
        for by, published in (('the peak', by_peak), ('plain Keras', by_plain)):
            ratios = [rate / other for rate, other in zip(rates, published, strict=True)]
            what = f'step in {precision}, times the published program in float32, by {by}'
            made.append(Goal(what, True, bound, ratios))
    memory = [run[f'{CASE}, float32: own_megabytes'] for run in runs]
    return [
        *made,
        Goal('memory of the step in float32, MB', False, PUBLISHED_STEP_MEGABYTES, memory),
    ]


def _goals_of_inputs(runs: Runs) -> list[Goal]:
    published = {
        'decoding': [PUBLISHED_INPUT_SHARE * run['decode_peak_images_per_second'] for run in runs],
        'a plain pipeline': [
            PUBLISHED_INPUT_OF_PLAIN * run['plain_224_images_per_second'] for run in runs
        ],
    }
    made = []
    for which, key, bound in (
        ('without blur', '', 1.5),
        ('cropped, to be finished on an accelerator', '_cropped', 1.5),
        ('with blur', '_blur', 1.0),
    ):
        for by, rates in published.items():
            values = [
                run[f'ours_224{key}_images_per_second'] / rate for run, rate in zip(runs, rates)
            ]
            what = f'JPEGs to 224 px {which}, times the published pipeline without blur, by {by}'
            made.append(Goal(what, True, bound, values))
    return made


def _goals_of_start(runs: Runs, decodes: Sequence[float]) -> list[Goal]:
    made = [
        Goal(f'{name}, seconds', False, 3.0, [run[f'{part}_seconds'] for run in runs])
        for part, name in (
            ('help', '--help'),
            ('usage_flag', 'a wrong flag'),
            ('usage_checkpoint', 'a missing checkpoint'),
            ('usage_dataset', 'a missing data set'),
        )
    ]
    if not decodes:
        return made
    ratios = [
        run['run_seconds'] * rate / PUBLISHED_START_DECODES / PUBLISHED_START_SECONDS
        for run, rate in zip(runs, decodes)
    ]
    return [Goal('a run of one step, times the published program', False, 0.6, ratios), *made]


def _goals_of_loss(runs: Runs) -> list[Goal]:
    memory = [run['ours_8192_megabytes'] / PUBLISHED_LOSS_MEGABYTES for run in runs]
    made = [Goal('memory of the loss of 8,192, times the published program', False, 0.5, memory)]
    # The plain loss is left out if there is too little memory for it.
    pairs = [
        run['ours_8192_seconds'] / run['plain_8192_seconds']
        for run in runs
        if 'plain_8192_seconds' in run
    ]
    what = 'time of the loss of 8,192, times the plain formulation'
    return [*made, Goal(what, False, 1.0, pairs)] if pairs else made


def _goals_of_inference(runs: Runs) -> list[Goal]:
    rate = '_images_per_processor_second'  # varies far less while other programs run
    return [
        Goal(
            f'{mode} with {case}, times a bare Keras loop, per processor second',
            True,
            1.0,
            [run[f'{case}: own_{mode}{rate}'] / run[f'{case}: plain_{mode}{rate}'] for run in runs],
        )
        for case in dict.fromkeys(name.split(': ')[0] for run in runs for name in run)
        for mode in ('embed', 'predict')
    ]


def table_of(made: Sequence[Goal]) -> str:
    """Markdown: a row for each goal."""
    lines = ['| goal | wanted | found | reached |', '| --- | --- | --- | --- |']
    for goal in made:
        wanted = f'at {"least" if goal.at_least else "most"} {goal.bound:,g}'
        reached = 'yes' if goal.met else '**no**'
        lines.append(f'| {goal.what} | {wanted} | {spread(goal.values)} | {reached} |')
    return '\n'.join(lines)


def run_part(part: str) -> dict[str, float]:
    """Runs one part once in a separate process, and shows its output."""
    command = [sys.executable, '-m', f'benchmarks.speed.{part}']
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    *shown, figures = done.stdout.splitlines()
    print(*shown, sep='\n', flush=True)
    return json.loads(figures)


def machine() -> str:
    """Processor, cores, memory, system and versions, in one line."""
    info = pathlib.Path('/proc/cpuinfo')
    named = re.search(r'model name\s*: (.*)', info.read_text()) if info.exists() else None
    processor = named[1] if named else platform.processor()
    gigabytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in PACKAGES)
    return (
        f'{processor}, {os.cpu_count()} cores, {gigabytes:.0f} GB; {platform.system()} '
        f'{platform.release()}; Python {platform.python_version()}, {versions}'
    )


def document(found: Mapping[str, Runs], seconds: float) -> str:
    """results.md."""
    count = len(next(iter(found.values())))
    parts = [
        '# Speed\n',
        f'Written by `make bench` on {time.strftime("%Y-%m-%d")}: {count} runs in '
        f'{seconds / 60:.0f} minutes, as median (lowest to highest).\n',
        f'{machine()}.\n',
        '## Goals\n',
        'The published program is not timed here unless PUBLISHED_SIMCLR names its folder. Its '
        'figures were measured once on a similar machine: its step reached 74% of the peak of '
        'float32 products and 0.90 of the rate of a plain Keras step, with 1.78 GB of memory; its '
        'input reached 31% of the decoding rate of all cores and 0.87 of the rate of a plain '
        'pipeline; its start took 22.5 s where one core decodes 931 JPEGs/s; its loss of 8,192 '
        'images took 3.7 GB. Ratios to it apply these shares to what each run measured.\n',
        table_of(goals(found)),
        f'\n{LIMITS.read_text()}',
    ]
    for part, runs in found.items():
        module = importlib.import_module(f'benchmarks.speed.{part}')
        command = f'python -m benchmarks.speed.{part}'
        parts += [f'\n## {PARTS[part]}\n', f'`{command}`\n', module.rows(runs)]
    return '\n'.join(parts) + '\n'


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the given parts; writes results.md if they are all parts."""
    choose_keras_2()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    given = parser.parse_args(arguments)
    began = time.monotonic()
    found: dict[str, list[Mapping[str, float]]] = {part: [] for part in given.parts}
    for number in range(1, given.runs + 1):
        for part in given.parts:
            print(f'\nRun {number} of {given.runs}: {PARTS[part]}', flush=True)
            found[part].append(run_part(part))
    text = document(found, time.monotonic() - began)
    if given.parts == list(PARTS):
        write_text(str(RESULTS), text)
        print(f'\nWritten: {RESULTS}')
    else:
        print(f'\n{text}')


if __name__ == '__main__':
    main()
