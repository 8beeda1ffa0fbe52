"""Files for TensorBoard's projector: some of the embeddings, with names and one image of all."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np
import pyarrow as pa
import pyarrow.csv
import tensorflow as tf
from PIL import Image

from app.inference.application import Application
from app.inference.parts import Parts
from common.errors import printable
from tf2.files import write_text, written_whole

MOST_IMAGES = 10_000
MOST_NUMBERS = 5_000_000  # in all vectors; TensorBoard reads them as text
LARGEST_SPRITE = 8192  # pixels of its sides, TensorBoard's own limit
THUMBNAIL = 64  # largest height and width of an image, in pixels
FOLDER = 'projector'
CONFIG_FILE = 'projector_config.pbtxt'  # where TensorBoard looks for it
_CONFIG = """\
embeddings {{
  tensor_name: "{name}"
  tensor_path: "{folder}/vectors.tsv"
  metadata_path: "{folder}/metadata.tsv"
  sprite {{
    image_path: "{folder}/sprite.jpg"
    single_image_dim: {size}
    single_image_dim: {size}
  }}
}}
"""


@dataclasses.dataclass(frozen=True)
class Shown:
    """Which examples are shown: evenly spaced ones, all if they are few.

    Attributes:
        examples: number of all examples.
        width: numbers in an embedding.
    """

    examples: int
    width: int

    @property
    def spacing(self) -> int:
        """Every so manyth example is shown."""
        most = min(MOST_IMAGES, max(1, MOST_NUMBERS // self.width))
        return max(1, -(-self.examples // most))

    def chosen(self, places: np.ndarray) -> np.ndarray:
        """Whether examples, given by their numbers [n], are shown: [n] bool."""
        return places % self.spacing == 0


def thumbnails(images: tf.Tensor) -> tf.Tensor:
    """[b, s, s, 3] float32 in [0, 1], reduced by a whole factor to at most `THUMBNAIL` pixels."""
    # Unlike a resizing by areas, this runs on every device.
    factor = -(-images.shape[1] // THUMBNAIL)
    return tf.nn.avg_pool2d(images, factor, factor, 'VALID') if factor > 1 else images


def write(app: Application, parts: Parts) -> None:
    """Writes the files below the model folder."""
    model_dir = app.config.output.model_dir
    folder = os.path.join(model_dir, FOLDER)
    tf.io.gfile.makedirs(folder)
    places, labels, vectors, pictures = _chosen(parts)
    with written_whole(f'{folder}/vectors.tsv') as path:
        _write_vectors(path, vectors)
    write_text(f'{folder}/metadata.tsv', _metadata(app, places, labels))
    with written_whole(f'{folder}/sprite.jpg') as path:
        Image.fromarray(sprite(pictures)).save(path, 'JPEG', quality=90)
    size = pictures.shape[1]
    name = app.config.inference.layer or 'final_avg_pool'
    write_text(f'{model_dir}/{CONFIG_FILE}', _CONFIG.format(name=name, folder=FOLDER, size=size))


def _chosen(parts: Parts) -> list[np.ndarray]:
    """Places [n], labels [n], vectors [n, d] and thumbnails [n, s, s, 3] of what is shown."""
    found: list[list[np.ndarray]] = []
    for rows in parts.read(['pictured', 'place', 'label', 'vector', 'thumbnail']):
        shown = rows['pictured']
        columns = [rows[key][shown] for key in ('place', 'label', 'vector')]
        found.append([*columns, rows['thumbnail']])
    return [np.concatenate(column) for column in zip(*found, strict=True)]


def _write_vectors(path: str, vectors: np.ndarray) -> None:
    """A line for each row of [n, d]; each number has as many digits as tell it from others."""
    columns = [pa.array(column) for column in np.ascontiguousarray(vectors.T)]
    table = pa.table(columns, names=[str(number) for number in range(len(columns))])
    options = pa.csv.WriteOptions(include_header=False, delimiter='\t')
    pa.csv.write_csv(table, path, options)


def _metadata(app: Application, places: np.ndarray, labels: np.ndarray) -> str:
    """A heading and a line for each image; names can't end a line or a column."""
    splits, files = app.names(places)
    classes = app.class_names or ()
    lines = ['class\tsplit\tfile']
    for label, split, file in zip(labels.tolist(), splits, files, strict=True):
        name = classes[label] if 0 <= label < len(classes) else ''
        lines.append('\t'.join(map(printable, (name, split, file))))
    return '\n'.join(lines) + '\n'


def sprite(pictures: np.ndarray) -> np.ndarray:
    """All pictures in one, row by row.

    Args:
        pictures: [n, s, s, 3] uint8.

    Returns:
        [k s, k s, 3] uint8, k² ≥ n, black where there is no picture.
    """
    count, size = pictures.shape[:2]
    side = math.ceil(math.sqrt(count))
    filled = np.zeros([side * side, *pictures.shape[1:]], np.uint8)
    filled[:count] = pictures
    grid = filled.reshape(side, side, size, size, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(side * size, side * size, 3)
