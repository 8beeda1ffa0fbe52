"""Checkpoints: what is restored, what is left alone, and what does not fit."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tf2.checkpoints import Checkpoints, DamagedError, load_model, recorded_in
from tf2.files import step_of


def dense(units: int = 2, seed: int = 0, more: bool = False) -> tf.keras.Model:
    """A small model; another seed gives other weights."""
    kernel = tf.keras.initializers.RandomNormal(seed=seed)
    layers = [tf.keras.layers.Dense(units, kernel_initializer=kernel)]
    layers += [tf.keras.layers.Dense(2)] if more else []
    model = tf.keras.Sequential(layers)
    model.build([None, 3])
    return model


def optimizer_of(model: tf.keras.Model, momentum: float = 0.0) -> tf.keras.optimizers.Optimizer:
    optimizer = tf.keras.optimizers.SGD(1.0, momentum=0.9, jit_compile=False)
    optimizer.build(model.trainable_variables)
    for variable in optimizer.momentums:
        variable.assign_add(tf.fill(variable.shape, momentum))
    return optimizer


def checkpoints(
    folder: pathlib.Path, model: tf.keras.Model, momentum: float = 0.0
) -> tuple[Checkpoints, tf.keras.optimizers.Optimizer]:
    optimizer = optimizer_of(model, momentum)
    return Checkpoints(str(folder), model, tf.Module(), optimizer, keep=5), optimizer


def test_a_new_folder_has_nothing_to_resume(tmp_path: pathlib.Path) -> None:
    saved, _ = checkpoints(tmp_path / 'new', dense())
    assert saved.latest is None
    assert saved.resume() is None
    assert not (tmp_path / 'new').exists()


def test_resume_restores_model_and_optimizer(tmp_path: pathlib.Path) -> None:
    model, other = dense(seed=0), dense(seed=1)
    path = checkpoints(tmp_path, model, momentum=0.5)[0].save(12)
    saved, optimizer = checkpoints(tmp_path, other)
    assert saved.resume() == path == saved.latest
    np.testing.assert_array_equal(other.layers[0].kernel, model.layers[0].kernel)
    np.testing.assert_array_equal(optimizer.momentums[0], np.full([3, 2], 0.5))


@pytest.mark.smoke
def test_loading_a_model_takes_its_weights_and_nothing_else(tmp_path: pathlib.Path) -> None:
    model, other = dense(seed=0), dense(seed=1)
    path = checkpoints(tmp_path, model, momentum=0.5)[0].save(12)
    optimizer = optimizer_of(other, momentum=0.25)
    assert load_model(path, other) == 12
    np.testing.assert_array_equal(other.layers[0].kernel, model.layers[0].kernel)
    np.testing.assert_array_equal(optimizer.momentums[0], np.full([3, 2], 0.25))


def test_checkpoints_are_whole_for_tensorflow_too(tmp_path: pathlib.Path) -> None:
    path = checkpoints(tmp_path, dense(seed=0))[0].save(3)
    other = dense(seed=1)
    tf.train.Checkpoint(model=other).restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(other.layers[0].kernel, dense(seed=0).layers[0].kernel)


@pytest.mark.parametrize('other', [{'units': 4}, {'more': True}], ids=['shape', 'layers'])
def test_another_architecture_is_refused_in_one_line(tmp_path: pathlib.Path, other: dict) -> None:
    path = checkpoints(tmp_path, dense())[0].save(3)
    for restore in (
        lambda: load_model(path, dense(**other)),
        checkpoints(tmp_path, dense(**other))[0].resume,
    ):
        with pytest.raises(UserError, match=re.escape(f'{path} must hold')) as refused:
            restore()
        assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
    ('path', 'step'), [('ckpt-0', 0), ('/runs/a-1/ckpt-250', 250), ('gs://bucket/ckpt-7', 7)]
)
def test_the_step_is_read_from_the_name(path: str, step: int) -> None:
    assert step_of(path) == step


# --- damage


def flip(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 64
    return bytes(changed)


DATA = '.data-00000-of-00001'
# Name of a file's ending and what happens to its content.
DAMAGES = {
    'data cut off': (DATA, lambda content: content[: len(content) // 2]),
    'data empty': (DATA, lambda content: b''),
    'data changed': (DATA, lambda content: flip(content, 5)),
    'index cut off': ('.index', lambda content: content[: len(content) // 2]),
    'index empty': ('.index', lambda content: b''),
    'index changed': ('.index', lambda content: flip(content, 30)),
}


def damage(path: str, kind: str) -> None:
    ending, change = DAMAGES[kind]
    file = pathlib.Path(path + ending)
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    kind: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    model = dense()
    saved, _ = checkpoints(tmp_path, model, momentum=0.5)
    good = saved.save(3)
    expected = model.layers[0].kernel.numpy()
    model.layers[0].kernel.assign_add(tf.ones([3, 2]))
    damage(saved.save(7), kind)
    other = dense(seed=1)
    resumed, optimizer = checkpoints(tmp_path, other)
    assert resumed.resume() == good
    np.testing.assert_array_equal(other.layers[0].kernel, expected)
    np.testing.assert_array_equal(optimizer.momentums[0], np.full([3, 2], 0.5))
    shown = capsys.readouterr().out
    assert re.search(r'Resuming from the previous checkpoint: .*ckpt-7 should be a whole', shown)
    # Whoever reads the folder now is not led to the damaged one.
    assert tf.train.latest_checkpoint(tmp_path) == good == resumed.latest
    # Nothing is removed, and what is there later is no obstacle, nor is a second damage.
    assert names(tmp_path, 'ckpt-7') == {f'ckpt-7{DATA}.damaged-1', 'ckpt-7.index.damaged-1'}
    damage(resumed.save(7), kind)
    assert checkpoints(tmp_path, other)[0].resume() == good
    assert len(names(tmp_path, 'ckpt-7')) == 4


def names(folder: pathlib.Path, start: str = '') -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(start)}


def gone(file: pathlib.Path) -> Callable[[], object]:
    moved = file.rename(file.with_name('elsewhere'))
    return lambda: moved.rename(file)


def folder_instead(file: pathlib.Path) -> Callable[[], object]:
    bring_back = gone(file)
    file.mkdir()
    return lambda: (file.rmdir(), bring_back())


def link_to_nothing(file: pathlib.Path) -> Callable[[], object]:
    bring_back = gone(file)
    file.symlink_to('nowhere')
    return lambda: (file.unlink(), bring_back())


@pytest.mark.parametrize('ending', [DATA, '.index'])
@pytest.mark.parametrize('hindrance', [gone, folder_instead, link_to_nothing])
def test_an_unreadable_checkpoint_is_not_damaged(
    hindrance: Callable, ending: str, tmp_path: pathlib.Path
) -> None:
    """A file moved away, hidden or out of reach for a moment: nothing is renamed, removed or
    started from scratch, and with the file back the run goes on from there.
    """
    saved, _ = checkpoints(tmp_path, dense())
    saved.save(3)
    path = saved.save(7)
    bring_back = hindrance(pathlib.Path(path + ending))
    before = names(tmp_path)
    with pytest.raises(UserError, match=re.escape(path)) as refused:
        checkpoints(tmp_path, dense())[0].resume()
    assert not isinstance(refused.value, DamagedError) and '\n' not in str(refused.value)
    assert names(tmp_path) == before
    bring_back()
    assert checkpoints(tmp_path, dense())[0].resume() == path


ODD = ['g[1]', 'g*', 'g?', 'back\\slash', '{g,h}', 'a b', '[!g]', '%20~$', 'café']


@pytest.mark.parametrize('odd', ODD)
def test_any_name_of_a_folder_is_taken_literally(odd: str, tmp_path: pathlib.Path) -> None:
    """Brackets, stars and backslashes in names are not patterns."""
    folders = [tmp_path / name for name in ('g1', 'g', 'gh', 'h', 'a', odd)]
    others = {}
    for folder in folders:
        saved = Checkpoints(str(folder), model := dense(), tf.Module(), optimizer_of(model), 1)
        if folder.name != odd:
            saved.save(1)
            (folder / 'ckpt-2_temp').mkdir()
            others[folder] = names(folder)
    saved.save(1)
    path = saved.save(2)
    assert names(folders[-1], 'ckpt') == {f'ckpt-2{DATA}', 'ckpt-2.index'}
    assert {folder: names(folder) for folder in others} == others
    other = dense(seed=1)
    assert checkpoints(folders[-1], other)[0].resume() == path and load_model(path, other) == 2
    np.testing.assert_array_equal(other.layers[0].kernel, model.layers[0].kernel)
    assert recorded_in(path) == {}


@pytest.mark.parametrize(
    'other', ['ckpt-4.txt', 'ckpt-4.index.bak', 'ckpt-4.data-mine', 'ckpt-4_x']
)
def test_files_of_a_user_stay_whatever_they_begin_with(other: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / other).write_text('mine')
    model = dense()
    saved = Checkpoints(str(tmp_path), model, tf.Module(), optimizer_of(model), keep=1)
    for step in (3, 4, 5):
        saved.save(step)
        assert saved.resume()
    assert names(tmp_path) == {'checkpoint', f'ckpt-5{DATA}', 'ckpt-5.index', other}


def test_what_a_link_leads_to_is_never_removed(tmp_path: pathlib.Path) -> None:
    """Checkpoint data, or a file or folder of an unfinished one, may be links."""
    elsewhere, run = tmp_path / 'elsewhere', tmp_path / 'run'
    (elsewhere / 'folder').mkdir(parents=True)
    (elsewhere / 'folder' / 'mine').write_text('x')
    model = dense()
    saved = Checkpoints(str(run), model, tf.Module(), optimizer_of(model), keep=1)
    data = run / f'ckpt-3{DATA}'
    saved.save(3)
    data.rename(elsewhere / 'data')
    data.symlink_to(elsewhere / 'data')
    (run / 'ckpt-4_temp').symlink_to(elsewhere / 'folder')
    assert saved.resume()
    saved.save(5)
    assert names(run) == {'checkpoint', f'ckpt-5{DATA}', 'ckpt-5.index'}
    assert names(elsewhere) == {'data', 'folder'} and names(elsewhere / 'folder') == {'mine'}


@pytest.mark.parametrize('kind', ['data cut off', 'index empty'])
def test_damaged_checkpoints_alone_do_not_start_from_scratch(
    kind: str, tmp_path: pathlib.Path
) -> None:
    path = checkpoints(tmp_path, dense())[0].save(3)
    damage(path, kind)
    with pytest.raises(UserError, match=re.escape(path)) as refused:
        checkpoints(tmp_path, dense())[0].resume()
    assert '\n' not in str(refused.value)
    assert list(tmp_path.glob('ckpt-3*'))


@pytest.mark.parametrize('state', [None, '', 'model_checkpoint_path: "ckpt-9"\n'])
def test_the_file_checkpoint_may_be_wrong(state: str | None, tmp_path: pathlib.Path) -> None:
    """A run that is killed between two writes leaves the old file, or none."""
    saved, _ = checkpoints(tmp_path, dense())
    path = saved.save(3)
    (tmp_path / 'checkpoint').unlink()
    if state is not None:
        (tmp_path / 'checkpoint').write_text(state)
    assert checkpoints(tmp_path, dense())[0].resume() == path
    assert tf.train.latest_checkpoint(tmp_path) == path


def test_an_unfinished_checkpoint_is_ignored_and_removed(tmp_path: pathlib.Path) -> None:
    saved, _ = checkpoints(tmp_path, dense())
    path = saved.save(3)
    (tmp_path / f'ckpt-4{DATA}').write_bytes(b'half')
    (tmp_path / 'ckpt-5_temp').mkdir()
    (tmp_path / 'ckpt-5_temp' / 'part').write_bytes(b'half')
    # Killed, or refused, between the index and the end of the write.
    (tmp_path / 'ckpt-3_temp').mkdir()
    (tmp_path / 'ckpt-3_temp' / 'part').write_bytes(b'whole')
    assert saved.latest == path
    assert checkpoints(tmp_path, dense())[0].resume() == path
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        'checkpoint',
        f'ckpt-3{DATA}',
        'ckpt-3.index',
    ]


def test_an_unfinished_first_checkpoint_is_removed(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / 'ckpt-3_temp').mkdir()
    (tmp_path / 'ckpt-3_temp' / 'part-00000-of-00001.index').write_text('half')
    (tmp_path / 'ckpt-2.data-00000-of-00001').write_text('half')
    assert checkpoints(tmp_path, dense())[0].resume() is None
    assert not list(tmp_path.iterdir())


def test_a_surplus_checkpoint_is_removed_on_resuming(tmp_path: pathlib.Path) -> None:
    """As after a kill between writing the newest and removing the oldest."""
    model = dense()
    for step in (1, 2):
        checkpoints(tmp_path, model)[0].save(step)
    saved = Checkpoints(str(tmp_path), model, tf.Module(), optimizer_of(model), keep=1)
    assert saved.resume() == str(tmp_path / 'ckpt-2')
    assert not list(tmp_path.glob('ckpt-1*'))


def test_a_full_folder_is_named_and_keeps_its_checkpoints(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, _ = checkpoints(tmp_path, dense())
    path = saved.save(3)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self: tf.train.Checkpoint, prefix: str) -> None:
        pathlib.Path(prefix + DATA).write_bytes(b'half')
        raise tf.errors.ResourceExhaustedError(None, None, 'No space\nleft on device')

    monkeypatch.setattr(tf.train.Checkpoint, 'write', full)
    with pytest.raises(UserError, match=r'No space left on device.* Make room') as refused:
        saved.save(4)
    assert str(tmp_path) in str(refused.value)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert saved.latest == path


@pytest.mark.parametrize(('keep', 'left'), [(0, [1, 2, 10]), (2, [2, 10])])
def test_the_oldest_are_removed_and_a_moved_folder_still_names_the_newest(
    keep: int, left: list[int], tmp_path: pathlib.Path
) -> None:
    model = dense()
    saved = Checkpoints(str(tmp_path / 'a'), model, tf.Module(), optimizer_of(model), keep)
    for step in (1, 2, 10):
        saved.save(step)
    (tmp_path / 'a').rename(tmp_path / 'b')
    assert tf.train.latest_checkpoint(tmp_path / 'b') == str(tmp_path / 'b' / 'ckpt-10')
    paths = tf.train.get_checkpoint_state(tmp_path / 'b').all_model_checkpoint_paths
    assert [step_of(path) for path in paths] == left
    found = sorted(int(file.stem[5:]) for file in (tmp_path / 'b').glob('ckpt-*.index'))
    assert found == left


def test_each_checkpoint_has_a_record(tmp_path: pathlib.Path) -> None:
    saved, _ = checkpoints(tmp_path, dense())
    saved.record.update(class_names=['café', 'b'], examples_seen=7)
    path = saved.save(3)
    again, _ = checkpoints(tmp_path, dense(seed=1))
    again.record['left'] = 'over'
    assert again.resume() == path
    assert again.record == recorded_in(path) == {'class_names': ['café', 'b'], 'examples_seen': 7}


def test_a_checkpoint_without_a_record_is_resumed(tmp_path: pathlib.Path) -> None:
    model = dense()
    optimizer = optimizer_of(model)
    older = tf.train.Checkpoint(
        model=model, objective=tf.Module(), optimizer=optimizer, progress=tf.Module()
    )
    older.save_counter.assign(0)
    path = older.write(str(tmp_path / 'ckpt-3'))
    saved, _ = checkpoints(tmp_path, dense(seed=1))
    assert saved.resume() == path and saved.record == {} and recorded_in(path) is None
