"""A module appears complete or not at all, and old ones are removed."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import signal
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from hub_export import ExportError, ModuleRecord, check, export_module, publish
from hub_export.record import write_record
from tests.hub_export.conftest import (
    CLASSES,
    CONFIG,
    SIZE,
    decode,
    export,
    lively_model,
    random_images,
)
from tests.support import no_checker
from tests.toys import PlainNetwork
from tf2.models.encoder import SimCLRModel

HEX = '0' * 32


@pytest.fixture(scope='module', autouse=True)
def shallow(plain: None) -> None:
    """Networks are a few convolutions here."""


@pytest.fixture(scope='module')
def model() -> SimCLRModel:
    return lively_model()


@pytest.fixture(scope='module')
def published(model: SimCLRModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A module that tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, '_checker', no_checker)
        return export(model, str(tmp_path_factory.mktemp('modules')), 12)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the SavedModel by a folder with one file."""

    def save(model: SimCLRModel, path: str, record: ModuleRecord, *rest: object) -> None:
        write_record(path, record)
        pathlib.Path(path, 'content').write_text('new')

    monkeypatch.setattr(publish, '_save', save)
    monkeypatch.setattr(publish, 'plain_copy', lambda model, image_size: model)
    monkeypatch.setattr(publish, '_checker', no_checker)


def older(root: pathlib.Path, *names: str) -> None:
    for name in names:
        write_record(str(root / name), ModuleRecord(CONFIG, SIZE, CLASSES, 1))
        (root / name / 'content').write_text('old')


def names(root: pathlib.Path) -> set[str]:
    return {path.name for path in root.iterdir()}


@pytest.mark.parametrize(
    ('keep', 'step', 'left'),
    [
        (0, 30, {'9', '20', '100', '30'}),
        (1, 30, {'30'}),
        (2, 30, {'100', '30'}),
        (3, 200, {'20', '100', '200'}),
        (9, 20, {'9', '20', '100'}),
    ],
)
def test_the_newest_modules_and_this_one_are_kept(
    tmp_path: pathlib.Path, fast: None, model: SimCLRModel, keep: int, step: int, left: set[str]
) -> None:
    older(tmp_path, '9', '20', '100', 'notes')
    export(model, str(tmp_path), step, keep)
    assert names(tmp_path) == {*left, 'notes'}


def test_a_module_of_the_same_step_is_replaced(
    tmp_path: pathlib.Path, fast: None, model: SimCLRModel
) -> None:
    older(tmp_path, '5')
    assert export(model, f'{tmp_path}/', 5) == f'{tmp_path}/5'
    assert names(tmp_path) == {'5'}
    assert (tmp_path / '5' / 'content').read_text() == 'new'


def test_leftovers_of_a_crash_are_removed(
    tmp_path: pathlib.Path, fast: None, model: SimCLRModel
) -> None:
    older(tmp_path, f'.3.{HEX}.partial', f'.4.{HEX}.replaced', f'.6.{HEX}.replaced', '6', '.git')
    export(model, str(tmp_path), 7)
    assert names(tmp_path) == {'4', '6', '7', '.git'}


def test_foreign_files_stay_and_are_named(
    tmp_path: pathlib.Path, fast: None, model: SimCLRModel, capsys: pytest.CaptureFixture
) -> None:
    """A link to a module, a folder of the user, a file, and a folder with a name like leftovers."""
    root, elsewhere = tmp_path / 'saved_model', tmp_path / 'elsewhere'
    older(root, '4', '5')
    older(elsewhere, 'module')
    (root / '1').symlink_to(elsewhere / 'module')
    (root / '0').mkdir()
    (root / '0' / 'mine').write_text('')
    (root / '2').write_text('')
    (root / f'.3.{HEX}.partial').symlink_to(elsewhere / 'module')
    (root / f'.9.{HEX}.partial').mkdir()
    (root / '5' / 'inside').symlink_to(elsewhere)
    export(model, str(root), 7, keep=1)
    assert names(root) == {'0', '1', '2', '7', f'.3.{HEX}.partial', f'.9.{HEX}.partial'}
    assert names(root / '0') == {'mine'}
    assert (elsewhere / 'module' / 'content').read_text() == 'old'
    shown = capsys.readouterr().out
    assert f'{root / "1"} stays, though 1 modules are to be kept: it is a link' in shown
    assert f'{root / "0"} stays' in shown and f'{root / "2"} stays' in shown


def test_nothing_is_pruned_if_the_folder_of_modules_is_a_link(
    tmp_path: pathlib.Path, fast: None, model: SimCLRModel
) -> None:
    older(tmp_path / 'shared', '4')
    (tmp_path / 'saved_model').symlink_to('shared')
    export(model, str(tmp_path / 'saved_model'), 7, keep=1)
    assert names(tmp_path / 'shared') == {'4', '7'}


@pytest.mark.parametrize('kind', ['link', 'link to nothing', 'folder', 'file'])
def test_foreign_files_in_the_place_of_a_module_are_refused(
    kind: str, tmp_path: pathlib.Path, fast: None, model: SimCLRModel
) -> None:
    older(tmp_path / 'elsewhere', 'module')
    root = tmp_path / 'saved_model'
    root.mkdir()
    if kind.startswith('link'):
        (root / '7').symlink_to(tmp_path / 'elsewhere' / ('module' if kind == 'link' else 'none'))
    elif kind == 'folder':
        (root / '7').mkdir()
    else:
        (root / '7').write_text('mine')
    with pytest.raises(UserError, match=r'7 should be free .* Move it') as refused:
        export(model, str(root), 7)
    assert '\n' not in str(refused.value)
    assert names(root) == {'7'} and names(tmp_path / 'elsewhere' / 'module') >= {'content'}


def test_a_module_below_any_folder_is_checked_and_published(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, model: SimCLRModel
) -> None:
    """TensorFlow's loader interprets brackets and backslashes as patterns."""
    monkeypatch.setattr(publish, '_checker', lambda: contextlib.nullcontext(check.check))
    path = export(model, str(tmp_path / 'odd [1]\\x'), 3)
    assert names(tmp_path / 'odd [1]\\x') == {'3'} and path.endswith('/3')


@pytest.mark.parametrize('stage', ['_save', '_checker', '_publish'])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: pathlib.Path,
    fast: None,
    model: SimCLRModel,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    older(tmp_path, '4', '5')

    def fail(*args: object) -> None:
        raise ExportError('broken')

    monkeypatch.setattr(publish, stage, fail)
    with pytest.raises(ExportError, match='broken'):
        export(model, str(tmp_path), 5, keep=1)
    assert names(tmp_path) == {'4', '5'}
    assert (tmp_path / '5' / 'content').read_text() == 'old'


def test_a_failed_export_leaves_no_process(
    tmp_path: pathlib.Path, model: SimCLRModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    def fail(*args: object) -> None:
        assert [process.poll() for process in started] == [None]
        raise OSError('disk full')

    monkeypatch.setattr(publish.subprocess, 'Popen', Recorded)
    monkeypatch.setattr(publish, '_save', fail)
    with pytest.raises(OSError, match='disk full'):
        export(model, str(tmp_path), 1)
    assert started[0].returncode == -signal.SIGKILL


def test_nothing_is_published_if_the_check_crashes(
    tmp_path: pathlib.Path, model: SimCLRModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish.sys, 'executable', '/bin/false')
    with pytest.raises(ExportError, match='the checking process ended with 1'):
        export(model, str(tmp_path), 1)
    assert names(tmp_path) == set()


def test_the_network_is_traced_once_per_mode(
    tmp_path: pathlib.Path,
    unchecked: Callable[..., str],
    model: SimCLRModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes = []
    trace = PlainNetwork.call

    def counted(self: PlainNetwork, images: tf.Tensor, training: bool = False) -> dict:
        modes.append(training)
        return trace(self, images, training)

    monkeypatch.setattr(PlainNetwork, 'call', counted)
    export(model, str(tmp_path), 1)
    assert modes == [False, False, True]  # the first one builds the copy


def test_a_failed_rename_restores_the_replaced_module(
    tmp_path: pathlib.Path, fast: None, model: SimCLRModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(tmp_path, '5')
    rename = tf.io.gfile.rename

    def fails_for_the_new_one(source: str, target: str) -> None:
        if source.endswith('.partial'):
            raise OSError('disk full')
        rename(source, target)

    monkeypatch.setattr(tf.io.gfile, 'rename', fails_for_the_new_one)
    with pytest.raises(OSError, match='disk full'):
        export(model, str(tmp_path), 5)
    assert names(tmp_path) == {'5'}
    assert (tmp_path / '5' / 'content').read_text() == 'old'


def test_a_module_with_wrong_outputs_is_not_published(tmp_path: pathlib.Path) -> None:
    model = lively_model()
    model.classifier.bias.assign(np.full(model.classifier.bias.shape, np.nan))
    with pytest.raises(ExportError, match='logits_sup: expected finite numbers'):
        export(model, str(tmp_path), 1)
    assert names(tmp_path) == set()


@pytest.fixture(scope='module')
def load_once() -> Callable[[str], tf.Module]:
    """Loads each module once; the check doesn't change it."""
    return functools.cache(tf.saved_model.load)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda e: {**e, 'logits_sup': e['logits_sup'] * 1.01}, 'logits_sup: expected values'),
        (
            lambda e: {**e, 'logits_sup': e['logits_sup'][:, :4]},
            r'expected \(2, 4\)',
        ),
        (lambda e: {**e, 'more': e['logits_sup']}, 'expected endpoints .*more'),
    ],
)
def test_the_check_names_what_differs(
    tmp_path: pathlib.Path,
    published: str,
    model: SimCLRModel,
    load_once: Callable[[str], tf.Module],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[..., dict],
    message: str,
) -> None:
    monkeypatch.setattr(tf.saved_model, 'load', load_once)
    reference = str(tmp_path / 'reference.npz')
    pixels = np.random.RandomState(1).randint(256, size=[2, SIZE, SIZE, 3]).astype(np.uint8)
    images, _ = check.inputs(pixels)
    right = model(images, training=False)
    check.save_reference(reference, pixels, serving_default=right, encoded_images=right)
    check.check(published, reference)
    for wrong in (
        {'serving_default': change(right), 'encoded_images': right},
        {'serving_default': right, 'encoded_images': change(right)},
    ):
        check.save_reference(reference, pixels, **wrong)
        with pytest.raises(ValueError, match=message):
            check.check(published, reference)


def test_without_weight_decay_there_is_no_regularization(
    tmp_path: pathlib.Path, unchecked: Callable[..., str], model: SimCLRModel
) -> None:
    path = export_module(
        model, str(tmp_path), 1, image_size=SIZE, decode=decode, weight_decay=0.0, keep=0
    )
    module = tf.saved_model.load(path)
    assert list(module.regularization_losses) == []
    assert module(random_images())['logits_sup'].shape == [3, 5]
