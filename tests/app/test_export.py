"""Which folders an export refuses; what it exports is tested in tests/test_run.py."""

from __future__ import annotations

import pathlib

import pytest

import run
from app import export
from common.errors import UserError

OWN = ('', 'ckpt-3', 'saved_model/3')


@pytest.fixture
def other_run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the file names of a run."""
    folder = tmp_path / 'run'
    for name in ('saved_model/3', 'momentum_saved_model/3'):
        (folder / name).mkdir(parents=True)
    for name in ('flags.json', 'ckpt-3.index'):
        (folder / name).write_text('{}')
    return folder


@pytest.mark.parametrize('source', OWN)
@pytest.mark.parametrize('file', ['flags.json', 'pipeline.json', 'ckpt-1.index'])
def test_an_export_does_not_touch_the_folder_of_another_run(
    file: str,
    source: str,
    other_run: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = tmp_path / 'new'
    folder.mkdir()
    (folder / file).write_text('{}')
    arguments = [f'--checkpoint={other_run / source}', f'--model_dir={folder}']
    assert run.main(['run.py', '--mode=export', *arguments]) == 2
    message = capsys.readouterr().err
    assert 'must not replace the modules of another run' in message
    assert message.count('\n') == 1 and [path.name for path in folder.iterdir()] == [file]


@pytest.mark.parametrize('source', OWN)
def test_an_export_may_replace_modules_of_the_run_it_reads(
    source: str, other_run: pathlib.Path
) -> None:
    export._check_own_folder(str(other_run), str(other_run / source))


def test_an_export_of_the_momentum_encoder_must_not_replace_the_model(
    other_run: pathlib.Path,
) -> None:
    with pytest.raises(UserError, match='must not replace the modules'):
        export._check_own_folder(str(other_run), str(other_run / 'momentum_saved_model' / '3'))
