"""Images that are there more than once, against all pairs compared one by one."""

from __future__ import annotations

import time

import numpy as np
import pytest

from data import duplicates
from data.duplicates import FARTHEST, OF_CONTRAST, PLAIN, find_duplicates


def contrast(look: np.ndarray) -> float:
    colors = look.astype(np.float64).reshape(-1, 3)
    return float((colors - colors.mean(axis=0)).std())


def look_the_same(one: np.ndarray, other: np.ndarray) -> bool:
    lower = min(contrast(one), contrast(other))
    apart = np.sqrt(np.mean((one.astype(np.float64) - other) ** 2))
    return lower >= PLAIN and apart <= min(FARTHEST, max(0.5, OF_CONTRAST * lower))


def images(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Contents, looks, splits and labels: files again, copies a little off, and plain images."""
    rng = np.random.default_rng(seed)
    originals = rng.integers(0, 256, (count // 3, 192))
    chosen = rng.integers(0, len(originals), count)
    noise = rng.normal(0, rng.choice([0, 1, 3, 5], [count, 1]), (count, 192))
    looks = np.clip(originals[chosen] + noise, 0, 255).astype(np.uint8)
    looks[: count // 10] = rng.choice([0, 255], [count // 10, 1])
    contents = np.stack([np.arange(count), np.arange(count)], axis=1)
    for again in rng.integers(0, count, count // 5):
        of = rng.integers(0, count)
        contents[again], looks[again] = contents[of], looks[of]
    # A file that was overwritten after it was copied is another file now.
    _, same = np.unique(np.concatenate([contents, looks], axis=1), axis=0, return_inverse=True)
    contents = np.stack([same.reshape(-1), same.reshape(-1)], axis=1)
    return contents, looks, rng.integers(0, 3, count), rng.integers(-1, 4, count)


@pytest.mark.parametrize('seed', [0, 1])
def test_it_finds_what_a_comparison_of_all_pairs_finds(seed: int) -> None:
    contents, looks, splits, labels = images(120, seed)
    found = find_duplicates(contents, looks, splits, labels, 3)
    counts = {'copied': 0, 'similar': 0}
    for i in range(len(looks)):
        copied, similar = np.zeros([3], bool), np.zeros([3], bool)
        elsewhere = {'copied': False, 'similar': False}
        for j in range(len(looks)):
            same = (contents[i] == contents[j]).all()
            other_class = labels[i] != labels[j] and min(labels[i], labels[j]) >= 0
            if i != j and same:
                copied[splits[j]] = True
                elsewhere['copied'] |= other_class
            elif i != j and look_the_same(looks[i], looks[j]):
                similar[splits[j]] = True
                elsewhere['similar'] |= other_class
                assert found.group[i] == found.group[j]
        np.testing.assert_array_equal(found.copied[i], copied)
        np.testing.assert_array_equal(found.similar[i], similar)
        assert found.copied_elsewhere[i] == elsewhere['copied']
        alone = elsewhere['similar'] and not elsewhere['copied']
        assert found.similar_elsewhere[i] == alone
        assert found.plain[i] == (contrast(looks[i]) < PLAIN)
        counts['copied'] += copied.any()
        counts['similar'] += similar.any()
    assert min(counts.values()) > 10


def test_groups_are_linked_images() -> None:
    looks = np.tile(np.arange(192, dtype=np.uint8), [5, 1])
    looks[1] += 3
    looks[2] += 6  # linked with the first one through the second
    looks[3] = 255 - looks[3]
    looks[4] = looks[3]
    contents = np.arange(5)[:, np.newaxis]
    group = find_duplicates(contents, looks, np.zeros([5], int), np.zeros([5], int), 1).group
    assert group[0] == group[1] == group[2] != group[3] == group[4]


def test_plain_images_are_not_taken_for_copies() -> None:
    looks = np.full([4, 192], 255, np.uint8)
    contents = np.array([[0], [1], [2], [2]])
    found = find_duplicates(contents, looks, np.array([0, 1, 1, 1]), np.array([0, 1, 1, 1]), 2)
    assert found.plain.all() and not found.similar.any() and not found.similar_elsewhere.any()
    assert found.copied.tolist() == [[False, False], [False, False], [False, True], [False, True]]
    assert len(set(found.group[:3].tolist())) == 3


def test_no_images_have_no_copies() -> None:
    none = np.zeros([0], np.int64)
    found = find_duplicates(np.zeros([0, 2], np.int64), np.zeros([0, 192], np.uint8), none, none, 2)
    assert found.copied.shape == (0, 2) and found.group.shape == (0,)


def test_frames_of_a_film_take_no_longer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images that all look the same, not every pair is compared."""
    rng, count = np.random.default_rng(0), 5000
    frame = rng.integers(50, 200, 192)
    looks = (frame + rng.integers(0, 3, (count, 192))).astype(np.uint8)
    splits = np.repeat([0, 1], count // 2)
    compared, compare = [], duplicates._look_the_same

    def counted(looks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        compared.append(len(pairs))
        return compare(looks, pairs)

    monkeypatch.setattr(duplicates, '_look_the_same', counted)
    begin = time.monotonic()
    found = find_duplicates(
        np.arange(count)[:, np.newaxis], looks, splits, np.zeros([count], int), 2
    )
    assert time.monotonic() - begin < 10
    assert 0 < sum(compared) < 40 * count  # of 2,500 times as many pairs as there are images
    assert found.similar.all()


def test_pictures_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_duplicates(*images(90), 3)
    monkeypatch.setattr(duplicates, '_AT_ONCE', 7)
    parts = find_duplicates(*images(90), 3)
    np.testing.assert_array_equal(whole.similar, parts.similar)
    np.testing.assert_array_equal(whole.plain, parts.plain)
