"""Processes that are killed, stopped or find a damaged file end with the undisturbed result.

The faults are those of `python -m benchmarks.faults`, once each.
"""

from __future__ import annotations

import pathlib
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import faults, runs
from benchmarks.faults import MARKS, Outcome, Trials


@pytest.fixture(scope='module')
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    with runs.Reader() as reader:
        yield Trials(tmp_path_factory.mktemp('faults'), reader, random.randrange(1000))


def test_a_killed_pretraining_with_a_memory_has_the_same_result(trials: Trials) -> None:
    assert not trials.kill('pretrain', 'any moment', most=1).problems


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_stopped_pretraining_prints_the_command_that_completes_it(
    number: signal.Signals, trials: Trials
) -> None:
    assert not trials.signal('pretrain', number).problems


def test_a_truncated_checkpoint_costs_only_the_steps_since_the_previous_one(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(_: Trials, file: pathlib.Path) -> str:
        file.write_bytes(b'half')
        return 'cut'

    monkeypatch.setattr(Trials, '_spoil', cut)
    assert not trials.damage('pretrain', 'data').problems


@pytest.mark.parametrize('fault', ['hide', 'side_by_side', 'one_folder', 'links'])
def test_foreign_files_in_and_beside_a_folder_are_left_alone(fault: str, trials: Trials) -> None:
    """A checkpoint out of reach, a run in 'g1' beside 'g[1]', a second run, links and folders."""
    assert not getattr(trials, fault)('pretrain').problems


# --- what the comparison can see


def test_states_differ_by_name_value_type_and_bit() -> None:
    state = {'w': np.ones([2], np.float32), 'result.json': {'a': 0.5, 'b': None}}
    assert runs.differences(state, {**state}) == []
    nudged = np.nextafter(state['w'], np.float32(2))
    assert runs.differences({**state, 'w': nudged}, state) == ['w']
    assert runs.differences({**state, 'w': nudged}, state, tolerance=1e-3) == []
    assert runs.differences({**state, 'w': state['w'].astype(float)}, state) == ['w']
    assert runs.differences({**state, 'result.json': {'a': 0.25, 'b': None}}, state) == [
        'result.json'
    ]
    assert runs.differences({'w': state['w'], 'x': 1}, state) == [
        'result.json missing',
        'x not expected',
    ]


@pytest.mark.parametrize(
    ('name', 'left'),
    [
        ('ckpt-4.index', False),
        ('ckpt-3.data-00000-of-00001', True),
        ('ckpt-8_temp', True),
        ('ckpt-8.data-00000-of-00001.damaged-1', False),
        ('run.lock', True),
        ('flags.json.0f.partial', True),
        ('saved_model/.8.0f.partial', True),
        ('saved_model/8', False),
    ],
)
def test_leftovers_are_detected(name: str, left: bool, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('')
    assert runs.leftovers(tmp_path) == ([name] if left else [])


def test_a_truncated_file_is_detected(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'result.json').write_text('{')
    assert [found.split(':')[0] for found in runs.damage_in(tmp_path)] == ['result.json']


def test_the_table_is_written_between_its_marks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(faults.DOCUMENT.read_text().count(mark) == 1 for mark in MARKS)
    document = tmp_path / 'reliability.md'
    document.write_text(f'before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n')
    monkeypatch.setattr(faults, 'DOCUMENT', document)
    outcomes = [
        Outcome('SIGKILL', 'pretrain', 3, [], times=2),
        Outcome('SIGKILL', 'pretrain', 5, ['x']),
    ]
    faults.write(faults.table(outcomes))
    text = document.read_text()
    assert '| SIGKILL | pretrain | 3 | 2 | 1 | 4 (5) | x |' in text
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
