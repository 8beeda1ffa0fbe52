"""The input benchmark runs, and its table holds the right medians. Rates are not judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.speed import inputs


def test_it_runs_and_prints_one_object(capsys, monkeypatch):
    monkeypatch.setattr(inputs, 'LARGE', (36, 48))
    status = inputs.main(
        ['--images=3', '--batch_size=4', '--view=40', '--seconds=0.01', '--turns=1']
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0
    assert len(found) == 18
    for name in ('ours_40', 'plain_40_blur', 'ours_28', 'decode_1_thread'):
        assert found[f'{name}_images_per_second'] > 0
        assert found[f'{name}_images_per_processor_second'] > 0
    assert inputs.rows([found]).count('\n') == 10 + 1 + 6


def test_images_are_as_large_as_photographs():
    (encoded,) = inputs.large_images(1).numpy()
    assert 80_000 < len(encoded) < 110_000
    assert tf.io.decode_jpeg(encoded).shape == [375, 500, 3]


@pytest.mark.parametrize('blur', [False, True])
def test_plain_views_are_random_and_in_range(blur):
    encoded = tf.stack([tf.io.encode_jpeg(inputs.picture(1, 36, 48))])
    one, other = next(iter(inputs.plain(encoded, 3, 40, 8, blur=blur))).__iter__()
    assert one.shape == other.shape == [8, 40, 40, 3]
    assert 0 <= np.min(one) < np.max(one) <= 1
    assert not np.array_equal(one, other)


def test_rows_hold_medians_ranges_and_ratios_of_the_same_run():
    runs = [
        {
            f'{name}_images_per{unit}_second': rate * share
            for name, rate in (
                ('decode_peak', 1000.0),
                ('ours_224', 600.0),
                ('plain_224', 300.0),
                ('ours_28', 5000.0),
                ('plain_28', 500.0),
                ('ours_224_cropped', 800.0),
                ('ours_224_blur', 400.0),
                ('plain_224_blur', 200.0),
            )
            for unit in ('', '_processor')
        }
        for share in (1.0, 0.5, 2.0)
    ]
    runs[0]['ours_224_images_per_second'] = 450.0
    lines = [line for line in inputs.rows(runs).splitlines() if line]
    table = {line.split('|')[1].strip(): line for line in lines}
    cells = [cell.strip() for cell in table['ours 224'].split('|')[2:-1]]
    assert cells[0] == '450 (300 to 1,200)'
    assert cells[1] == '2.00 (1.50 to 2.00)'
    assert cells[2] == '0.60 (0.45 to 0.60)'
    assert cells[3] == '600 (300 to 1,200)'
    assert [cell.strip() for cell in table['ours 28'].split('|')[2:-1]][2] == ''
    for alone in ('plain 224', 'ours 224 cropped'):
        assert table[alone].split('|')[3].strip() == ''
    profile = {name: line.split('|')[2].strip() for name, line in table.items()}
    assert profile['decoding'] == '1.00 (0.50 to 2.00)'
    assert profile['flip and color of both views'] == '0.42 (0.21 to 0.83)'
    assert profile['blur of half of the views'] == '0.83 (0.42 to 1.67)'
