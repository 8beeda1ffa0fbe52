"""Steps of other methods are timed beside lightly's, with a stand-in for lightly."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import pytest

from benchmarks.speed import methods, steps
from tests.benchmarks.test_peers import ANSWERING
from tf2.methods import METHODS


@pytest.fixture
def lightly(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / 'python'
    python.write_text(f'#!{sys.executable}{ANSWERING}')
    python.chmod(0o755)
    monkeypatch.setenv('LIGHTLY_PYTHON', str(python))


@pytest.mark.usefixtures('plain')
@pytest.mark.parametrize('method', methods.METHODS)
def test_a_step_of_each_method_runs(method: str) -> None:
    case = argparse.Namespace(depth=18, width=0.0625, size=8, batch=4, precision='float32')
    step = steps.own_step(case, method=method, optimizer='sgd', **methods.METHODS[method])
    step()
    step()


@pytest.mark.usefixtures('lightly')
def test_both_programs_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def own_step(case: argparse.Namespace, **settings: object) -> steps.Call:
        asked.append(settings['method'])
        return lambda: None

    monkeypatch.setattr(steps, 'own_step', own_step)
    methods.main(['--batch=6', '--rounds=3'])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert asked == list(methods.METHODS) and METHODS.keys() >= methods.METHODS.keys()
    assert figures['byol: lightly_images_per_second'] == 3  # 6 images in the median of 3, 1, 2
    assert '\n'.join(table) == methods.rows([figures])


def test_a_program_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(steps, 'own_step', lambda case, **settings: lambda: None)
    monkeypatch.setenv('LIGHTLY_PYTHON', '/no/python')
    with pytest.raises(SystemExit, match='2'):
        methods.main([])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_rows_are_medians_and_ratios_run_by_run() -> None:
    runs = [
        {'byol: own_images_per_second': own, 'byol: lightly_images_per_second': other}
        for own, other in ((60.0, 30.0), (80.0, 20.0), (70.0, 70.0))
    ]
    row = methods.rows(runs).splitlines()[2]
    assert row == '| byol | 70.0 (60.0 to 80.0) | 30.0 (20.0 to 70.0) | 2.00 (1.00 to 4.00) |'
    alone = methods.rows([{'byol: own_images_per_second': 60.0}]).splitlines()[2]
    assert 'not timed' in alone and 'LIGHTLY_PYTHON=' in alone and alone.count('|') == 5
