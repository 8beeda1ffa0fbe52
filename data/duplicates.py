"""Finds images that are there more than once: the same file again, or one that looks the same.

Two images look the same if, reduced to 8 x 8 pixels, they differ by little, compared with the
largest value and with their own contrast. So copies in another size or quality are found; crops and
mirror images are not.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse, spatial

FARTHEST = 4.0  # root mean square of the differences of values up to 255
OF_CONTRAST = 0.1  # the same, as a share of the contrast of either image
PLAIN = 1.0  # an image of less contrast, standard deviation of its values, is of a single color
_ROUNDING = 0.5  # of values; less does not tell images apart
# Only so many neighbors of an image are looked at in each split. So many images that all look the
# same, such as the frames of a film, cost no more than others.
_NEIGHBORS = 16
_DIMENSIONS = 16  # principal components, in which neighbors are searched
_SAMPLED, _AT_ONCE = 20_000, 16_384


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Which of n images are copies of each other, or look the same, in s splits.

    Attributes:
        content: [n] int64, equal for images whose files are the same.
        group: [n] int64, equal for images that are linked by looking the same, maybe through
            others.
        copied: [n, s] bool, whether a split has another image that is the same file.
        similar: [n, s] bool, whether a split has an image that looks the same, but is another file.
        copied_elsewhere: [n] bool, whether an image of another class is the same file.
        similar_elsewhere: [n] bool, whether an image of another class looks the same, but is
            another file.
        plain: [n] bool, whether an image is of a single color; it is like no other file then.
    """

    content: np.ndarray
    group: np.ndarray
    copied: np.ndarray
    similar: np.ndarray
    copied_elsewhere: np.ndarray
    similar_elsewhere: np.ndarray
    plain: np.ndarray


def find_duplicates(
    contents: np.ndarray, looks: np.ndarray, splits: np.ndarray, labels: np.ndarray, count: int
) -> Duplicates:
    """Compares all images with each other.

    Args:
        contents: [n, k] int64, a hash of each file.
        looks: [n, d] uint8, each image reduced to a few pixels.
        splits: [n] integers from 0 on.
        labels: [n] integers, negative for none.
        count: number of splits.
    """
    _, first, content = np.unique(contents, axis=0, return_index=True, return_inverse=True)
    content = content.reshape(-1)
    plain = _contrast(looks[first]) < PLAIN
    # Some files have the very same look, which is searched once.
    distinct, look_of_content = _distinct(looks[first], plain)
    kinds, look = int(look_of_content.max(initial=-1)) + 1, look_of_content[content]

    files = _counts(content, splits, len(first), count)  # [contents, s]
    copied = files[content] - np.eye(count, dtype=np.int64)[splits] > 0
    lowest, highest = range_by_kind(content, labels, len(first))
    copied_elsewhere = _is_elsewhere(labels, lowest[content], highest[content])

    contents_of_look = np.zeros([kinds, count], np.int64)
    np.add.at(contents_of_look, look_of_content, files > 0)
    edges = _edges(distinct, contents_of_look[: len(distinct)] > 0)  # [m, 2]
    beside = np.zeros([kinds, count], bool)
    for one, other in (edges.T, edges.T[::-1]):
        np.logical_or.at(beside, one, contents_of_look[other] > 0)
    others = contents_of_look[look] - (files[content] > 0) > 0
    low, high = _with_neighbors(*range_by_kind(look, labels, kinds), edges)
    return Duplicates(
        content=content,
        group=_components(kinds, edges)[look],
        copied=copied,
        similar=others | beside[look],
        copied_elsewhere=copied_elsewhere,
        similar_elsewhere=_is_elsewhere(labels, low[look], high[look]) & ~copied_elsewhere,
        plain=plain[content],
    )


def _distinct(rows: np.ndarray, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, and the number of each row among them.

    Args:
        rows: [n, d] uint8.
        alone: [n] bool, of rows that get a number of their own behind those of all others.
    """
    others = np.ascontiguousarray(rows[~alone])
    whole = others.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    number = np.empty([len(rows)], np.int64)
    number[~alone] = inverse.reshape(-1)
    number[alone] = len(first) + np.arange(alone.sum())
    return others[first], number


def _counts(content: np.ndarray, splits: np.ndarray, contents: int, count: int) -> np.ndarray:
    """How many images of each content each split has, [contents, count]."""
    found = np.bincount(content * count + splits, minlength=contents * count)
    return found.reshape(contents, count)


def range_by_kind(
    kind: np.ndarray, values: np.ndarray, kinds: int
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each kind; of those without one, lowest > highest.

    Args:
        kind: [n] integers from 0 on.
        values: [n] integers; negative ones do not count.
        kinds: their number k.

    Returns:
        Two arrays, [k] int64.
    """
    low = np.full([kinds], np.iinfo(np.int64).max)
    high = np.full([kinds], -1, np.int64)
    known = values >= 0
    np.minimum.at(low, kind[known], values[known])
    np.maximum.at(high, kind[known], values[known])
    return low, high


def _with_neighbors(
    low: np.ndarray, high: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    lowest, highest = low.copy(), high.copy()
    for one, other in (edges.T, edges.T[::-1]):
        np.minimum.at(lowest, one, low[other])
        np.maximum.at(highest, one, high[other])
    return lowest, highest


def _is_elsewhere(labels: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (labels >= 0) & ((low < labels) | (high > labels))


def _edges(looks: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Pairs of looks that are the same to the eye, [m, 2], each once.

    Distances between principal components are at most those between looks, so that no pair is
    missed for searching them instead.

    Args:
        looks: [n, d] uint8.
        present: [n, s] bool, which splits have it.
    """
    if not len(looks):
        return np.zeros([0, 2], np.int64)
    points = _components_of(looks)
    radius = FARTHEST * np.sqrt(looks.shape[1])
    found = [np.zeros([0, 2], np.int64)]
    for members in map(np.flatnonzero, present.T):
        if not len(members):
            continue
        tree = spatial.cKDTree(points[members])
        for start in range(0, len(looks), _AT_ONCE):
            part = points[start : start + _AT_ONCE]
            _, near = tree.query(
                part, k=_NEIGHBORS + 1, distance_upper_bound=1.001 * radius, workers=-1
            )
            row, column = np.nonzero(near < len(members))
            pairs = np.stack([row + start, members[near[row, column]]], axis=1)
            pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
            found.append(pairs[_look_the_same(looks, pairs)])
    return np.unique(np.concatenate(found), axis=0)


def _components_of(looks: np.ndarray) -> np.ndarray:
    """[n, d] uint8 → [n, _DIMENSIONS] float32, the directions in which they differ most."""
    sample = looks[:: max(1, len(looks) // _SAMPLED)].astype(np.float64)
    mean = sample.mean(axis=0)
    centered = sample - mean
    _, directions = np.linalg.eigh(centered.T @ centered)
    directions = directions[:, -_DIMENSIONS:].astype(np.float32)
    parts = (looks[at : at + _AT_ONCE] for at in range(0, len(looks), _AT_ONCE))
    return np.concatenate([(part - mean.astype(np.float32)) @ directions for part in parts])


def _look_the_same(looks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[m] bool, of [m, 2] pairs."""
    found = [np.zeros([0], bool)]
    for start in range(0, len(pairs), _AT_ONCE):
        one, other = (looks[side] for side in pairs[start : start + _AT_ONCE].T)
        apart = np.sqrt(np.mean((one.astype(np.float32) - other) ** 2, axis=1))
        contrast = np.minimum(_contrast(one), _contrast(other))
        found.append(apart <= np.clip(OF_CONTRAST * contrast, _ROUNDING, FARTHEST))
    return np.concatenate(found)


def _contrast(looks: np.ndarray) -> np.ndarray:
    """The standard deviation of each image's values from its mean color; [n, d] → [n]."""
    found = [np.zeros([0], np.float32)]
    for start in range(0, len(looks), _AT_ONCE):
        colors = (
            looks[start : start + _AT_ONCE].astype(np.float32).reshape(-1, looks.shape[1] // 3, 3)
        )
        found.append((colors - colors.mean(axis=1, keepdims=True)).std(axis=(1, 2)))
    return np.concatenate(found)


def _components(count: int, edges: np.ndarray) -> np.ndarray:
    """[count], the number of the connected component that each node is in."""
    ones = np.ones([len(edges)], bool)
    graph = sparse.coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(count, count))
    return sparse.csgraph.connected_components(graph, directed=False)[1].astype(np.int64)
