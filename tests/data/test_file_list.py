"""Lists of image files in every format, and what can be wrong with them."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from data.config import DataConfig
from data.sources import open_source
from data.sources.file_list import read_list
from data.sources.layout import Asked
from tests.data.test_layout import found_in

ROWS = [('a/1.jpg', 'cat'), ('a/2.jpg', 'dog'), ('b c/3.jpg', 'cat'), ('é,".jpg', 'dog')]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    for path, _ in ROWS:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b'')
    return tmp_path


def read(folder: pathlib.Path, name: str, text: str | bytes, **asked):
    content = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(content)
    return read_list(str(folder / name), Asked(**{'fraction': 0, **asked}))


def table(rows, delimiter=',') -> str:
    def quoted(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    return ''.join(delimiter.join(map(quoted, row)) + '\r\n' for row in rows)


FORMATS = {
    'list.txt': ''.join(f'{path}\t{label}\n' for path, label in ROWS),
    'windows.LST': ''.join(f'{path}\t{label}\r\n' for path, label in ROWS),
    'marked.txt': '\ufeff' + ''.join(f'{path}\t{label}\n\n' for path, label in ROWS),
    'list.csv': 'Filename,Class\n' + table(ROWS),
    'more.csv': 'number;label;file\n' + table([('7', b, a) for a, b in ROWS], ';'),
    'list.tsv': 'path\tlabel\n' + table(ROWS, '\t'),
    'list.jsonl': ''.join(json.dumps({'path': a, 'label': b}) + '\n' for a, b in ROWS),
    'list.ndjson': ''.join(json.dumps({'x': [1], 'File': a, 'class': b}) + '\n' for a, b in ROWS),
}


@pytest.mark.parametrize('name', FORMATS)
def test_every_format_says_the_same(folder, name):
    images = read(folder, name, FORMATS[name])
    assert images.classes == ('cat', 'dog')
    assert found_in(images) == {'train': dict(ROWS)}
    assert images.summary == f'{folder}/{name}: a list of 4 images; 2 classes (cat 2, dog 2)'


def test_labels_are_optional_and_numbers_are_in_their_order(folder):
    assert read(folder, 'list', ''.join(f'{path}\n' for path, _ in ROWS)).classes == ()
    images = read(folder, 'list.csv', 'path,label\n' + table(zip(dict(ROWS), ['10', '9', '', '9'])))
    assert images.classes == ('9', '10')
    assert found_in(images)['train'] == dict(zip(dict(ROWS), ['10', '9', None, '9']))
    assert '2 classes (9 2, 10 1); 1 images without a class' in images.summary
    rows = [{'path': path, 'label': number} for number, (path, _) in enumerate(ROWS)]
    assert read(folder, 'l.jsonl', '\n'.join(map(json.dumps, rows))).classes == ('0', '1', '2', '3')


def test_splits_are_a_column_or_held_out(folder):
    rows = [(*row, split) for row, split in zip(ROWS, ['train', 'val', '', 'val'])]
    images = read(folder, 'list.csv', 'path,label,split\n' + table(rows))
    assert {split: len(files) for split, files in images.splits.items()} == {
        'train': 2,
        'val': 2,
        'validation': 2,
    }
    assert 'validation is the split val' in images.summary
    images = read(folder, 'list.csv', 'path,label\n' + table(ROWS), fraction=0.5)
    assert len(images.splits['validation']) == 2
    # The same ones, whatever the order of the list.
    again = read(folder, 'list.csv', 'path,label\n' + table(ROWS[::-1]), fraction=0.5)
    assert found_in(again) == found_in(images)


def test_paths_are_relative_to_the_list_or_absolute(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('lists')
    lines = [str(folder / 'a' / '1.jpg'), os.path.relpath(folder / 'a' / '2.jpg', elsewhere)]
    (files,) = read(elsewhere, 'list.txt', '\n'.join(lines)).splits.values()
    assert sorted(map(os.path.realpath, files.paths())) == [
        os.fsencode(folder / 'a' / name) for name in ('1.jpg', '2.jpg')
    ]


@pytest.mark.parametrize('many', [False, True])
def test_missing_files_are_left_out_and_counted(folder, many):
    names = [f'{n}.jpg' for n in range(30 if many else 5)]
    for name in names:
        (folder / name).write_bytes(b'')
    text = '\n'.join(f'{name}\ta' for name in names) + '\ngone/9.jpg\tb\nx.jpg\tc'
    images = read(folder, 'list.txt', text)
    assert len(images.splits['train']) == len(names)
    assert images.classes == ('a',)
    assert images.summary.endswith('2 files are missing and left out, such as x.jpg')


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('list.txt', '', 'must list images.*found an empty list'),
        ('list.csv', 'path,label\n', 'found an empty list'),
        ('list.csv', 'name,label\na,b\n', r"column path or file or filename; found 'name,label'"),
        ('list.csv', '', "found ''"),
        ('list.jsonl', '{"path": "a/1.jpg"}\nnonsense\n', 'Line 2 of .* found nonsense'),
        ('list.jsonl', '["a/1.jpg"]\n', 'Line 1 of .* must be JSON such as'),
        ('list.jsonl', '{"label": "a"}\n', 'it has no path or file or filename'),
        ('list.jsonl', '{"path": "a/1.jpg", "label": [1]}', r'label is \[1\]'),
        ('list.txt', 'a/1.jpg 0\na/2.jpg 1\n', r'of 2 files 2 are missing, such as a/1.jpg 0\.'),
        ('list.txt', b'caf\xe9\n', r'such as caf\\xe9'),
        ('photo.png', tf.io.encode_png(np.zeros([9, 9, 3], np.uint8)).numpy(), 'files that are th'),
        ('noise.bin', np.random.RandomState(0).bytes(9999), 'list files that are there'),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(folder, name, text, words):
    with pytest.raises(UserError, match=words) as error:
        read(folder, name, text)
    assert str(error.value).isprintable()


def test_a_list_is_opened_where_a_folder_may_be(folder):
    for number, (path, _) in enumerate(ROWS):
        image = np.full([3, 4, 3], 50 * number, np.uint8)
        (folder / path).write_bytes(tf.io.encode_png(image).numpy())
    (folder / 'list.txt').write_text(FORMATS['list.txt'])
    config = DataConfig(
        dataset='image_folder', data_dir=f'{folder}/list.txt', eval_split='train[:1]'
    )
    source = open_source(config)
    assert (source.name, source.class_names) == ('image_list', ('cat', 'dog'))
    found = {
        int(source.decode(raw['image'])[0, 0, 0]) // 257 // 50: int(raw['label'])
        for raw in source.with_contents(source.examples('train'))
    }
    assert found == {0: 0, 1: 1, 2: 0, 3: 1}
    assert sorted(source.identify('train', range(4))) == sorted(dict(ROWS))
    with pytest.raises(UserError, match='one list of files, or folders'):
        open_source(DataConfig(dataset='image_folder', data_dir=f'{folder},{folder}/list.txt'))
