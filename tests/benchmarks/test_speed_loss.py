"""The NT-Xent benchmark: both formulations agree, and its output."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.speed import loss


def test_both_formulations_have_the_same_loss_and_gradient() -> None:
    views = tf.unstack(tf.random.stateless_normal([2, 12, 5], [1, 2]))
    found, expected = (loss.with_gradient(name)(*views)[:3] for name in ('ours', 'plain'))
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', loss.FORMULATIONS)
def test_figures_are_the_last_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(loss, 'SECONDS', 0.0)
    loss.main([f'--only={name}', '--sizes', '4', '8', '--repeats=1'])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    whats = ('seconds', 'processor_seconds', 'megabytes')
    assert figures.keys() == {f'{name}_{size}_{what}' for size in (4, 8) for what in whats}
    assert all(figures[f'{name}_{size}_seconds'] > 0 for size in (4, 8))


def test_a_process_of_its_own_is_measured() -> None:
    assert loss.measure_apart('plain', 8, 1)['plain_8_megabytes'] > 0


def test_what_does_not_fit_is_left_out(capsys: pytest.CaptureFixture) -> None:
    assert loss.measure_apart('plain', 2**20, 1) == {}
    assert 'left out' in capsys.readouterr().err


def test_rows_are_medians_with_their_spread_and_ratios_run_by_run() -> None:
    runs = [
        {
            'ours_256_seconds': ours,
            'plain_256_seconds': plain,
            'ours_256_megabytes': 10.0,
            'plain_256_megabytes': 40.0,
            'ours_1024_megabytes': 70.4,
        }
        for ours, plain in ((1.0, 2.0), (3.0, 4.0), (2.0, 8.0))
    ]
    *_, small, large = loss.rows(runs).splitlines()
    assert small.split(' | ')[:4] == [
        '| 256',
        '4,000 (2,000 to 8,000)',
        '2,000 (1,000 to 3,000)',
        '0.50 (0.25 to 0.75)',
    ]
    assert small.endswith(
        '| – | – | – | 40.0 (40.0 to 40.0) | 10.0 (10.0 to 10.0) | 0.25 (0.25 to 0.25) |'
    )
    assert large == '| 1,024' + ' | –' * 7 + ' | 70.4 (70.4 to 70.4) | – |'
