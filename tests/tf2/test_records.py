"""Our own files with wrong content: each way to break one gives a one-line error."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hub_export
from app.config.schema import OPTIONS
from app.run_folder import FLAGS, read_flags, read_pipeline
from common.errors import UserError
from tests.support import GOLDEN
from tf2 import records
from tf2.evaluators.results import read_results
from tf2.weights.checkpoint_file import locate
from tf2.weights.record import read_record

OLDER = GOLDEN / 'older_run'
RECORDED = json.loads((OLDER / 'flags.json').read_text())
RESULT = json.loads((OLDER / 'result.json').read_text())
MODULE = json.loads((OLDER / 'module/assets.extra/simclr.json').read_text())
STAGE = {name: value for name, value in RECORDED.items() if name in OPTIONS}
# File -> what it holds, what has to be there, and who reads it from the folder.
FILES: dict[str, tuple[dict, records.Value, list[Callable[[str], Any]]]] = {
    'flags.json': (
        RECORDED,
        FLAGS,
        [lambda folder: read_flags(folder, need=('train_examples',))],
    ),
    'pipeline.json': (
        {'pretrain': STAGE, 'student': STAGE},
        records.Value(dict, items=FLAGS),
        [read_pipeline],
    ),
    'result.json': (RESULT, records.RESULT, [lambda folder: read_results(f'{folder}/result.json')]),
    'assets.extra/simclr.json': (
        MODULE,
        records.MODULE,
        [hub_export.read_record, lambda folder: read_record(f'{folder}/variables/variables')],
    ),
}
NOT_OBJECTS = {
    'empty': b'',
    'a list': b'[]',
    'a string': b'"a\\nb"',
    'a number': b'3',
    'null': b'null',
    'not UTF-8': b'{"caf\xe9": 1}',
    'UTF-16': '{}'.encode('utf-16'),
    'cut off': b'{"a": 1, ',
    'deep': b'[' * 100_000,
    'zeros': bytes(100),
    'a number of many digits': b'{"a": ' + b'1' * 10_000 + b'}',
}
# Values of every type; each is wrong where another type stands.
STRANGE = (None, True, 0.5, float('nan'), 10**400, 'word', 'line\nbreak', [], {}, [[1]], {'a': {}})


def refusal(reader: Callable[[str], Any], folder: pathlib.Path, file: str, content: bytes) -> str:
    """The message of a reader for `content`."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        reader(str(folder))
    line = str(caught.value)
    assert str(path) in line and 'found' in line and '\n' not in line and len(line) < 500
    return line


def fits(value: records.Value, found: Any) -> bool:
    """Checks the kind of value only; values are tested with the settings."""
    if found is None or isinstance(found, bool):
        return value.nullable if found is None else value.kind is bool
    if value.kind is float:
        return isinstance(found, (int, float)) and found == found
    return isinstance(found, value.kind)


def broken(value: records.Value, whole: dict) -> Iterator[tuple[str, Any]]:
    """(Key, content with a strange value there) for every known key of `whole`."""
    for key in whole:
        inner = value.keys.get(key, value.items)
        if inner is None:
            continue
        for strange in STRANGE:
            if not fits(inner, strange):
                yield key, {**whole, key: strange}
        if inner.kind is dict:
            for name, content in broken(inner, whole[key]):
                yield f'{key}.{name}', {**whole, key: content}


@pytest.mark.parametrize('file', FILES)
def test_each_file_is_read_as_it_was_written(file: str, tmp_path: pathlib.Path) -> None:
    """Files of newer and older releases have more keys, or fewer."""
    content, _, readers = FILES[file]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    newer = {**content, **({} if file == 'pipeline.json' else {'eval/news': 0.5})}
    (tmp_path / file).write_text(json.dumps(newer))
    for reader in readers:
        assert reader(str(tmp_path))


@pytest.mark.parametrize('name', NOT_OBJECTS)
@pytest.mark.parametrize('file', FILES)
def test_a_file_without_an_object_gives_one_line(
    file: str, name: str, tmp_path: pathlib.Path
) -> None:
    for reader in FILES[file][2]:
        refusal(reader, tmp_path, file, NOT_OBJECTS[name])


@pytest.mark.parametrize('file', FILES)
def test_every_value_of_a_wrong_type_gives_one_line(file: str, tmp_path: pathlib.Path) -> None:
    content, value, readers = FILES[file]
    tried = 0
    for key, wrong in broken(value, content):
        # Whoever reads weights looks at their architecture only.
        for reader in readers[:1]:
            line = refusal(reader, tmp_path, file, json.dumps(wrong).encode())
            assert f"'{key}'" in line
            tried += 1
    assert tried >= 20


@pytest.mark.parametrize(
    ('file', 'key'),
    [
        ('flags.json', 'train_examples'),
        ('result.json', 'global_step'),
        ('assets.extra/simclr.json', 'model'),
        ('assets.extra/simclr.json', 'image_size'),
        ('assets.extra/simclr.json', 'num_classes'),
        ('assets.extra/simclr.json', 'step'),
    ],
)
def test_a_missing_key_gives_one_line(file: str, key: str, tmp_path: pathlib.Path) -> None:
    content, _, readers = FILES[file]
    left = {name: value for name, value in content.items() if name != key}
    for reader in readers:
        assert f'the key {key!r}' in refusal(reader, tmp_path, file, json.dumps(left).encode())


@pytest.mark.parametrize(
    ('file', 'changes', 'words'),
    [
        ('flags.json', {'width_multiplier': -1}, 'must be greater than 0; found -1'),
        ('flags.json', {'resnet_depth': 17}, 'must be one of 18, 34'),
        ('flags.json', {'train_mode': 'dream'}, 'must be one of pretrain'),
        ('flags.json', {'train_examples': 0}, 'at least 1; found 0'),
        ('flags.json', {'changes': [{'step': 1}]}, "the key 'changes.0.setting'"),
        ('flags.json', {'changes': [{'step': 'x', 'setting': 'a'}]}, "at 'changes.0.step'"),
        ('assets.extra/simclr.json', {'step': -3}, 'at least 0; found -3'),
        ('assets.extra/simclr.json', {'image_size': 0}, 'at least 1; found 0'),
        ('assets.extra/simclr.json', {'model': {'sk_ratio': 0.1}}, 'resnet_depth'),
    ],
)
def test_a_wrong_value_of_the_right_type_gives_one_line(
    file: str, changes: dict, words: str, tmp_path: pathlib.Path
) -> None:
    content, _, readers = FILES[file]
    if 'model' in changes:
        changes = {'model': {**content['model'], 'resnet_depth': 18, **changes['model']}}
    for reader in readers:
        line = refusal(reader, tmp_path, file, json.dumps({**content, **changes}).encode())
        assert words in line


@pytest.mark.parametrize(
    'content',
    [
        *NOT_OBJECTS.values(),
        b'{}',
        b'model_checkpoint_path: ckpt-3',
        b'model_checkpoint_path: ""',
        b'model_checkpoint_path: "\\xff"',
        b'model_checkpoint_path: "a\\000b"',
        b'all_model_checkpoint_paths: "ckpt-3"',
    ],
)
def test_a_checkpoint_file_of_other_content_gives_one_line(
    content: bytes, tmp_path: pathlib.Path
) -> None:
    refusal(locate, tmp_path, 'checkpoint', content)


def test_a_checkpoint_file_names_the_newest(tmp_path: pathlib.Path) -> None:
    for name in ('ckpt-3', r'/was/h\"re/ckpt-3', 'caf\\303\\251-3'):
        (tmp_path / 'checkpoint').write_text(
            f'# ours\nmodel_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "ckpt-1"\n'
        )
        assert records.newest_in(str(tmp_path), '').endswith('-3')


def test_a_folder_in_place_of_a_file_gives_one_line(tmp_path: pathlib.Path) -> None:
    for file, (_, _, readers) in FILES.items():
        (tmp_path / file).mkdir(parents=True)
        for reader in readers:
            with pytest.raises(UserError, match='should be a text file'):
                reader(str(tmp_path))
