"""Compares the pretraining step with the same step of other programs, if they are installed.

    LIGHTLY_PYTHON=.venv-lightly/bin/python PUBLISHED_SIMCLR=simclr python -m benchmarks.speed.peers

The case is the first of `steps`: ResNet-18 with a stem for 32 px, two views of each image, NT-Xent,
a linear classifier and LARS, fed from memory. Each peer and precision has its own process, which
runs a step on request. The peers, our steps, and the matrix product that stands for the machine's
peak take turns, so that slow spells of the machine slow all of them. See README.md in this folder
for the installation of the peers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.speed import steps
from benchmarks.speed.spread import spread
from benchmarks.speed.timing import clock, in_turns
from common.errors import UserError

HERE = pathlib.Path(__file__).parent
PRECISIONS = ('float32', 'bfloat16')
# Name in the figures -> name in the table, and what to set to have it timed.
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


class Peer:
    """A context with a process; calling it runs one step there and returns its seconds.

    Args:
        name: for messages.
        command: prints a line of JSON with 'timed' when it is ready, then one with 'seconds' for
            each line that it reads.

    Raises:
        UserError: if the process ends before it is ready or, in a call, before it answers.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        # Unbuffered, so that nothing is left to be written after the process has ended.
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
        with contextlib.suppress(BrokenPipeError):  # then there will be no answer
            self._process.stdin.write(b'go\n')
        return self._answer('seconds')

    def _answer(self, what: str) -> float | str:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f'{self._name} must answer each step; its process ended with status '
                f'{self._process.wait()}; its messages are above. Fix the cause, or unset its '
                'variable to leave it out'
            )
        return json.loads(line)[what]


def commands(environment: Mapping[str, str], batch: int) -> dict[str, list[str]]:
    """Name in the figures -> command, for the peers that the environment names.

    Raises:
        UserError: if a peer is missing.
    """
    found = {}
    if environment.get('LIGHTLY_PYTHON'):
        for precision in PRECISIONS:
            found[f'lightly_{precision}'] = lightly_command(environment, batch, precision)
    if clone := environment.get('PUBLISHED_SIMCLR'):
        folder = pathlib.Path(clone).absolute() / 'tf2'
        missing = [
            name for name in ('run.py', 'model.py', 'objective.py') if not (folder / name).exists()
        ]
        if missing:
            raise UserError(
                f'PUBLISHED_SIMCLR must name the clone of the published program; found no '
                f'{", ".join(missing)} in {folder}. Name the parent of its folder tf2'
            )
        script = [sys.executable, str(HERE / 'published_step.py'), str(folder)]
        found['published_float32'] = [*script, f'--batch={batch}']
    return found


def lightly_command(
    environment: Mapping[str, str], batch: int, precision: str, method: str = 'simclr'
) -> list[str]:
    """The command for a `Peer` that runs lightly.

    Raises:
        UserError: if LIGHTLY_PYTHON names no program.
    """
    python = environment['LIGHTLY_PYTHON']
    if not shutil.which(python):
        raise UserError(
            f'LIGHTLY_PYTHON must name a Python that has lightly; found no program {python!r}. '
            f'See {HERE / "README.md"} for its installation'
        )
    options = {'precision': precision, 'batch': batch, 'method': method}
    given = [f'--{name}={value}' for name, value in options.items()]
    return [python, str(HERE / 'lightly_step.py'), *given]


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
    """A Markdown table of several runs: median (lowest to highest).

    Ratios are taken run by run. The row of a program that was not timed says what to set.
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


def show(
    measure: Callable[[], dict[str, float]],
    rows: Callable[[Sequence[Mapping[str, float]]], str],
) -> None:
    """Prints the table of one run, and its figures as JSON in the last line.

    What the user can fix is one line, with exit status 2.
    """
    try:
        figures = measure()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(rows([figures]))
    print(json.dumps(figures))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=1, help='steps of each program per round')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and the figures as JSON in the last line."""
    show(lambda: measure(parsed(arguments), os.environ), rows)


if __name__ == '__main__':
    main()
