"""The document of `make bench`, from made-up figures; one tiny step."""

from __future__ import annotations

import json

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import start, steps
from benchmarks.speed.spread import spread

CASE = speed.CASE


def steps_run(own: float, plain: float, share: float, half: float) -> dict[str, float]:
    found = {}
    for precision, rate in (('float32', own), ('bfloat16', half)):
        for name, value in (
            ('own_images_per_second', rate),
            ('plain_images_per_second', plain),
            ('own_share_of_peak', share),
            ('plain_share_of_peak', share),
            ('peak_gflops', 400.0),
            ('own_megabytes', 1700.0),
        ):
            found[f'{CASE}, {precision}: {name}'] = value
    return found


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert spread([1.0, 30.0, 2.0]) == '2.00 (1.00 to 30.0)'
    assert spread([1234.4, 99.94], '%') == '667% (99.9 to 1,234)'


def test_goals_compare_with_what_the_published_program_would_reach() -> None:
    runs = [steps_run(10.0, 8.0, 0.74, 20.0), steps_run(20.0, 16.0, 0.74, 40.0)]
    found = {goal.what.rsplit(', times', 1)[0]: goal for goal in speed.goals({'steps': runs})}
    by_what = {goal.what: goal for goal in speed.goals({'steps': runs})}
    assert len(found) == 3
    peak = by_what['step in float32, times the published program in float32, by the peak']
    assert peak.values == pytest.approx([1.0, 1.0]) and not peak.met
    half = by_what['step in bfloat16, times the published program in float32, by the peak']
    assert half.values == pytest.approx([2.0, 2.0]) and half.met
    plain = by_what['step in float32, times the published program in float32, by plain Keras']
    assert plain.values == pytest.approx([1.25 * 52.9 / 47.7] * 2) and plain.met
    assert by_what['memory of the step in float32, MB'].met


def test_every_goal_has_its_row() -> None:
    started = {
        'run_seconds': 22.5,
        'help_seconds': 0.1,
        'usage_flag_seconds': 3.5,
        'usage_checkpoint_seconds': 1.0,
        'usage_dataset_seconds': 1.0,
    }
    loss = {'ours_8192_megabytes': 370.0, 'ours_8192_seconds': 1.0, 'plain_8192_seconds': 2.0}
    inputs = {
        f'{name}_images_per_second': rate
        for name, rate in (
            ('decode_1_thread', 1000.0),
            ('decode_peak', 2000.0),
            ('plain_224', 658.0),
            ('ours_224', 800.0),
            ('ours_224_cropped', 1000.0),
            ('ours_224_blur', 500.0),
        )
    }
    found = {
        'steps': [steps_run(1, 1, 0.74, 1)],
        'inputs': [inputs],
        'start': [started],
        'loss': [loss],
    }
    lines = speed.table_of(speed.goals(found)).splitlines()
    assert len(lines) == 2 + 5 + 6 + 5 + 2
    reached = {line.split(' | ')[0].strip('| '): line.split(' | ')[-1] for line in lines}
    assert reached['a wrong flag, seconds'] == '**no** |'
    assert reached['--help, seconds'] == 'yes |'
    memory = 'memory of the loss of 8,192, times the published program'
    assert reached[memory] == 'yes |'
    without_blur = 'JPEGs to 224 px without blur, times the published pipeline without blur, by '
    values = {
        goal.what.removeprefix(without_blur): goal.values
        for goal in speed.goals(found)
        if goal.what.startswith(without_blur)
    }
    assert values['decoding'] == pytest.approx([800 / 2000 * 2 * 931 / 574])
    assert values['a plain pipeline'] == pytest.approx([800 / 574])
    ratio = 1000 / 931
    line = next(line for line in lines if 'a run of one step' in line)
    assert f'| {ratio:.2f} ({ratio:.2f} to {ratio:.2f}) | **no** |' in line


def test_a_plain_loss_that_was_left_out_is_no_goal() -> None:
    (goal,) = speed.goals({'loss': [{'ours_8192_megabytes': 1850.0, 'ours_8192_seconds': 1.0}]})
    assert goal.met and goal.values == [0.5]


def test_the_document_has_goals_their_limits_and_a_table_of_each_part() -> None:
    figures = {f'{part}_{kind}': 1.0 for part in start.PARTS for kind in ('seconds', 'cpu_seconds')}
    text = speed.document({'steps': [steps_run(1, 1, 0.74, 1)], 'start': [figures]}, 90.0)
    headings = [line for line in text.splitlines() if line.startswith('## ')]
    assert headings[0] == '## Goals'
    assert headings[-2:] == ['## Training step', '## Start']
    assert '1 runs in 2 minutes' in text and speed.LIMITS.read_text() in text
    assert '| --help, seconds | at most 3 | 1.00 (1.00 to 1.00) | yes |' in text


def test_the_table_of_steps_has_a_row_for_each_case() -> None:
    table = steps.rows([steps_run(10.0, 8.0, 0.5, 20.0), steps_run(12.0, 8.0, 0.7, 20.0)])
    row = next(line for line in table.splitlines() if 'float32' in line)
    assert row.startswith(f'| {CASE}, float32 | 11.0 (10.0 to 12.0) | 60.0% (50.0 to 70.0) |')
    assert '| 1.38 (1.25 to 1.50) |' in row


def test_a_profile_shows_where_the_time_goes(shallow: None, capsys: pytest.CaptureFixture) -> None:
    steps.main(['--width=0.125', '--size=8', '--batch=2', '--profile'])
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = {line.split(' | ')[0].strip('| '): line.split(' | ')[2].strip('| %') for line in lines}
    # On some processors the operations are oneDNN's, and have names of their own.
    kinds = {kind.removeprefix('_MklNative') for kind in cells}
    assert {'Conv2DBackpropFilter', 'Conv2D'} <= kinds
    assert sum(map(float, cells.values())) == pytest.approx(100, abs=2)


def test_a_step_is_measured(
    shallow: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, 'MATRIX', 8)
    tiny = ['--width=0.125', '--size=8', '--batch=2', '--rounds=1', '--single']
    steps.main([*tiny, '--precision=bfloat16'])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['own_images_per_second'] > 0 and found['plain_images_per_second'] > 0
    assert found['own_megabytes'] > 100
