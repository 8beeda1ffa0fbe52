"""A map of images: similar ones lie near each other, as small pictures that don't overlap."""

from __future__ import annotations

import collections
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from app.report.predictions import Picture, Sample, nearest
from data.sources import NO_LABEL

FEWEST = 10  # images; with fewer there is nothing to see
_PERPLEXITY = 30  # about how many neighbors an image should keep; the usual choice
_COMPONENTS = 50  # principal components that t-SNE starts from; the usual choice
_FREE = 0.7  # share of cells that stay empty, compared with those that are taken
# In pixels. The cells of a small map are larger, so that it is about as wide.
_WIDTH, _SMALLEST, _LARGEST = 1000, 40, 96
_BORDER, _GAP = 4, 4
# Okabe and Ito's palette, which color-blind people can distinguish, without black and yellow, which
# don't show on a dark or a light page; orange and light blue somewhat darker.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#c98a00', '#3fa2dd')
STYLES = ('solid', 'dashed', 'dotted')
OTHER = '#8c959f'


@dataclasses.dataclass(frozen=True)
class Mark:
    """The border of the images of a class.

    Attributes:
        color: such as '#0072b2'.
        style: one of STYLES.
    """

    color: str
    style: str


def marks_of(labels: Sequence[int]) -> dict[int, Mark]:
    """A mark for each of the most frequent labels, by label; others have none."""
    counted = collections.Counter(label for label in labels if label != NO_LABEL)
    most = [label for label, _ in counted.most_common(len(COLORS) * len(STYLES))]
    marks = (Mark(color, style) for style in STYLES for color in COLORS)
    return dict(zip(sorted(most), marks))


def positions(embeddings: np.ndarray) -> np.ndarray | None:
    """Points in the plane by t-SNE of the directions of embeddings, the same ones each time.

    Args:
        embeddings: [n, d] float.

    Returns:
        [n, 2] float; None if there are fewer than FEWEST, or they all point in one direction.
    """
    if len(embeddings) < FEWEST or not np.isfinite(embeddings).all():
        return None
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    if rows.std(axis=0).max() < 1e-6:
        return None
    # Sums of several threads differ in their last digits, and t-SNE amplifies that.
    with threadpool_limits(1):
        kept = min(_COMPONENTS, *rows.shape)
        rows = PCA(kept, svd_solver='full').fit_transform(rows)
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        start = 'pca' if kept > 1 else 'random'
        return TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(rows)


def cells(points: np.ndarray) -> np.ndarray:
    """Moves points to the cells of a square grid, one in each, as little as possible in total.

    Args:
        points: [n, 2] float.

    Returns:
        [n, 2] integers, column and row.
    """
    side = math.ceil(math.sqrt((1 + _FREE) * len(points)))
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.maximum(high - low, 1e-9) * (side - 1)  # [n, 2]
    grid = np.stack(np.meshgrid(range(side), range(side)), axis=-1).reshape(-1, 2)  # [side², 2]
    distances = np.square(scaled[:, None] - grid).sum(axis=-1)  # [n, side²]
    points_there, chosen = linear_sum_assignment(distances)
    return grid[chosen[np.argsort(points_there)]]


def same_class_nearest(sample: Sample) -> float | None:
    """Share of labeled images whose most similar other labeled one is of the same class.

    None if fewer than two have labels.
    """
    labels = np.array([picture.label for picture in sample.pictures])
    known = np.flatnonzero(labels != NO_LABEL)
    if len(known) < 2:
        return None
    rows, labels = sample.embeddings[known], labels[known]
    found, _ = nearest(rows, rows, 2)  # the image itself, and another one
    other = np.where(found[:, 0] == np.arange(len(known)), found[:, 1], found[:, 0])
    return float(np.mean(labels[other] == labels))


def draw(sample: Sample, places: np.ndarray) -> bytes:
    """The map as a WebP file with a transparent ground, `cell_size` pixels for each cell."""
    marks = marks_of([picture.label for picture in sample.pictures])
    cells_there = places.max(axis=0) + 1  # columns, rows
    cell = cell_size(int(cells_there.max()))
    canvas = Image.new('RGBA', tuple(int(size) for size in cells_there * cell))
    for picture, (column, row) in zip(sample.pictures, places.tolist()):
        tile = _tile(picture, marks.get(picture.label), cell - _GAP)
        canvas.paste(tile, (column * cell + _GAP // 2, row * cell + _GAP // 2))
    file = io.BytesIO()
    canvas.save(file, 'WEBP', quality=85, method=4)
    return file.getvalue()


def cell_size(side: int) -> int:
    """Pixels of a cell in a grid of `side` cells in width or height."""
    return min(_LARGEST, max(_SMALLEST, _WIDTH // side))


def _tile(picture: Picture, mark: Mark | None, size: int) -> Image.Image:
    """A picture with a border, `size` pixels square."""
    tile = Image.new('RGBA', (size, size))
    _draw_border(ImageDraw.Draw(tile), size, mark or Mark(OTHER, 'solid'))
    image = Image.fromarray(picture.pixels)
    factor = (size - 2 * _BORDER) / max(image.size)
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    image = image.resize(tuple(max(1, round(factor * length)) for length in image.size), how)
    tile.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return tile


def _draw_border(pen: ImageDraw.ImageDraw, size: int, mark: Mark) -> None:
    """Draws pieces along each side: one, dashes, or dots."""
    length, step = {'solid': (size, size), 'dashed': (8, 14), 'dotted': (4, 8)}[mark.style]
    for start in range(0, size, step):
        end = min(size, start + length) - 1
        for near in (0, size - _BORDER):
            far = near + _BORDER - 1
            pen.rectangle((start, near, end, far), fill=mark.color)
            pen.rectangle((near, start, far, end), fill=mark.color)
