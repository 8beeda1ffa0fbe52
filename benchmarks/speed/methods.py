"""Compares the steps of other methods with those of lightly, if it is installed.

    LIGHTLY_PYTHON=.venv-lightly/bin/python python -m benchmarks.speed.methods

The case is the first of `steps`, ResNet-18 with a stem for 32 px, in float32, with two views of
each image, a linear classifier and SGD, fed from memory. Widths of heads and predictors, the size
of the queue and the number of prototypes are the same in both programs. MoCo normalizes each view
as a whole, as lightly does on one device. Methods are timed one after the other; both programs take
turns. See README.md in this folder for the installation of lightly.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence

from benchmarks.speed import steps
from benchmarks.speed.case import add_case
from benchmarks.speed.peers import Peer, lightly_command, show
from benchmarks.speed.spread import spread
from benchmarks.speed.timing import clock, in_turns

# Method -> settings. lightly_step.py has the same numbers.
METHODS = {
    'moco_v2': {
        'num_proj_layers': 2,
        'proj_out_dim': 128,
        'memory_size': 4096,
        'norm_parts': 1,
    },
    'byol': {
        'num_proj_layers': 2,
        'proj_hidden_dim': 1024,
        'proj_out_dim': 256,
        'predictor_hidden_dim': 1024,
    },
    'simsiam': {
        'num_proj_layers': 3,
        'proj_hidden_dim': 512,
        'proj_out_dim': 512,
        'predictor_hidden_dim': 128,
    },
    'swav': {
        'num_proj_layers': 2,
        'proj_hidden_dim': 512,
        'proj_out_dim': 128,
        'prototypes': 512,
    },
}


def measure(given: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, float]:
    """Rates of each method, as 'METHOD: FIGURE'."""
    found = {}
    for method, settings in METHODS.items():
        with contextlib.ExitStack() as stack:
            own = steps.own_step(given, method=method, optimizer='sgd', **settings)
            clocks = {'own': clock(own)}
            if environment.get('LIGHTLY_PYTHON'):
                command = lightly_command(environment, given.batch, 'float32', method)
                clocks['lightly'] = stack.enter_context(Peer('lightly', command))
            seconds = in_turns(clocks, given.rounds, given.steps)
        for name, value in seconds.items():
            found[f'{method}: {name}_images_per_second'] = given.batch / value
    return found


def rows(runs: Sequence[Mapping[str, float]]) -> str:
    """A Markdown table of several runs: median (lowest to highest), ratios run by run."""
    lines = [
        '| method | images/s | lightly, images/s | times lightly |',
        '| --- | --- | --- | --- |',
    ]
    for method in dict.fromkeys(name.split(': ')[0] for run in runs for name in run):
        own = [run[f'{method}: own_images_per_second'] for run in runs]
        key = f'{method}: lightly_images_per_second'
        other = [run[key] for run in runs if key in run]
        cells = [spread(own), 'not timed: give `LIGHTLY_PYTHON=a Python that has lightly`', '']
        if len(other) == len(own):
            cells[1:] = spread(other), spread([one / two for one, two in zip(own, other)])
        lines.append(f'| {method} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_case(parser)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=1, help='steps of each program per round')
    parser.set_defaults(precision='float32')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and the figures as JSON in the last line."""
    show(lambda: measure(parsed(arguments), os.environ), rows)


if __name__ == '__main__':
    main()
