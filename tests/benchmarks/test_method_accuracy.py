"""Methods are compared by runs that are made once, with as many views each."""

from __future__ import annotations

import json
import pathlib

import pytest

from app.config.resolution import resolve
from app.presets import PRESETS
from benchmarks import method_accuracy
from benchmarks.method_accuracy import KNN, MEMORY, RATE, TOP_1
from tf2.methods import METHODS

# Stands for run.py: writes its flags and a result that depends on its rate.
PROGRAM = """
import json, os, sys
given = dict(argument[2:].split('=', 1) for argument in sys.argv[1:])
folder = given['model_dir']
os.makedirs(folder)
json.dump(given, open(f'{folder}/given.json', 'w'))
result = {'eval/knn_accuracy': float(given.get('learning_rate', 0)) / 10,
          'eval/label_top_1_accuracy': 0.5}
json.dump(result, open(f'{folder}/result.json', 'w'))
"""


@pytest.fixture
def program(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root' / 'run.py').write_text(PROGRAM)
    monkeypatch.setattr(method_accuracy, 'ROOT', tmp_path / 'root')
    return tmp_path / 'root' / 'run.py'


def given_to(folder: pathlib.Path) -> dict[str, str]:
    return json.loads((folder / 'given.json').read_text())


@pytest.mark.parametrize('method', [method_accuracy.UNTRAINED, *METHODS])
def test_every_method_sees_as_many_views(method: str) -> None:
    flags = method_accuracy.pretraining(method, 240_000, factor=0.5)
    config = resolve(flags, PRESETS)  # they fit together
    if method == method_accuracy.UNTRAINED:
        return
    assert config.learning.method == method and config.data.dataset == 'fashion_mnist'
    images = config.train.train_steps * config.train.train_batch_size
    views = images * len(METHODS[method].views)
    assert abs(views - 240_000) <= config.train.train_batch_size
    preset = PRESETS[flags['preset']].flags
    assert config.optimizer.learning_rate == preset['learning_rate'] / 2
    network = ('resnet_depth', 'width_multiplier', 'image_size', 'crop_min_area')
    assert {preset[name] for name in network} == {
        PRESETS['fashion_mnist'].flags[name] for name in network
    }


@pytest.mark.usefixtures('program')
def test_the_best_rate_on_held_out_images_is_measured_on_the_others(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    runs = tmp_path / 'runs'
    arguments = ['DATA', str(runs), '--methods', 'untrained', 'byol', 'simsiam']
    method_accuracy.main([*arguments, '--tune'])
    assert len(list(runs.glob('tuning/*'))) == 6  # nothing is untrained
    tuned = given_to(runs / 'tuning' / 'byol_2')
    assert tuned['train_split'] == 'train[:54000]' and tuned['eval_split'] == 'train[54000:]'
    assert capsys.readouterr().out.splitlines()[-2].startswith('| byol | ')
    method_accuracy.main(arguments)
    *_, untrained, byol, simsiam = capsys.readouterr().out.splitlines()
    assert untrained.startswith('| untrained | 1 | ') and simsiam.startswith('| simsiam | 1 | ')
    assert byol.startswith('| byol | 3 | 8.00 (8.00 to 8.00) | 50.0 (50.0 to 50.0) | ')
    pretrained = given_to(runs / 'byol' / '2' / 'pretrained')
    assert pretrained['learning_rate'] == '0.8' and pretrained['seed'] == '2'
    assert 'train_split' not in pretrained
    linear = given_to(runs / 'byol' / '2' / 'linear')
    assert linear['checkpoint'] == str(runs / 'byol' / '2' / 'pretrained')


def test_a_run_is_made_once_and_measured(tmp_path: pathlib.Path, program: pathlib.Path) -> None:
    found = method_accuracy.run(tmp_path / 'run', 'DATA', {'learning_rate': 2})
    assert found[KNN] == 0.2 and found[TOP_1] == 0.5 and found[MEMORY] > 1
    assert RATE not in found  # it wrote no events
    program.write_text('raise SystemExit(3)')
    assert method_accuracy.run(tmp_path / 'run', 'DATA', {}) == found
    with pytest.raises(SystemExit, match='ended with status 3'):
        method_accuracy.run(tmp_path / 'other', 'DATA', {})
    assert not (tmp_path / 'other').exists()
