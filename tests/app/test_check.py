"""`--mode=check` on real files."""

from __future__ import annotations

import contextlib
import html.parser
import io
import json
import os
import pathlib
import re
import signal
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import run
from app.check import command, page
from common.interruption import Interrupted
from data.sources import Source


def image(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture like no other one."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write(root: pathlib.Path, *names: str, seed: int = 0) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image(1000 * seed + number).save(root / name)


def main(*arguments: str) -> tuple[int, str, str]:
    """Exit status, what is printed and what is said of errors."""
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        status = run.main(['run.py', '--mode=check', *arguments])
    return status, shown.getvalue(), said.getvalue()


def check(data: pathlib.Path, *more: str) -> tuple[dict[str, Any], str, str]:
    """`check.json`, `check.html`, and what is printed, of a folder that can be used."""
    out = data.parent / 'out'
    status, shown, said = main(f'--data_dir={data}', f'--model_dir={out}', *more)
    assert status == 0, said
    assert sorted(os.listdir(out)) == ['check.html', 'check.json']
    return json.loads((out / 'check.json').read_text()), (out / 'check.html').read_text(), shown


def notes(found: dict[str, Any]) -> list[str]:
    return [note['text'] for note in found['notes']]


class Parsed(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ''
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_sound_folder(tmp_path: pathlib.Path) -> None:
    data = tmp_path / 'data'
    for number, name in enumerate(('cat', 'dog')):
        write(data / 'train' / name, *(f'{i}.png' for i in range(12)), seed=2 * number)
        write(data / 'val' / name, *(f'{i}.jpg' for i in range(10)), seed=2 * number + 1)
    found, text, shown = check(data)
    assert (found['images'], found['usable'], found['damaged'], found['notes']) == (44, 44, 0, [])
    assert [row['name'] for row in found['splits']] == ['train', 'val']
    assert found['classes'] == [
        {'name': name, 'images': {'train': 12, 'val': 10}} for name in ('cat', 'dog')
    ]
    assert found['formats'] == [
        {'format': 'PNG', 'images': 24},
        {'format': 'JPEG', 'images': 20},
    ]
    assert found['sizes']['often'] == [{'width': 48, 'height': 40, 'images': 44}]
    assert found['sizes']['shorter_side']['32 to 63 pixels'] == 44
    assert shown.startswith(f'{data}: split folders; 44 images; 2 classes (cat 22, dog 22)')
    assert '44 of 44 images can be used: PNG 24, JPEG 20.\nNothing was found' in shown
    assert f'--mode=train_then_eval --data_dir={data} --model_dir=RUN' in shown
    assert 'no image is there twice' in Parsed(text).words


def test_damaged_files_are_listed_with_reasons(tmp_path: pathlib.Path) -> None:
    data = tmp_path / 'data'
    write(data, *(f'a/{i}.png' for i in range(12)), *(f'b/{i}.jpg' for i in range(12)))
    whole = (data / 'b' / '0.jpg').read_bytes()
    (data / 'b' / 'half.jpg').write_bytes(whole[: len(whole) // 2])
    (data / 'a' / 'page.png').write_bytes(b'<html>')
    found, text, shown = check(data)
    reasons = {row['file']: row['reason'] for row in found['damaged_files']}
    assert reasons.keys() == {'a/page.png', 'b/half.jpg'} and found['usable'] == 24
    assert reasons['a/page.png'] == 'it is a web page or other markup'
    assert '2 files cannot be decoded, 7.7% of 26. Restore or remove them.' in notes(found)
    words = Parsed(text).words
    for file, reason in reasons.items():
        assert f'  {file}: {reason}\n' in shown and file in words and reason in words


def test_copies_across_splits_and_classes(tmp_path: pathlib.Path) -> None:
    data = tmp_path / 'data'
    for number, split in enumerate(('train', 'test')):
        for label, name in enumerate(('x', 'y')):
            write(data / split / name, *(f'{i}.png' for i in range(10)), seed=2 * number + label)
    original = (data / 'train/x/3.png').read_bytes()
    (data / 'test/x/leak.png').write_bytes(original)
    (data / 'train/y/contradicts.png').write_bytes(original)
    image(1004, (192, 160)).save(data / 'test/y/larger.jpg', quality=60)  # of train/y/4.png
    image(5, (50, 42)).save(data / 'train/x/other.webp')  # of train/x/5.png
    found, text, _ = check(data)
    assert found['copies'] == [
        {'split': 'train', 'also_in': 'train', 'same_file': 2, 'looks_the_same': 2},
        {'split': 'train', 'also_in': 'test', 'same_file': 2, 'looks_the_same': 1},
        {'split': 'test', 'also_in': 'train', 'same_file': 1, 'looks_the_same': 1},
    ]
    told = ' '.join(notes(found))
    assert '2 images of test are in train too (1 the same file and 1 look the same).' in told
    assert '3 images are in another class too (3 the same file).' in told
    assert '4 images of train are there more than once (2 the same file and 2 look the' in told
    groups = [{row['file'] for row in each['listed']} for each in found['duplicate_groups']]
    assert groups == [
        {'train/x/3.png', 'test/x/leak.png', 'train/y/contradicts.png'},
        {'train/y/4.png', 'test/y/larger.jpg'},
        {'train/x/5.png', 'train/x/other.webp'},
    ]
    assert [each['different_files'] for each in found['duplicate_groups']] == [1, 2, 2]
    assert '3 images, the same file:' in Parsed(text).words


def test_what_is_wrong_with_classes(tmp_path: pathlib.Path) -> None:
    data = tmp_path / 'data'
    write(data / 'train', *(f'{c}/{i}.png' for c in ('Cat', 'cat', 'dog') for i in range(10)))
    write(data / 'test', *(f'{c}/{i}.png' for c in ('Cat', 'cat', 'owl') for i in range(4)), seed=1)
    told = ' '.join(notes(check(data)[0]))
    assert 'The classes Cat and cat differ by upper and lower case only.' in told
    assert '2 classes in one split only: dog (train), owl (test).' in told
    assert '1 class with fewer than 10 images: owl 4.' in told


def test_odd_images_are_told(tmp_path: pathlib.Path) -> None:
    data = tmp_path / 'data'
    write(data, *(f'{i}.png' for i in range(9)))
    image(100, (400, 20)).save(data / 'long.png')
    image(101, (8, 8)).save(data / 'small.png')
    Image.new('RGB', (60, 60), 'white').save(data / 'blank.png')
    image(102).save(data / 'webp.png', 'WEBP')
    found, text, _ = check(data)
    assert [row['file'] for row in found['odd_shapes']] == ['long.png', 'small.png']
    assert [row['file'] for row in found['single_color']] == ['blank.png']
    assert found['classes'] == [{'name': None, 'images': {'train': 12, 'validation': 1}}]
    told = ' '.join(notes(found))
    assert '1 image of another format than the name says, such as webp.png.' in told
    assert 'Odd images' in Parsed(text).words


def test_nothing_in_a_name_is_markup(tmp_path: pathlib.Path) -> None:
    data, bad = tmp_path / 'data', '<img src=x onerror=alert(1)>"\'&'
    write(data, *(f'{bad}/{i}{bad}.png' for i in range(3)), *(f'a/{i}.png' for i in range(3)))
    (data / bad / f'{bad}.jpg').write_bytes(b'')
    (data / 'a' / os.fsdecode(b'\xff\n\x1b.png')).write_bytes((data / 'a' / '0.png').read_bytes())
    found, text, _ = check(data)
    parsed = Parsed(text)
    assert {tag for tag, _ in parsed.tags}.isdisjoint({'script', 'iframe', 'object', 'link'})
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith('on')]
        if tag == 'img':
            assert attributes['src'].startswith('data:image/') and attributes['alt']
        if tag == 'a':
            assert attributes['href'].startswith('#')
    targets = {attributes.get('id') for _, attributes in parsed.tags}
    assert {note['part'] for note in found['notes']} <= targets
    assert bad in parsed.words and '\\xff\\n\\x1b.png' in parsed.words
    # The names in the numbers are those of the files.
    listed = [row['file'] for group in found['duplicate_groups'] for row in group['listed']]
    assert all((data / name).exists() for name in listed)


def test_where_nothing_can_be_used(tmp_path: pathlib.Path) -> None:
    data = tmp_path / 'data'
    for name in ('a/1.jpg', 'a/2.jpg', 'b/3.jpg'):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b'')
    status, _, said = main(f'--data_dir={data}', f'--model_dir={tmp_path}/out')
    assert status == 2
    assert 'must hold images that can be decoded; found none among 3 files' in said
    assert len(json.loads((tmp_path / 'out/check.json').read_text())['damaged_files']) == 3
    assert 'it is empty' in (tmp_path / 'out/check.html').read_text()
    (tmp_path / 'none').mkdir()
    status, _, said = main(f'--data_dir={tmp_path}/none', f'--model_dir={tmp_path}/other')
    assert status == 2 and 'must hold images' in said and not (tmp_path / 'other').exists()


def test_settings_of_training_are_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path / 'data', '0.png')
    status, _, said = main(f'--data_dir={tmp_path}/data', '--learning_rate=1')
    assert status == 2 and '--learning_rate is for training; found --mode=check' in said


def test_a_new_folder_is_made(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'data', *(f'{i}.png' for i in range(3)))
    status, shown, _ = main('--data_dir=data')
    (folder,) = (tmp_path / 'runs').iterdir()
    assert status == 0 and sorted(os.listdir(folder)) == ['check.html', 'check.json']
    assert f'runs/{folder.name}/check.html' in shown


def test_encoded_images_of_any_data_set_are_checked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples of no file of their own are named by their place; stored pixels are refused."""
    images = [np.asarray(image(seed)) for seed in (1, 2, 1)]
    encoded = [tf.io.encode_png(pixels).numpy() for pixels in images]
    tensors = {'files': tf.constant(encoded), 'pixels': tf.constant(np.stack(images))}

    def source(kind: str) -> Source:
        examples = tf.data.Dataset.from_tensor_slices({'image': tensors[kind], 'label': [0, 1, 1]})
        return Source(
            name=kind,
            num_classes=2,
            class_names=None,
            num_examples=lambda split: 3,
            examples=lambda split: examples,
            decode=lambda stored: tf.io.decode_png(stored, 3),
            splits=('train',),
        )

    monkeypatch.setattr(command, 'open_source', lambda config: source('files'))
    assert main(f'--model_dir={tmp_path}/out')[0] == 0
    found = json.loads((tmp_path / 'out/check.json').read_text())
    (group,) = found['duplicate_groups']
    assert [row['file'] for row in group['listed']] == ['train[0:1]', 'train[2:3]']
    assert found['classes'][1] == {'name': '1', 'images': {'train': 2}}
    monkeypatch.setattr(command, 'open_source', lambda config: source('pixels'))
    status, _, said = main(f'--model_dir={tmp_path}/other')
    assert status == 2 and 'found pixels, which stores pixels' in said


def test_an_interruption_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted(signal.SIGINT)

    data = tmp_path / 'data'
    write(data, *(f'{i}.png' for i in range(3)))
    monkeypatch.chdir(tmp_path)
    for name in ('summarize', '_pictures'):
        with monkeypatch.context() as patch:
            patch.setattr(command, name, interrupt)
            status, _, said = main(f'--data_dir={data}')
        assert status == 130 and 'Stopped by SIGINT' in said
        assert not (tmp_path / 'runs').exists()
    old = tmp_path / 'out'
    main(f'--data_dir={data}', f'--model_dir={old}')
    before = (old / 'check.html').read_bytes()
    monkeypatch.setattr(page, 'make_page', interrupt)
    assert main(f'--data_dir={data}', f'--model_dir={old}')[0] == 130
    assert (old / 'check.html').read_bytes() == before
    assert sorted(os.listdir(old)) == ['check.html', 'check.json']


def test_many_classes_and_groups_are_cut(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, '_CLASSES', 3)
    monkeypatch.setattr(page, '_GROUPS', 2)
    monkeypatch.setattr(page, '_ROWS', 2)
    data = tmp_path / 'data'
    write(data, *(f'{c}/{i}.png' for c in 'abcdefg' for i in range(2)))
    for name in 'abc':
        (data / name / 'again.png').write_bytes((data / name / '0.png').read_bytes())
    found, text, _ = check(data, '--holdout_fraction=0')
    words = Parsed(text).words
    assert found['duplicate_groups_in_all'] == len(found['duplicate_groups']) == 3
    assert '2 of 3 groups' in words and '1 more are in check.json' in words
    assert 'Some images of some of the classes.' in words
    samples = re.findall(r'<h3>(\w)</h3>', text)
    assert samples == ['a', 'd', 'g']
