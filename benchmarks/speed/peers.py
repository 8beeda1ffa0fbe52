"""Times the pretraining step beside the same step of other programs, where they are installed.

    LIGHTLY_PYTHON=.venv-lightly/bin/python PUBLISHED_SIMCLR=simclr python -m benchmarks.speed.peers

The case is the first of `steps`: ResNet-18 with a stem for 32 px, two views of each image,
NT-Xent, a linear classifier beside it and LARS, fed from memory. Each peer and precision has a
process of its own, which runs a step when it is told to: all of them and the matrix product that
counts as the machine's peak take turns, so that what slows the machine down for a while slows all
of them. README.md beside this file tells how to install the peers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.speed import steps
from benchmarks.speed.spread import spread
from common.errors import UserError

HERE = pathlib.Path(__file__).parent
PRECISIONS = ('float32', 'bfloat16')
# Name in the figures -> name in the table, and how to have it timed.
PROGRAMS = {
    'own_float32': ('this program, float32', ''),
    'own_bfloat16': ('this program, bfloat16', ''),
    'lightly_float32': ('lightly, float32', 'LIGHTLY_PYTHON=a Python that has lightly'),
    'lightly_bfloat16': ('lightly, bfloat16', 'LIGHTLY_PYTHON=a Python that has lightly'),
    'published_float32': (
        'published TF2 program, float32',
        "PUBLISHED_SIMCLR=its clone's folder",
    ),
}

Clock = Callable[[], float]


class Peer:
    """A step in a process of its own, as a context; calling it runs one and returns its seconds.

    Args:
        name: for messages.
        command: prints a line of JSON with 'timed' when it is ready, then one with 'seconds' for
            each line that it reads.

    Raises:
        UserError: the process stops before it is ready; from calls, before it answers.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        # Without buffers nothing is left to be written when the process is no more.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        try:
            print(f'Timed: {self._answer("timed")}', file=sys.stderr)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        with self._process:  # waits for it
            pass

    def __call__(self) -> float:
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(b'go\n')
        return self._answer('seconds')

    def _answer(self, what: str) -> float | str:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f'{self._name} must answer each step; its process ended with status '
                f'{self._process.wait()}, and what it said stands above. Mend that, or unset its '
                'variable to do without it'
            )
        return json.loads(line)[what]


def commands(environment: Mapping[str, str], batch: int) -> dict[str, list[str]]:
    """Name in the figures -> command, of the peers that the environment names.

    Raises:
        UserError: what it names is not there.
    """
    found = {}
    if python := environment.get('LIGHTLY_PYTHON'):
        if not shutil.which(python):
            raise UserError(
                f'LIGHTLY_PYTHON must name a Python that has lightly; found no program {python!r}. '
                f'{HERE / "README.md"} tells how to make one'
            )
        for precision in PRECISIONS:
            script = [python, str(HERE / 'lightly_step.py'), f'--precision={precision}']
            found[f'lightly_{precision}'] = [*script, f'--batch={batch}']
    if clone := environment.get('PUBLISHED_SIMCLR'):
        folder = pathlib.Path(clone).absolute() / 'tf2'
        missing = [
            name for name in ('run.py', 'model.py', 'objective.py') if not (folder / name).exists()
        ]
        if missing:
            raise UserError(
                f'PUBLISHED_SIMCLR must name the clone of the published program; found no '
                f'{", ".join(missing)} in {folder}. Name the folder that holds its folder tf2'
            )
        script = [sys.executable, str(HERE / 'published_step.py'), str(folder)]
        found['published_float32'] = [*script, f'--batch={batch}']
    return found


def clock(call: steps.Call) -> Clock:
    """Runs `call` and returns the seconds that it took."""

    def timed() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return timed


def in_turns(clocks: Mapping[str, Clock], rounds: int, count: int) -> dict[str, float]:
    """Name -> median seconds; each round calls each of them `count` times."""
    for timed in clocks.values():
        timed(), timed()  # the first ones compile
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, timed in clocks.items():
            seconds[name] += [timed() for _ in range(count)]
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(given: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, float]:
    """Rates, and shares of the peak of float32 products."""
    cases = {
        f'own_{precision}': steps.parsed([f'--batch={given.batch}', f'--precision={precision}'])
        for precision in PRECISIONS
    }
    with contextlib.ExitStack() as stack:
        peers = {
            name: stack.enter_context(Peer(name, command))
            for name, command in commands(environment, given.batch).items()
        }
        clocks = {name: clock(steps.own_step(case)) for name, case in cases.items()}
        clocks |= {**peers, 'peak': clock(steps.product('float32'))}
        seconds = in_turns(clocks, given.rounds, given.steps)
    peak = 2 * steps.MATRIX**3 / seconds.pop('peak')
    work = steps.step_flops(cases['own_float32'])
    found = {'peak_float32_gflops': peak / 1e9}
    for name, value in seconds.items():
        found[f'{name}_images_per_second'] = given.batch / value
        found[f'{name}_share_of_peak'] = given.batch / value * work / peak
    return found


def rows(runs: Sequence[Mapping[str, float]]) -> str:
    """A Markdown table of what several runs gave: median (lowest to highest).

    Ratios are taken run by run. A row says how to have a program timed that no run timed.
    """
    lines = [
        '| step | images/s | share of the peak of float32 | ours in float32 is faster, times '
        '| ours in bfloat16 is faster, times |',
        '| --- | --- | --- | --- | --- |',
    ]
    for name, (title, how) in PROGRAMS.items():
        rate = f'{name}_images_per_second'
        those = [run for run in runs if rate in run]
        if not those:
            lines.append(f'| {title} | not timed: give `{how}` | | | |')
            continue
        cells = [
            spread([run[rate] for run in those]),
            spread([100 * run[f'{name}_share_of_peak'] for run in those], '%'),
        ]
        for precision in PRECISIONS:
            ours = f'own_{precision}_images_per_second'
            cells.append('' if ours == rate else spread([run[ours] / run[rate] for run in those]))
        lines.append(f'| {title} | {" | ".join(cells)} |')
    peaks = spread([run['peak_float32_gflops'] for run in runs])
    return '\n'.join([*lines, '', f'Peak of float32: {peaks} GFLOP/s.'])


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=1, help='of each kind in a round')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and the figures as JSON in the last line."""
    try:
        figures = measure(parsed(arguments), os.environ)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(rows([figures]))
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
