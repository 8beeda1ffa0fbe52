"""--mode=predict: the classes with the largest logits, named as the checkpoint names them."""

from __future__ import annotations

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from app.inference import network, parts
from common.errors import UserError
from tests.app.inference.conftest import CHECKPOINT, CLASSES, Main
from tf2.models.encoder import build_model, without_classifier
from tf2.weights import open_weights

pytestmark = pytest.mark.usefixtures('plain')

FLAGS = {'eval_batch_size': 5, 'mixed_precision': 'float32'}


def checkpoint_with_names(folder: pathlib.Path, names: list[str]) -> pathlib.Path:
    """A copy of the checkpoint whose record names its classes."""
    shutil.copytree(CHECKPOINT, folder)
    flags = json.loads((folder / 'flags.json').read_text())
    (folder / 'flags.json').write_text(json.dumps({**flags, 'class_names': names}))
    return folder


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def embedded(tmp_path: pathlib.Path, main: Main, images: pathlib.Path) -> dict[str, np.ndarray]:
    """The logits of all images, which another test compares with those of a plain loop."""
    flags = {'data_dir': images, 'model_dir': tmp_path / 'logits', 'layer': 'logits_sup'}
    assert main('embed', checkpoint=CHECKPOINT, **flags, **FLAGS)[0] == 0
    with np.load(tmp_path / 'logits' / 'embeddings.npz') as stored:
        return {name: stored[name] for name in stored}


def test_predictions_are_the_largest_logits(
    tmp_path: pathlib.Path,
    main: Main,
    images: pathlib.Path,
    embedded: dict[str, np.ndarray],
) -> None:
    names = [f'class "{i}", so' for i in range(10)]
    checkpoint = checkpoint_with_names(tmp_path / 'run', names)
    flags = {'checkpoint': checkpoint, 'data_dir': images, 'model_dir': tmp_path / 'out', **FLAGS}
    status, shown, said = main('predict', **flags)
    assert status == 0, said
    assert 'Predictions for 33 images' in shown
    assert 'accuracy' not in shown  # the classes of the images are others
    rows = rows_of(tmp_path / 'out' / 'predictions.csv')
    assert [row['file'] for row in rows] == embedded['files'].tolist()
    assert [row['split'] for row in rows] == embedded['splits'].tolist()
    assert [row['true_class'] for row in rows] == [CLASSES[i] for i in embedded['labels']]
    logits = embedded['embeddings']
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1)
    for rank in range(5):
        assert [row[f'class_{rank + 1}'] for row in rows] == [names[i] for i in order[:, rank]]
        found = [float(row[f'probability_{rank + 1}']) for row in rows]
        wanted = np.take_along_axis(expected, order, axis=1)[:, rank]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert 'class_6' not in rows[0]


def test_the_accuracy_of_known_classes_is_told(tmp_path: pathlib.Path, main: Main) -> None:
    """The bundled images have the ten classes that the classifier was trained on."""
    flags = {'checkpoint': CHECKPOINT, 'model_dir': tmp_path / 'out', 'top_k': 10, **FLAGS}
    status, shown, said = main('predict', dataset='bundled', eval_split='test[:40]', **flags)
    assert status == 0, said
    rows = rows_of(tmp_path / 'out' / 'predictions.csv')
    total = [sum(float(row[f'probability_{k}']) for k in range(1, 11)) for row in rows]
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    number = {name: str(i) for i, name in enumerate(bundled_classes())}
    right = sum(number[row['true_class']] == row['class_1'] for row in rows)
    assert f'Top-1 accuracy on 40 images with a label: {right / 40:.4f}.' in shown
    assert right > 0


def bundled_classes() -> tuple[str, ...]:
    from data.config import DataConfig
    from data.sources import open_source

    return open_source(DataConfig(dataset='bundled')).class_names


def test_classes_in_another_order_are_the_same(tmp_path: pathlib.Path, main: Main) -> None:
    """The classifier keeps its numbers; labels follow it."""
    names = list(bundled_classes())
    shown = {}
    for which, order in (('same', names), ('other', names[::-1])):
        checkpoint = checkpoint_with_names(tmp_path / which, order)
        flags = {'checkpoint': checkpoint, 'model_dir': tmp_path / f'{which} out', **FLAGS}
        assert main('predict', dataset='bundled', eval_split='test[:40]', **flags)[0] == 0
        shown[which] = rows_of(tmp_path / f'{which} out' / 'predictions.csv')
    for same, other in zip(shown['same'], shown['other'], strict=True):
        assert same['true_class'] == other['true_class']
        assert names.index(same['class_1']) == 9 - names.index(other['class_1'])


def test_module_and_run_predict_the_same_and_resume_too(
    tmp_path: pathlib.Path, main: Main, images: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {}
    for which, checkpoint in (('run', CHECKPOINT), ('module', f'{CHECKPOINT}/module')):
        flags = {'checkpoint': checkpoint, 'data_dir': images, 'model_dir': tmp_path / which}
        monkeypatch.setattr(parts, 'SECONDS_BETWEEN_PARTS', 0.0 if which == 'module' else 1e9)
        if which == 'module':
            interrupt(main, flags, monkeypatch)
        assert main('predict', **flags, **FLAGS)[0] == 0
        written[which] = (tmp_path / which / 'predictions.csv').read_bytes()
    assert written['run'] == written['module']


def interrupt(main: Main, flags: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    add = parts.Parts.add

    def killed(self: parts.Parts, *arguments: object) -> None:
        add(self, *arguments)
        if self.examples == 10:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, 'add', killed)
        with pytest.raises(Killed):
            main('predict', **flags, **FLAGS)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'top_k': 11}, '--top_k must be at most 10, the number of classes of .*; found 11'),
        ({'output': 'p.npz'}, "ends in .csv; found 'p.npz'"),
        ({'layer': 'final_avg_pool'}, '--layer is for --mode=embed'),
        ({'model_dir': None}, '--mode=predict needs --checkpoint and --model_dir'),
    ],
    ids=str,
)
def test_what_cannot_be_predicted_costs_one_line(
    flags: dict[str, object],
    words: str,
    tmp_path: pathlib.Path,
    main: Main,
    images: pathlib.Path,
) -> None:
    import re

    given = {'data_dir': images, 'model_dir': tmp_path / 'out', 'checkpoint': CHECKPOINT, **flags}
    given = {name: value for name, value in given.items() if value is not None}
    status, _, said = main('predict', **given)
    assert status == 2 and said.count('\n') == 1
    assert re.search(words, said), said
    assert not (tmp_path / 'out').exists()


def test_weights_without_a_classifier_predict_nothing(
    tmp_path: pathlib.Path, main: Main, images: pathlib.Path
) -> None:
    weights = open_weights(CHECKPOINT)
    model = build_model(without_classifier(weights.build()))
    weights.load_into(model, head_layers=-1)
    prefix = tf.train.Checkpoint(model=model).write(str(tmp_path / 'weights' / 'ckpt-1'))
    shutil.copy(f'{CHECKPOINT}/flags.json', tmp_path / 'weights')
    status, _, said = main('predict', checkpoint=prefix, data_dir=images, model_dir=tmp_path / 'o')
    assert status == 2 and 'must have a classifier; found none in this' in said
    assert said.count('\n') == 1 and not (tmp_path / 'o').exists()
    # Its embeddings need none.
    flags = {'data_dir': images, 'model_dir': tmp_path / 'o', **FLAGS}
    assert main('embed', checkpoint=prefix, **flags)[0] == 0
    said = main('embed', checkpoint=prefix, layer='logits_sup', **flags)[2]
    assert "found 'logits_sup' (this checkpoint has no classifier)" in said


def test_a_classifier_of_unknown_input_needs_a_selector() -> None:
    loaded = network.Network(open_weights(CHECKPOINT), None, None, selector=None)
    with pytest.raises(UserError, match='Name it with --ft_proj_selector, 0 for the'):
        network.check_classifier(loaded)
