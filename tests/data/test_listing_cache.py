"""A listing that is kept says what a listing from scratch says."""

from __future__ import annotations

import json
import os
import pathlib
import time

import pytest

from data.sources import listing_cache
from data.sources.listing import list_images, scan_local
from data.sources.listing_cache import cache_file, list_with_cache
from tests.data.test_layout import make


@pytest.fixture
def images(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Folders that nothing was changed in of late."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(listing_cache, 'KEPT_FROM', 3)
    root = make(tmp_path / 'images', 'a/1-3.jpg', 'a/x.txt', 'b/c/é.png', 'b/.hidden/x')
    with open(os.path.join(os.fsencode(root), b'b', b'caf\xe9\n.jpg'), 'wb'):
        pass
    settle(root)
    return root


def settle(root: pathlib.Path) -> None:
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 60, time.time() - 60))


class Scan:
    """Lists folders, and notes which."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def __call__(self, folder: str):
        self.folders.append(os.path.basename(folder))
        return scan_local(folder)


def listed(root: pathlib.Path) -> list[str]:
    """The folders that are listed, when the outcome is what it is from scratch."""
    scan = Scan()
    assert list_with_cache(str(root), scan) == list_images(str(root))
    return sorted(scan.folders)


def test_a_second_run_lists_nothing(images):
    assert listed(images) == ['a', 'b', 'c', 'images']
    before = pathlib.Path(cache_file(str(images))).stat().st_mtime_ns
    assert listed(images) == []
    assert pathlib.Path(cache_file(str(images))).stat().st_mtime_ns == before
    link = images.parent / 'link'
    link.symlink_to(images)
    assert listed(link) == []


@pytest.mark.parametrize('change', ['added', 'removed', 'renamed', 'folder', 'link'])
def test_only_what_changed_is_listed_again(images, change):
    listed(images)
    if change == 'added':
        make(images, 'a/4.jpg')
    elif change == 'removed':
        (images / 'a' / '2.jpg').unlink()
    elif change == 'renamed':
        (images / 'a' / '2.jpg').rename(images / 'a' / '5.jpg')
    elif change == 'folder':
        make(images, 'a/new/1.jpg')
    else:
        (images / 'a' / 'link').symlink_to(make(images.parent / 'other', '9.jpg'))
    new = {'folder': ['a', 'new'], 'link': ['a', 'link']}.get(change, ['a'])
    assert listed(images) == new
    # What has just changed may do so again within the same tick of the clock.
    assert listed(images) == new
    settle(images)
    settle(images.parent / 'other')
    listed(images)
    assert listed(images) == (['a'] if change == 'link' else [])


def test_a_folder_that_is_gone_is_forgotten(images):
    listed(images)
    (images / 'b' / 'c' / 'é.png').unlink()
    (images / 'b' / 'c').rmdir()
    assert listed(images) == ['b']
    kept = json.loads(pathlib.Path(cache_file(str(images))).read_text())
    assert set(kept['folders']) == {'.', 'a'}


@pytest.mark.parametrize('content', ['', '[]', '{"format": 1, "folders": {"a": [[1], 2, 3, 4]}}'])
def test_what_is_kept_may_be_damaged(images, content):
    listed(images)
    pathlib.Path(cache_file(str(images))).write_text(content)
    assert listed(images) == ['a', 'b', 'c', 'images']
    assert listed(images) == []


def test_where_nothing_can_be_kept_it_is_listed_each_time(images, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(images / 'a' / '1.jpg'))
    for _ in range(2):
        assert listed(images) == ['a', 'b', 'c', 'images']


def test_small_folders_leave_nothing_behind(images, monkeypatch):
    monkeypatch.setattr(listing_cache, 'KEPT_FROM', 6)
    listed(images)
    assert not (images.parent / 'cache').exists()
