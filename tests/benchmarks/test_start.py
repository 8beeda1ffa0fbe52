"""The start-up benchmark: what it runs, and its output."""

from __future__ import annotations

import json
import pathlib

import pytest

from benchmarks.speed import start


@pytest.mark.parametrize(
    'parts',
    [
        ['help', 'usage_flag', 'usage_checkpoint', 'usage_dataset'],
        pytest.param(list(start.PARTS), marks=pytest.mark.slow),
    ],
)
def test_every_part_is_timed(capsys: pytest.CaptureFixture[str], parts: list[str]) -> None:
    start.main(['--width=0.125', '--size=8', '--batch=16', '--parts', *parts])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    names = {f'{part}_{kind}' for part in parts for kind in ('seconds', 'cpu_seconds')}
    assert found.keys() == names
    assert all(value > 0 for value in found.values())
    assert len(lines) == 2 + len(parts) + 1


def test_an_unexpected_exit_status_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r'ended with 1 instead of 0: .*no_such_module'):
        start.timed(['/usr/bin/env', 'python3', '-c', 'import no_such_module'], 0)


def test_processor_time_of_children_counts() -> None:
    busy = 'import time; begun = time.process_time()\nwhile time.process_time() < begun + 0.3: pass'
    parent = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {busy!r}])'
    _, used = start.timed(['/usr/bin/env', 'python3', '-c', parent], 0)
    assert used >= 0.3


def test_rows_are_medians_and_ratios_run_by_run() -> None:
    runs = [
        {
            'run_seconds': seconds,
            'run_cpu_seconds': 7.0,
            'plain_keras_seconds': plain,
            'plain_keras_cpu_seconds': 5.0,
        }
        for seconds, plain in ((20.0, 10.0), (12.0, 3.0), (30.0, 10.0))
    ]
    assert start.rows(runs).splitlines()[2:] == [
        '| plain Keras script, one step | 10.0 (3.00 to 10.0) | 5.00 (5.00 to 5.00) '
        '| 1.00 (1.00 to 1.00) |',
        '| run.py, one step, checkpoint and export | 20.0 (12.0 to 30.0) | 7.00 (7.00 to 7.00) '
        '| 3.00 (2.00 to 4.00) |',
    ]


def test_the_plain_script_writes_its_weights(tmp_path: pathlib.Path) -> None:
    arguments = ['--width=0.125', '--size=8', '--batch=4', f'--plain={tmp_path}']
    start.plain_script(start.parsed(arguments))
    assert (tmp_path / 'weights.index').exists()
