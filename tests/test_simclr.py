"""The functions of simclr.py: the same as run.py, and nothing is left behind in the process."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

import run
import simclr
from app import train
from app.modes import MODES, Outcome
from common.interruption import SIGNALS

ROOT = pathlib.Path(__file__).parents[1]
TINY = {
    'resnet_depth': 18,
    'width_multiplier': 0.125,
    'image_size': 8,
    'train_batch_size': 8,
    'eval_batch_size': 8,
    'train_steps': 2,
}


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder, random = tmp_path_factory.mktemp('simclr') / 'images', np.random.RandomState(0)
    for split, count in {'train': 8, 'test': 4}.items():
        for name in ('cat', 'dog'):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 256, [9, 9, 3], np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f'{number}.png')
    return folder


@pytest.fixture(scope='module')
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """The working directory of the module's runs, whose exports take no time."""

    def export(model: object, root: str, step: int, **_: object) -> str:
        pathlib.Path(root, str(step)).mkdir(parents=True)
        return os.path.join(root, str(step))

    folder = tmp_path_factory.mktemp('place')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train.hub_export, 'export_module', export)
        patch.setattr(train, '_write_sample_views', lambda *_: None)
        yield folder


@pytest.fixture(scope='module')
def pretrained(shallow: None, place: pathlib.Path, images: pathlib.Path) -> Outcome:
    return simclr.pretrain(data_dir=images, evaluators=['classification', 'rank'], **TINY)


@pytest.fixture(scope='module')
def tuned(pretrained: Outcome, images: pathlib.Path) -> Outcome:
    """Fine-tuned in another thread."""
    settings = {'train_batch_size': 8, 'eval_batch_size': 8, 'train_steps': 1}
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return threads.submit(
            simclr.finetune,
            checkpoint=pretrained.folder,
            data_dir=images,
            model_dir=pathlib.Path('tuned'),
            **settings,
        ).result()


@pytest.fixture(scope='module')
def embedded(pretrained: Outcome, images: pathlib.Path) -> Outcome:
    return simclr.embed(checkpoint=pretrained.folder, data_dir=images, model_dir='vectors')


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> list[dict[str, Any]]:
    """The flags of calls, which do nothing but return an outcome."""
    calls: list[dict[str, Any]] = []

    def perform(given: dict[str, Any], stop: object) -> Outcome:
        calls.append(given)
        return Outcome('folder', {'eval/knn_accuracy': 0.5}, 'path')

    monkeypatch.setattr(run, 'perform', perform)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_pretraining_without_a_folder_gets_a_new_one(pretrained: Outcome) -> None:
    assert re.fullmatch(r'runs/[\d-]+', pretrained.folder)
    recorded = json.loads(pathlib.Path(pretrained.folder, 'result.json').read_text())
    assert pretrained.results == recorded and recorded['global_step'] == 2
    assert {'eval/label_top_1_accuracy', 'eval/effective_rank'} <= recorded.keys()
    assert pretrained.path == f'{pretrained.folder}/saved_model/2'


def test_a_call_and_the_command_line_are_the_same_run(asked: list[dict[str, Any]]) -> None:
    flags = {**TINY, 'use_blur': True, 'temperature': 0.1, 'model_dir': 'm'}
    simclr.pretrain(**flags, evaluators=['knn', 'rank'])
    arguments = [f'--{name}={value}' for name, value in flags.items()]
    arguments += ['--mode=train_then_eval', '--train_mode=pretrain', '--evaluators=knn,rank']
    assert run.main(['run.py', *arguments]) == 0
    assert asked[0] == asked[1]


def test_a_fine_tuning_in_another_thread_is_evaluated(tuned: Outcome) -> None:
    assert (tuned.folder, tuned.path) == ('tuned', 'tuned/saved_model/1')
    again = simclr.evaluate(
        model_dir=tuned.folder, eval_name='again', evaluators=['classification', 'per_class']
    )
    assert (again.folder, again.path) == ('tuned/again', tuned.path)
    name = 'eval/label_top_1_accuracy'
    assert again.results[name] == tuned.results[name]


def test_embeddings_are_searched(embedded: Outcome, images: pathlib.Path) -> None:
    width = embedded.results['width']
    assert embedded.results == {'images': 24, 'width': width, 'layer': 'final_avg_pool'}
    assert np.load(embedded.path)['embeddings'].shape == (24, width)
    query = images / 'test' / 'dog' / '2.png'
    found = simclr.search(query=query, embeddings=embedded.path, top_k=3)
    first, *others = found.results['matches']
    assert (first['file'], first['class_name']) == ('test/dog/2.png', 'dog') and len(others) == 2
    assert found.path == 'vectors/search.html' and pathlib.Path(found.path).is_file()


def test_predictions_exports_and_checks_say_where_they_are(
    tuned: Outcome, images: pathlib.Path
) -> None:
    predicted = simclr.predict(checkpoint=tuned.folder, data_dir=images, model_dir='classes')
    assert predicted.results['images'] == 24 and 0 <= predicted.results['top_1_accuracy'] <= 1
    assert predicted.path == 'classes/predictions.csv' and pathlib.Path(predicted.path).is_file()
    exported = simclr.export(checkpoint=tuned.folder, model_dir='module')
    assert exported == Outcome('module', {'global_step': 1}, 'module/saved_model/1')
    checked = simclr.check(data_dir=images, model_dir='checked')
    assert checked.results == json.loads(pathlib.Path('checked/check.json').read_text())
    assert checked.results['images'] == 24 and checked.path == 'checked/check.html'


@pytest.mark.parametrize(
    'flags',
    [
        {'train_stops': 3},
        {'train_batch_size': 'many'},
        {'train_batch_size': 2.5},
        {'temperature': True},
        {'use_blur': 'perhaps'},
        {'data_dir': ''},
        {'preset': 'demmo'},
        {'data_dir': '/no/such/folder'},
        {'train_split': 'nothing'},
    ],
    ids=str,
)
def test_errors_are_those_of_the_command_line(
    flags: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(simclr.UserError) as caught:
        simclr.pretrain(**flags)
    assert caught.value.__context__ is None
    shown = capsys.readouterr()
    assert shown.out == shown.err == ''
    arguments = [f'--{name}={value}' for name, value in flags.items()]
    assert run.main(['run.py', '--mode=train_then_eval', '--train_mode=pretrain', *arguments]) == 2
    assert capsys.readouterr().err == f'run.py: error: {caught.value}\n'
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('function', 'flags', 'words'),
    [
        (simclr.pretrain, {'mode': 'eval'}, 'sets --mode=train_then_eval itself; found .eval'),
        (simclr.finetune, {'train_mode': 'distill'}, 'sets --train_mode=finetune itself'),
        (simclr.pretrain, {'use_blur': {}}, '--use_blur must be a string, .* list of them; found'),
        (simclr.pretrain, {'data_dir': ['a', 'b,c']}, '--data_dir must be names without commas'),
        (simclr.pretrain, {'noglobal_bn': True}, 'noglobal_bn'),
        (simclr.pretrain, {'flagfile': os.devnull}, "Unknown flag 'flagfile'"),
        (simclr.embed, {'checkpoint': 'c'}, '--mode=embed needs --checkpoint and --model_dir'),
    ],
    # Not their addresses, which differ from process to process.
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_what_only_python_can_ask_for_is_refused(
    function: Callable[..., Outcome], flags: dict[str, Any], words: str
) -> None:
    with pytest.raises(simclr.UserError, match=words):
        function(**flags)


def test_values_may_be_those_of_python(asked: list[dict[str, Any]], tmp_path: pathlib.Path) -> None:
    simclr.pretrain(
        data_dir=[tmp_path / 'a', 'b'],
        model_dir=tmp_path / 'run',
        evaluators=('knn', 'probe'),
        use_blur=False,
        train_batch_size=np.int64(64),
        temperature=0.1,
        width_multiplier=2,
        train_steps=None,
    )
    assert asked == [
        {
            'mode': 'train_then_eval',
            'train_mode': 'pretrain',
            'data_dir': f'{tmp_path}/a,b',
            'model_dir': f'{tmp_path}/run',
            'evaluators': 'knn,probe',
            'use_blur': False,
            'train_batch_size': 64,
            'temperature': 0.1,
            'width_multiplier': 2,
        }
    ]


def test_every_mode_has_a_function(asked: list[dict[str, Any]]) -> None:
    """Except for training without an evaluation."""
    names = set(simclr.__all__) - {'Outcome', 'UserError', 'flags'}
    for name in names:
        assert getattr(simclr, name)(model_dir='m').folder == 'folder'
    assert {given['mode'] for given in asked} == MODES.keys() - {'train'}


def test_an_interruption_tells_how_to_resume(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, 'prepare', interrupt)
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught:
        simclr.pretrain(preset='demo', model_dir='here', train_epochs=2)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    call = "simclr.pretrain(preset='demo', train_epochs=2, model_dir='here')"
    assert str(caught.value) == f'Stopped by SIGINT. To resume: {call}'
    assert caught.value.__context__ is None


def test_another_signal_reaches_the_handler_of_before(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def terminate(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    came: list[int] = []
    monkeypatch.setattr(train, 'prepare', terminate)
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with pytest.raises(KeyboardInterrupt, match='Stopped by SIGTERM'):
            simclr.pretrain(model_dir=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
    assert 'Stopped by SIGTERM. To resume: simclr.pretrain(model_dir=' in capsys.readouterr().err


def test_two_calls_at_a_time_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call_again(*_: object) -> None:
        simclr.check()

    monkeypatch.setattr(run, 'perform', call_again)
    for _ in range(2):
        with pytest.raises(simclr.UserError, match='one thing at a time; found a call of simclr'):
            simclr.pretrain(model_dir=tmp_path)


def test_the_import_is_quick_and_the_help_names_the_flags(capsys: pytest.CaptureFixture) -> None:
    code = 'import sys, simclr; sys.exit("tensorflow" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
    assert 'simclr.flags()' in simclr.pretrain.__doc__
    simclr.flags()
    assert '\n  --train_epochs\n' in capsys.readouterr().out


def test_the_example_in_the_readme_is_accepted(asked: list[dict[str, Any]]) -> None:
    text = (ROOT / 'README.md').read_text()
    (example,) = re.findall(r'^## From Python\n.*?```python\n(.*?)```', text, re.M | re.S)
    exec(example, {})
    assert [given['mode'] for given in asked][:2] == ['train_then_eval'] * 2
