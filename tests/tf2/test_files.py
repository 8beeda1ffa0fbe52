"""Files that appear whole or not at all."""

from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf

from common.errors import UserError
from tf2.files import checkpoints_in, clear_leftovers, write_text, writing


def test_a_file_is_replaced_as_a_whole(tmp_path: pathlib.Path) -> None:
    file = tmp_path / 'file'
    for text in ('a', 'longer', ''):
        write_text(str(file), text)
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / 'file'
    file.write_text('old')

    def fail(*_: object, **__: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, 'full')

    monkeypatch.setattr(tf.io.gfile, 'rename', fail)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        write_text(str(file), 'new')
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(file, 'old')]


def test_leftovers_of_a_killed_write_go_and_nothing_else(tmp_path: pathlib.Path) -> None:
    kept = [tmp_path / name for name in ('a.partial', 'result.json', 'x.0123.partial')]
    for file in (*kept, tmp_path / f'result.json.{"0a" * 16}.partial'):
        file.write_text('')
    clear_leftovers(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    clear_leftovers(str(tmp_path / 'nowhere'))


@pytest.mark.parametrize(
    'error',
    [OSError(28, 'No space left\non device'), tf.errors.PermissionDeniedError(None, None, 'no')],
)
def test_a_failed_write_gives_one_line(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r'^folder must be writable; found otherwise ') as refused,
        writing('folder'),
    ):
        raise error
    assert '\n' not in str(refused.value)


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), writing('folder'):
        raise KeyError('x')


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: pathlib.Path) -> None:
    names = ('ckpt-10.index', 'ckpt-9.index', 'ckpt-11.data-00000-of-00001', 'ckpt-a.index', 'x')
    for name in names:
        (tmp_path / name).write_text('')
    assert checkpoints_in(str(tmp_path)) == [str(tmp_path / 'ckpt-9'), str(tmp_path / 'ckpt-10')]
    assert checkpoints_in(str(tmp_path / 'nowhere')) == []


def test_a_lost_worker_is_not_blamed_on_files() -> None:
    lost = tf.errors.UnavailableError(None, None, 'Collective ops is aborted by: Socket closed')
    with pytest.raises(tf.errors.UnavailableError), writing('folder'):
        raise lost
