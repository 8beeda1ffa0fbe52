"""The benchmark of --mode=embed and --mode=predict: both sides compute the same."""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import shutil

import numpy as np
import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import inference
from common.interruption import Stop
from tests.support import GOLDEN

TINY = ['--single', '--size=8', '--batch=4', '--images=22', '--rounds=1']


def older_run(case: argparse.Namespace, data: str, folder: str) -> None:
    del case, data
    shutil.copytree(GOLDEN / 'older_run', folder)


@pytest.mark.parametrize('large', [False, True])
def test_the_keras_loop_computes_the_same(tmp_path: pathlib.Path, large: bool) -> None:
    case = inference.parsed(TINY)
    inference.write_images(f'{tmp_path}/images', case.images, large=large)
    older_run(case, '', f'{tmp_path}/run')
    files = []
    with Stop().handling() as stop:
        for mode in inference.KINDS:
            app = inference.opened(case, mode, str(tmp_path))
            names = app.names(np.arange(case.images))[1]
            files = [f'{tmp_path}/images/{name}' for name in names]
            inference.own(app, mode, str(tmp_path), stop)()
            inference.plain(app, mode, files, f'{tmp_path}/{mode}.npz')()
    own, plain = np.load(tmp_path / 'embed/embeddings.npz'), np.load(tmp_path / 'embed.npz')
    assert (
        [f'{tmp_path}/images/{name}' for name in own['files']] == plain['files'].tolist() == files
    )
    np.testing.assert_allclose(own['embeddings'], plain['embeddings'], rtol=1e-4, atol=1e-4)
    _, *rows = csv.reader((tmp_path / 'predict/predictions.csv').read_text().splitlines())
    others = list(csv.reader((tmp_path / 'predict.npz').read_text().splitlines()))
    found, expected = (
        np.array([row[-2 * inference.predict.TOP + 1 :: 2] for row in kind], np.float64)
        for kind in (rows, others)
    )
    assert found.shape == (22, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_all_are_timed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, 'train_a_step', older_run)
    inference.main(TINY)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(figures) == 8 and all(value > 0 for value in figures.values())
    run = {f'a network: {name}': value for name, value in figures.items()}
    lines = inference.rows([run, run]).splitlines()
    assert [line.split(' | ')[1] for line in lines[2:]] == ['embed', 'predict']
    rate = 'embed_images_per_processor_second'
    ratio = figures[f'own_{rate}'] / figures[f'plain_{rate}']
    embed, _ = speed.goals({'inference': [run, run]})
    assert embed.values == pytest.approx([ratio, ratio])
    assert embed.met == (ratio >= 1)
