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
import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import run
from app.check import command, page
from app.check.findings import Checked, groups_of
from common.interruption import Interrupted
from data.duplicates import Duplicates
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


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the pictures of the page, which take as long as the numbers."""
    monkeypatch.setattr(command, '_pictures', lambda *_: {})


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
    assert '44 of 44 images can be used: PNG 24, JPEG 20.\nNo problems were found.' in shown
    assert f'--mode=train_then_eval --data_dir={data} --model_dir=RUN' in shown
    assert 'there are no duplicates' in Parsed(text).words


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
    assert '2 of 26 files cannot be decoded (7.7%). Restore or remove them.' in notes(found)
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
    assert found['duplicates'] == [
        {'split': 'train', 'also_in': 'train', 'exact': 2, 'near': 2},
        {'split': 'train', 'also_in': 'test', 'exact': 2, 'near': 1},
        {'split': 'test', 'also_in': 'train', 'exact': 1, 'near': 1},
    ]
    told = ' '.join(notes(found))
    assert '2 images are in test and in train (1 exact, 1 near duplicates).' in told
    assert '3 images are in several classes (3 exact duplicates).' in told
    assert '4 images are in train more than once (2 exact, 2 near duplicates).' in told
    groups = [{row['file'] for row in each['listed']} for each in found['duplicate_groups']]
    assert groups == [
        {'train/x/3.png', 'test/x/leak.png', 'train/y/contradicts.png'},
        {'train/y/4.png', 'test/y/larger.jpg'},
        {'train/x/5.png', 'train/x/other.webp'},
    ]
    assert [each['different_files'] for each in found['duplicate_groups']] == [1, 2, 2]
    assert '3 exact duplicates in train and test, in several classes:' in Parsed(text).words


def test_what_is_wrong_with_classes(tmp_path: pathlib.Path, unseen: None) -> None:
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
    assert '1 image is of another format than the extension says, such as webp.png.' in told
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

    read, kept = command.read_all, []

    def read_once(*arguments: Any) -> Checked:
        """Each call is interrupted after the images are read."""
        kept.append(kept[0] if kept else read(*arguments))
        return kept[-1]

    monkeypatch.setattr(command, 'read_all', read_once)
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
    assert len(kept) == 4


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
    assert '3 groups of duplicates' in words and '1 more are in check.json' in words
    assert 'Some images of some of the classes.' in words
    assert '2 duplicates' not in words and words.count('2 exact duplicates in train:') == 2
    samples = re.findall(r'<h3>(\w)</h3>', text)
    assert samples == ['a', 'd', 'g']


def test_what_is_long_is_folded(tmp_path: pathlib.Path) -> None:
    data = tmp_path / 'data'
    write(data, *(f'{c:02}/{i}.png' for c in range(25) for i in range(2)))
    for c in range(21):
        (data / f'{c:02}' / 'again.png').write_bytes((data / f'{c:02}' / '0.png').read_bytes())
        (data / f'{c:02}' / 'empty.png').write_bytes(b'')
    found, text, _ = check(data, '--holdout_fraction=0')
    assert (found['damaged'], found['duplicate_groups_in_all']) == (21, 21)
    folded = re.findall(r'<summary>(.*?)</summary>', text)
    assert folded == ['5 more rows', '15 more classes', '1 more rows', '15 more groups']
    assert text.count('<details>') == text.count('</details>') == len(folded)


def test_chosen_splits_only_are_read(tmp_path: pathlib.Path, unseen: None) -> None:
    data = tmp_path / 'data'
    for number, split in enumerate(('train', 'test', 'extra')):
        write(data / split, *(f'a/{i}.png' for i in range(6)), seed=number)
    every = check(data)[0]['splits']
    assert {row['name']: row['images'] for row in every} == {'train': 6, 'test': 6, 'extra': 6}
    (only,) = check(data, '--train_split=train[:4]')[0]['splits']
    assert (only['name'], only['images']) == ('train[:4]', 4)


def test_labels_that_are_none_of_the_classes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = [tf.io.encode_png(np.asarray(image(seed))).numpy() for seed in range(4)]
    stored = {'image': [*encoded[:3], b''], 'label': tf.constant([0, 1, 5, 1])}
    source = Source(
        name='some',
        num_classes=2,
        class_names=('cat', 'dog'),
        num_examples=lambda split: 4,
        examples=lambda split: tf.data.Dataset.from_tensor_slices(stored),
        decode=lambda content: tf.io.decode_png(content, 3),
        splits=('train',),
    )
    monkeypatch.setattr(command, 'open_source', lambda config: source)
    assert main(f'--model_dir={tmp_path}/out')[0] == 0
    found = json.loads((tmp_path / 'out/check.json').read_text())
    counts = {row['name']: row['images']['train'] for row in found['classes']}
    assert counts == {'cat': 1, 'dog': 1, None: 1}
    assert found['damaged_files'][0]['class'] == 'dog'
    assert '1 image with a label that is none of the 2 classes.' in ' '.join(notes(found))


def test_classes_of_very_different_sizes_are_told(tmp_path: pathlib.Path, unseen: None) -> None:
    data = tmp_path / 'data'
    write(data, *(f'many/{i}.png' for i in range(100)), seed=1)
    write(data, *(f'few/{i}.png' for i in range(10)), seed=2)
    (told,) = notes(check(data)[0])
    assert told.startswith('Classes differ much in size, from few 10 to many 100.')
    (data / 'few' / '10.png').write_bytes((data / 'few' / '0.png').read_bytes())
    assert not [note for note in notes(check(data)[0]) if 'in size' in note]


def test_a_group_shows_one_image_of_each_split_first(tmp_path: pathlib.Path, unseen: None) -> None:
    data = tmp_path / 'data'
    write(data / 'train', 'a/0.png')
    write(data / 'test', *(f'a/{i}.png' for i in range(2)), seed=1)
    original = (data / 'train/a/0.png').read_bytes()
    for i in range(9):
        (data / f'train/a/again{i}.png').write_bytes(original)
    (data / 'test/a/leak.png').write_bytes(original)
    (group,) = check(data)[0]['duplicate_groups']
    assert [row['split'] for row in group['listed'][:3]] == ['train', 'test', 'train']


def test_groups_are_ranked_at_once() -> None:
    """Against a plain sort; 40,000 groups take a moment."""
    random = np.random.default_rng(0)
    count = 100_000
    group = random.integers(0, 60_000, count)
    split, label = random.integers(0, 2, count), random.integers(-1, 3, count)
    none = np.zeros([count, 2], bool)
    zeros = np.zeros([count], np.int64)
    checked = Checked(
        name='',
        summary='',
        classes='abc',
        splits=('train', 'test'),
        split=split,
        position=np.arange(count),
        label=label,
        wrong_labels=0,
        height=zeros + 1,
        width=zeros + 1,
        size=zeros,
        format=zeros.astype(str),
        reasons={},
        duplicates=Duplicates(np.arange(count), group, none, none, none[:, 0], none[:, 0], zeros),
        identify=lambda split, positions: list(map(str, positions)),
    )
    start = time.monotonic()
    found, total = groups_of(checked, 30)
    assert time.monotonic() - start < 2
    members: dict[int, list[int]] = {}
    for image, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(image)

    def rank(number: int) -> tuple[bool, bool, int, int]:
        images = members[number]
        labels = {label[image] for image in images} - {-1}
        return len(set(split[images])) < 2, len(labels) < 2, -len(images), number

    several = sorted((n for n in members if len(members[n]) > 1), key=rank)
    assert total == len(several)
    assert [sorted(images) for images in found] == [members[n] for n in several[:30]]
    for images in found:
        splits, labels = set(split[images]), set(label[images])
        assert set(split[images[: len(splits)]]) == splits
        assert set(label[images[: len(splits) + len(labels)]]) == labels
