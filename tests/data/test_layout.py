"""Folders of images as people have them: what is understood, and what is said of it."""

from __future__ import annotations

import hashlib
import os
import pathlib
import random
import re
from collections.abc import Iterable

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from data.config import DataConfig
from data.sources import open_source
from data.sources.files import NO_CLASS, Files, Group, concatenate, files_of, hold_out
from data.sources.layout import Asked, Images, understand
from data.sources.listing import EXTENSIONS, list_images

PIXEL = np.full([1, 1, 3], 9, np.uint8)


def make(root: pathlib.Path, *paths: str) -> pathlib.Path:
    """Makes empty files; 'a/1-3.jpg' stands for a/1.jpg, a/2.jpg and a/3.jpg."""
    for path in paths:
        folder, name = os.path.split(path)
        stem, ending = os.path.splitext(name)
        first, dash, last = stem.partition('-')
        names = [f'{n}{ending}' for n in range(int(first), int(last) + 1)] if dash else [name]
        (root / folder).mkdir(parents=True, exist_ok=True)
        for each in names:
            (root / folder / each).write_bytes(b'')
    return root


def images_of(*roots: pathlib.Path, **asked: object) -> Images:
    return understand([list_images(str(root)) for root in roots], Asked(**asked))


def found_in(images: Images) -> dict[str, dict[str, str | None]]:
    """Split → path → name of the class."""
    names = [*images.classes, None]
    return {
        split: {
            os.fsdecode(path): names[label]
            for path, label in zip(files.relative(), files.labels.tolist(), strict=True)
        }
        for split, files in images.splits.items()
    }


def paths_of(files: Files) -> list[str]:
    return [os.fsdecode(path) for path in files.relative()]


# --- layouts


def test_split_folders_with_class_folders(tmp_path):
    make(tmp_path, 'train/cat/1.jpg', 'train/dog/2.PNG', 'val/cat/3.jpg', 'extra/owl/4.jpg')
    images = images_of(tmp_path)
    assert images.classes == ('cat', 'dog', 'owl')
    assert found_in(images) == {
        'train': {'train/cat/1.jpg': 'cat', 'train/dog/2.PNG': 'dog'},
        'val': {'val/cat/3.jpg': 'cat'},
        'extra': {'extra/owl/4.jpg': 'owl'},
        'validation': {'val/cat/3.jpg': 'cat'},
    }
    assert images.summary == (
        f'{tmp_path}: split folders; 4 images; 3 classes (cat 2, dog 1, owl 1); splits extra 1, '
        'train 2, val 1; validation is the split val'
    )


@pytest.mark.parametrize(
    ('there', 'taken'),
    [
        (['val', 'valid', 'test'], 'val'),
        (['valid', 'test'], 'valid'),
        (['test'], 'test'),
        (['Test'], 'Test'),
        (['validation', 'val'], 'validation'),
    ],
)
def test_what_validation_stands_for(tmp_path, there, taken):
    make(tmp_path, 'train/a/1-9.jpg', *(f'{name}/a/{name}.jpg' for name in there))
    images = images_of(tmp_path)
    assert paths_of(images.splits['validation']) == [f'{taken}/a/{taken}.jpg']
    assert (f'validation is the split {taken}' in images.summary) == (taken != 'validation')
    assert len(images.splits['train']) == 9


def test_a_training_folder_of_another_name(tmp_path):
    make(tmp_path, 'Training/a/1-3.jpg', 'Validation/a/4.jpg')
    images = images_of(tmp_path)
    assert paths_of(images.splits['validation']) == ['Validation/a/4.jpg']
    assert len(images.splits['train']) == 3
    assert 'train is the split Training; validation is the split Validation' in images.summary


def test_named_splits_are_found_whatever_they_are_called(tmp_path):
    make(tmp_path, 'monday/a/1.jpg', 'tuesday/a/2.jpg')
    images = images_of(tmp_path, train=('monday',), evaluation=('tuesday',))
    assert {split: len(files) for split, files in images.splits.items()} == {
        'monday': 1,
        'tuesday': 1,
    }


def test_class_folders_are_held_out_from_by_class(tmp_path):
    make(tmp_path, 'cat/1-30.jpg', 'dog/1-12.jpg', 'owl/1-2.jpg', 'yak/1.jpg')
    images = images_of(tmp_path)
    assert images.classes == ('cat', 'dog', 'owl', 'yak')
    held = np.bincount(images.splits['validation'].labels, minlength=4)
    assert held.tolist() == [3, 1, 1, 0]  # the only one of a class stays
    kept = np.bincount(images.splits['train'].labels, minlength=4)
    assert kept.tolist() == [27, 11, 1, 1]
    assert images.summary == (
        f'{tmp_path}: class folders; 45 images; 4 classes (cat 30, dog 12, owl 2, yak 1); '
        '5 of train are held out as validation (--holdout_fraction=0.1)'
    )
    halves = images_of(tmp_path, fraction=0.5).splits
    assert (len(halves['train']), len(halves['validation'])) == (23, 22)
    assert set(images_of(tmp_path, fraction=0).splits) == {'train'}


def test_a_split_folder_alone_is_held_out_from(tmp_path):
    make(tmp_path, 'train/cat/1-10.jpg', 'train/dog/1-10.jpg')
    images = images_of(tmp_path)
    assert (len(images.splits['train']), len(images.splits['validation'])) == (18, 2)
    assert '2 of train are held out as validation' in images.summary
    # Slices of it need none, and no other name is taken for one.
    assert set(images_of(tmp_path, evaluation=('train',)).splits) == {'train'}
    assert len(images_of(tmp_path, evaluation=('test',)).splits['test']) == 2


def slowly_held(paths: Iterable[str], count: int) -> list[str]:
    def digest(path: str) -> int:
        hashed = hashlib.blake2b(path.encode(), digest_size=8).digest()
        return int.from_bytes(hashed, 'little')

    return sorted(sorted(paths, key=digest)[:count])


def test_the_same_files_are_held_out_in_whatever_order_they_come():
    names = [f'{n}.jpg' for n in range(40)]
    for seed in range(3):
        mixed = random.Random(seed).sample(names, 40)
        files = files_of([Group('/x/a', 'a', '/'.join(mixed), 0)])
        kept, held = hold_out(files, 0.25)
        assert sorted(paths_of(held)) == slowly_held((f'a/{name}' for name in names), 10)
        assert sorted(paths_of(kept) + paths_of(held)) == sorted(f'a/{name}' for name in names)
        assert paths_of(kept) == [f'a/{n}' for n in mixed if f'a/{n}' in set(paths_of(kept))]


def test_first_folders_are_the_classes_however_deep_images_lie(tmp_path):
    make(tmp_path, 'cat/1.jpg', 'cat/2020/may/2.jpg', 'dog/a/b/c/3.jpg')
    (found,) = found_in(images_of(tmp_path, fraction=0)).values()
    assert found == {'cat/1.jpg': 'cat', 'cat/2020/may/2.jpg': 'cat', 'dog/a/b/c/3.jpg': 'dog'}
    make(tmp_path / 'split', 'train/cat/1.jpg', 'train/cat/x/y/2.jpg', 'test/cat/z/3.jpg')
    found = found_in(images_of(tmp_path / 'split'))
    assert found['train'] == {'train/cat/1.jpg': 'cat', 'train/cat/x/y/2.jpg': 'cat'}
    assert found['test'] == {'test/cat/z/3.jpg': 'cat'}


@pytest.mark.parametrize(
    ('paths', 'words'),
    [
        (['1-4.jpg'], 'images without classes; 4 images'),
        (['1.jpg', 'a/2-3.jpg', 'b/c/4.jpg'], 'without classes, some of them beside 2 folders'),
        (['all/1-4.jpg'], 'without classes; 4 images.*all are in the folder all$'),
        (['all/a/1-2.jpg', 'all/b/3-4.jpg'], 'for its folders as classes give --data_dir=.*/all$'),
    ],
)
def test_images_without_classes(tmp_path, paths, words):
    images = images_of(make(tmp_path, *paths), fraction=0)
    assert images.classes == ()
    assert images.splits['train'].labels.tolist() == [NO_CLASS] * 4
    assert re.search(words, images.summary), images.summary


def test_unlabeled_images_are_held_out_too(tmp_path):
    images = images_of(make(tmp_path, '1-20.jpg'))
    assert (len(images.splits['train']), len(images.splits['validation'])) == (18, 2)


def test_splits_may_lie_in_a_folder_of_their_own(tmp_path):
    """As archives are unpacked."""
    make(tmp_path, 'pets/train/cat/1.jpg', 'pets/test/cat/2.jpg', 'pets/train/none/x.txt')
    images = images_of(tmp_path)
    assert images.classes == ('cat',)
    assert paths_of(images.splits['test']) == ['test/cat/2.jpg']
    assert images.splits['test'].paths() == [os.fsencode(tmp_path / 'pets/test/cat/2.jpg')]
    assert 'class folder without images: train/none' in images.summary


def test_several_folders_are_one_data_set(tmp_path):
    make(tmp_path / 'one', 'train/cat/1.jpg', 'val/cat/2.jpg')
    make(tmp_path / 'two', 'dog/1-2.jpg', 'cat/3.jpg')
    images = images_of(tmp_path / 'one', tmp_path / 'two')
    assert images.classes == ('cat', 'dog')
    found = found_in(images)
    assert found['train'] == {
        'train/cat/1.jpg': 'cat',
        'cat/3.jpg': 'cat',
        'dog/1.jpg': 'dog',
        'dog/2.jpg': 'dog',
    }
    assert found['val'] == {'val/cat/2.jpg': 'cat'}
    assert images.summary.startswith(f'{tmp_path}/one, {tmp_path}/two: split folders, class')


def test_every_ending_is_an_image_in_any_case(tmp_path):
    names = [f'{n}{ending}' for n, ending in enumerate(EXTENSIONS)]
    make(tmp_path, *names, *(name.upper() for name in names), 'x.txt', 'y.jpg.part')
    assert len(images_of(tmp_path, fraction=0).splits['train']) == 2 * len(EXTENSIONS)


def in_today_s_order(root: pathlib.Path, split: str) -> list[str]:
    """As runs were trained until now: classes and files sorted, then mixed by the split's name."""
    paths = []
    for name in sorted(os.listdir(root / split)):
        paths += [f'{split}/{name}/{file}' for file in sorted(os.listdir(root / split / name))]
    random.Random(split.encode()).shuffle(paths)
    return paths


def test_the_order_of_split_folders_is_what_it_was(tmp_path):
    make(tmp_path, 'train/b/1-9.jpg', 'train/B/10-30.png', 'train/a b/1-5.jpg', 'test/b/7-9.jpg')
    images = images_of(tmp_path)
    for split in ('train', 'test'):
        assert paths_of(images.splits[split]) == in_today_s_order(tmp_path, split)


def test_files_are_what_a_list_of_them_would_be():
    groups = [Group('/r/a', 'a', 'x.jpg/é.png', 1), Group('/r', '', 'n\n.jpg', -1)]
    files = files_of(groups)
    assert paths_of(files) == ['a/x.jpg', 'a/é.png', 'n\n.jpg']
    assert files.paths() == [os.fsencode(f'/r/{path}') for path in paths_of(files)]
    both = concatenate([files.take(slice(1, 3)), files.take(np.array([0]))])
    assert paths_of(both) == ['a/é.png', 'n\n.jpg', 'a/x.jpg']
    assert both.labels.tolist() == [1, -1, 1]
    assert len(files_of([]).shuffled(b'x')) == 0


# --- what is left alone, and told


def test_what_is_left_alone_is_counted(tmp_path):
    make(tmp_path, 'cat/1-5.jpg', 'dog/6-9.jpg', 'dog/a.txt', 'b.TXT', '.DS_Store', 'dog/.x.jpg')
    make(tmp_path, '.git/x.jpg', '__MACOSX/cat/y.jpg', 'README', 'owl/none.csv')
    (tmp_path / 'dog' / 'gone.jpg').symlink_to(tmp_path / 'nothing')
    (tmp_path / 'dog' / 'itself.jpg').symlink_to(tmp_path / 'dog' / 'itself.jpg')
    os.mkfifo(tmp_path / 'dog' / 'pipe.jpg')
    images = images_of(tmp_path, fraction=0)
    assert len(images.splits['train']) == 9
    told = images.summary.split('; ')
    assert told[3:] == [
        'class folder without images: owl',
        'left alone: 6 other files (.txt, .DS_Store, .csv, hidden, …), 3 broken links or special '
        'files, 2 hidden folders',
    ]


def test_links_are_followed_once_and_never_back(tmp_path):
    make(tmp_path / 'data', 'a/1.jpg', 'b/2.jpg')
    make(tmp_path / 'elsewhere', '3.jpg', 'deep/4.jpg')
    data = tmp_path / 'data'
    (data / 'a' / 'loop').symlink_to(data)
    (data / 'a' / 'up').symlink_to(tmp_path)
    (data / '0').symlink_to(data / 'b')  # comes first by name, and is not the folder itself
    (data / 'c').symlink_to(tmp_path / 'elsewhere')
    (data / 'd').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'again').symlink_to(tmp_path / 'elsewhere')
    (data / 'b' / '5.jpg').symlink_to(data / 'a' / '1.jpg')  # a link to a file is a file
    images = images_of(data, fraction=0)
    (found,) = found_in(images).values()
    assert '0 is a link to b and left alone' in images.summary
    expected = {'a': ['1'], 'b': ['2', '5'], 'c': ['3', 'deep/4']}
    assert found == {f'{c}/{n}.jpg': c for c, names in expected.items() for n in names}
    assert images.summary.endswith(
        'left alone: 1 folder that is read already, 3 links that lead back'
    )
    linked = tmp_path / 'linked'
    linked.symlink_to(data)
    assert found_in(images_of(linked, fraction=0))['train'] == found


def test_a_split_may_be_a_link_to_another(tmp_path):
    make(tmp_path, 'train/a/1-3.jpg', 'test/a/4-9.jpg', 'test/b/1-5.jpg')
    (tmp_path / 'val').symlink_to('test')
    images = images_of(tmp_path)
    assert sorted(paths_of(images.splits['validation'])) == sorted(
        path.replace('test/', 'val/') for path in paths_of(images.splits['test'])
    )
    assert paths_of(images.splits['val']) == in_today_s_order(tmp_path, 'val')
    assert 'left alone' not in images.summary
    make(tmp_path / 'x', '.hidden/a/1.jpg', 'test/a/2.jpg')
    (tmp_path / 'x' / 'train').symlink_to('.hidden')
    assert paths_of(images_of(tmp_path / 'x').splits['train']) == ['train/a/1.jpg']


def test_classes_that_differ_by_case_are_told(tmp_path):
    images = images_of(make(tmp_path, 'Cat/1.jpg', 'cat/2.jpg', 'dog/3.jpg'), fraction=0)
    assert images.classes == ('Cat', 'cat', 'dog')
    assert 'classes Cat and cat differ by upper and lower case only' in images.summary


def test_the_folder_of_a_split_is_told_as_such(tmp_path):
    make(tmp_path, 'train/cat/1.jpg', 'train/dog/2.jpg', 'test/cat/3.jpg')
    images = images_of(tmp_path / 'train')
    assert images.classes == ('cat', 'dog')
    assert f'for the splits beside it give --data_dir={tmp_path}' in images.summary


# --- what is refused


@pytest.mark.parametrize(
    ('paths', 'words'),
    [
        ([], r'found no such images\. Give'),
        (['a/x.txt', 'a/b/y.md'], r'found no such images, but 2 other files \(\.md, \.txt\)\.'),
        (
            ['val/a/1.jpg', 'test/a/2.jpg'],
            "images in a folder 'train' beside test, val; found none",
        ),
        (['train/a/x.txt', 'test/a/2.jpg'], "in a folder 'train' beside test; found none"),
        (['train/a/1.jpg', 'train/2.jpg'], r'found both, such as .*/train/2\.jpg'),
    ],
)
def test_what_cannot_be_understood_is_one_line(tmp_path, paths, words):
    with pytest.raises(UserError, match=words) as error:
        images_of(make(tmp_path, *paths))
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    make(tmp_path, 'a/b/1.jpg', 'c/2.jpg')
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('b'):
            raise PermissionError(13, 'Permission denied', path)
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UserError, match=r'a/b must be a folder that can be listed.*denied'):
        images_of(tmp_path)


# --- as a source


def write_images(root: pathlib.Path, *paths: str) -> pathlib.Path:
    for path in make(root, *paths).rglob('*.png'):
        path.write_bytes(tf.io.encode_png(PIXEL).numpy())
    return root


def test_a_source_of_several_folders_and_slices(tmp_path):
    write_images(tmp_path / 'a', 'cat/1-10.png')
    write_images(tmp_path / 'b, c', 'cat/1-4.png', 'dog/1-6.png')
    config = DataConfig(dataset='image_folder', data_dir=f'{tmp_path}/a, {tmp_path}/d')
    write_images(tmp_path / 'd', 'train/dog/1-6.png', 'val/dog/7.png')
    source = open_source(config)
    assert source.num_examples('train+validation') == 17
    assert len(list(source.examples('train[10:]+validation'))) == 7
    assert read_labels_of(source, 'validation') == [1]
    inside = DataConfig(dataset='image_folder', data_dir=f'{tmp_path}/d,{tmp_path}/d/train')
    with pytest.raises(UserError, match=r'no such images, but 1 folder that is read already\.'):
        open_source(inside)
    single = DataConfig(dataset='image_folder', data_dir=f'{tmp_path}/b, c')
    assert open_source(single).num_examples('train') == 8
    assert str(tmp_path) in open_source(single).summary


def read_labels_of(source, split: str) -> list[int]:
    (labels,) = source.labels(split)
    examples = source.examples(split)
    assert labels.tolist() == [int(example['label']) for example in examples]
    return labels.tolist()


def test_names_of_any_bytes_are_held_out_alike(tmp_path):
    root = os.fsencode(tmp_path)
    for name in (b'caf\xe9', b'a\n"b'):
        os.mkdir(os.path.join(root, name))
        for number in range(10):
            with open(os.path.join(root, name, b"%d\xff\n'.png" % number), 'wb') as file:
                file.write(tf.io.encode_png(PIXEL).numpy())
    source = open_source(DataConfig(dataset='image_folder', data_dir=str(tmp_path)))
    assert (source.num_examples('train'), source.num_examples('validation')) == (18, 2)
    assert source.class_names == ('a\\n"b', 'caf\\xe9')
    assert '\n' not in source.summary and source.summary.isprintable()
    for raw in source.with_contents(source.examples('train+validation')):
        assert source.decode(raw['image']).shape == [1, 1, 3]


def test_a_place_that_is_no_folder_is_named(tmp_path):
    make(tmp_path, 'a/1.jpg')
    config = DataConfig(dataset='image_folder', data_dir=f'{tmp_path}/a,{tmp_path}/gone')
    with pytest.raises(UserError, match=f'found {tmp_path}/gone, which is no folder'):
        open_source(config)
