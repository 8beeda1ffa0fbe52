"""What is clearly missing is refused at once; what exists is checked when it is opened."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import tensorflow as tf

import run
from app.config.resolution import resolve
from app.preflight import check_characters, check_paths, check_schemes, remote_paths
from app.presets import PRESETS
from common.errors import UserError

TUNING = {'train_mode': 'finetune', 'preset': 'fashion_mnist_finetune'}


def check(**given: object) -> None:
    check_paths(resolve(given, PRESETS))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--train_mode=finetune', '--checkpoint=none/here'], '--checkpoint=none/here should be'),
        (['--train_mode=distill', '--teacher=none/here'], '--teacher=none/here should be a'),
        (['--dataset=cifer10', '--data_dir=none'], 'Did you mean cifar10'),
        (['--data_dir=none/here'], '--data_dir=none/here must be a folder of images'),
        (['--train_batch_size=many'], '--train_batch_size must be a whole number'),
    ],
)
def test_errors_show_without_tensorflow(
    tmp_path: pathlib.Path, arguments: list[str], message: str
) -> None:
    program = (
        'import sys; sys.path.insert(0, sys.argv.pop(1)); import run; status = run.main(sys.argv); '
        'sys.exit("TensorFlow was imported" if "tensorflow" in sys.modules else status)'
    )
    root = str(pathlib.Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, '-c', program, root, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_of_a_name_is_checked_when_it_is_opened(tmp_path: pathlib.Path) -> None:
    prefix = tmp_path / 'odd [name]' / 'ckpt-3'
    prefix.parent.mkdir()
    with pytest.raises(UserError, match='found nothing there'):
        check(checkpoint=str(prefix), model_dir=str(tmp_path / 'new'), **TUNING)
    pathlib.Path(f'{prefix}.index').write_text('')
    check(checkpoint=str(prefix), model_dir=str(tmp_path / 'new'), **TUNING)


@pytest.mark.parametrize('name', ['g[1]', 'g*', 'g?', 'a\\b', '[!a]', 'a b', '.hidden', 'café'])
def test_any_name_is_taken_literally(name: str, tmp_path: pathlib.Path) -> None:
    for other in ('g1', 'g', 'ab', 'b', 'visible'):
        (tmp_path / other).mkdir()
    arguments = {'checkpoint': str(tmp_path / name), 'model_dir': str(tmp_path / 'new'), **TUNING}
    with pytest.raises(UserError, match='found nothing there'):
        check(**arguments)
    (tmp_path / name).mkdir()
    check(**arguments)


@pytest.mark.parametrize('flag', ['model_dir', 'checkpoint', 'teacher', 'eval_name'])
@pytest.mark.parametrize('character', ['\n', '\x1b', '\udce9', '\u2028'])
def test_unsupported_characters_are_named(flag: str, character: str) -> None:
    """Ends of lines, control characters and bytes that are not UTF-8 are refused first."""
    with pytest.raises(UserError, match=re.escape(f'found {character!a} in')) as refused:
        check_characters({flag: f'a{character}b'})
    assert str(refused.value).isascii() and str(refused.value).isprintable()
    check_characters({flag: 'a [b]*?\\{c} café'})


@pytest.mark.parametrize('path', ['https://tfhub.dev/x', 'gs://bucket/x'])
def test_remote_paths_are_checked_when_they_are_opened(tmp_path: pathlib.Path, path: str) -> None:
    check(checkpoint=path, model_dir=str(tmp_path / 'new'), **TUNING)


def test_a_resumed_run_needs_no_weights(tmp_path: pathlib.Path) -> None:
    arguments = {'checkpoint': str(tmp_path / 'gone'), 'model_dir': str(tmp_path), **TUNING}
    with pytest.raises(UserError, match='found nothing there'):  # an empty folder is not a run
        check(**arguments)
    (tmp_path / 'ckpt-3.index').write_text('')
    check(**arguments)


def test_an_export_reads_no_images(tmp_path: pathlib.Path) -> None:
    check(mode='export', preset='cifar10', checkpoint=str(tmp_path), model_dir=str(tmp_path))


@pytest.mark.parametrize('flag', ['model_dir', 'data_dir', 'checkpoint', 'teacher'])
@pytest.mark.parametrize('scheme', ['foo', 's3', 'hdfs', 'ram', ''])
def test_unsupported_file_systems_are_refused(flag: str, scheme: str) -> None:
    with pytest.raises(UserError, match=f'--{flag} must be a path .* gs://, file://.*; found') as e:
        check_schemes({flag: f'{scheme}://bucket/x'})
    assert '\n' not in str(e.value)
    for place in ('gs://bucket/x', 'file:///x', 'x', '', None):
        check_schemes({flag: place})


def test_each_of_several_folders_may_be_remote() -> None:
    given = {'model_dir': 'runs/a,b', 'data_dir': '/images, gs://b/x,gs://c/y', 'checkpoint': None}
    check_schemes(given)
    assert remote_paths(given) == [('data_dir', 'gs://b/x'), ('data_dir', 'gs://c/y')]
    with pytest.raises(UserError, match=r"--data_dir must be a path .*; found 's3://c/y'"):
        check_schemes({'data_dir': 'gs://b/x,s3://c/y'})


def test_only_weights_may_be_urls() -> None:
    for flag in ('checkpoint', 'teacher'):
        check_schemes({flag: 'https://tfhub.dev/x'})
    for flag in ('model_dir', 'data_dir'):
        with pytest.raises(UserError, match=f'--{flag} must be a path of this machine'):
            check_schemes({flag: 'https://tfhub.dev/x'})


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


# Kind: a place in the network that doesn't let anyone in.
OUT_OF_REACH = {
    'nobody knows the host': raising(tf.errors.FailedPreconditionError(None, None, 'no host')),
    'no credentials': raising(tf.errors.PermissionDeniedError(None, None, '401\nno token')),
    'silence': lambda *_: threading.Event().wait(),
}


@pytest.mark.parametrize('why', list(OUT_OF_REACH))
@pytest.mark.parametrize('mode', ['train', 'eval', 'export', 'pipeline'])
def test_an_unreachable_path_is_one_line(
    why: str, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tf.io.gfile, 'exists', OUT_OF_REACH[why])
    flags = [f'--mode={mode}', '--model_dir=gs://bucket/x', '--connect_timeout=1']
    assert run.main(['run.py', *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == 'Waiting up to 1 s (--connect_timeout) for gs://bucket/x.\n'
    assert 'error: --model_dir=gs://bucket/x must be within reach; found: ' in shown.err
    assert shown.err.count('\n') == 1
