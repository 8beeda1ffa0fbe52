"""--mode=search: the images of a file of embeddings that are most similar to one."""

from __future__ import annotations

import dataclasses
import heapq
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from app.config.schema import Config, with_values
from app.inference import page
from app.inference.application import output_path
from app.inference.network import (
    check_layer,
    fingerprint,
    layers_needed,
    load_network,
    pooled,
    with_architecture,
)
from app.inference.pictures import Pictures
from app.inference.stored import Rows, open_table
from app.modes import Outcome
from app.preflight import check_writable
from common.errors import UserError, printable
from common.interruption import Stop
from data.batches import view_of_file
from tf2 import precision
from tf2.features import EMBEDDING
from tf2.files import write_text, writing

FOUND = 24  # images, unless --top_k says how many


@dataclasses.dataclass(frozen=True)
class Match:
    """An image that is similar to the query.

    Attributes:
        similarity: cosine of the angle between the two embeddings.
        file: name of the image, as recorded with its embedding.
        split: the split it is in.
        class_name: of its class; '' if it has none.
    """

    similarity: float
    file: str
    split: str
    class_name: str


def run(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Prints the most similar images, and writes a page with them.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        stop: not asked: what is interrupted here leaves nothing behind.

    Raises:
        UserError: for whatever the user can fix.
    """
    del stop
    query, path = map(os.path.expanduser, (config.inference.query, config.inference.embeddings))
    config = _with_folder(config, os.path.dirname(path) or '.')
    with open_table(path) as stored:
        record, width = stored.record or {}, stored.width
    config = _as_recorded(config, given, record)
    vector = _embedded(config, given, query, record, width)
    with open_table(path) as stored:
        found = nearest(stored.rows(), vector, config.inference.top_k or FOUND)
    for match in found:
        label = f'  ({printable(match.class_name)})' if match.class_name else ''
        print(f'{match.similarity:.4f}  {printable(match.file)}{label}')
    target = output_path(config)
    pictures = Pictures(config, trusted='dataset' in given)
    with writing(os.path.dirname(target)):
        tf.io.gfile.makedirs(os.path.dirname(target))
        write_text(target, page.page_of(query, found, pictures, about=_about(config, path)))
    print(f'With pictures: {target}')
    matches = [dataclasses.asdict(match) for match in found]
    return Outcome(config.output.model_dir, {'matches': matches}, target)


def _with_folder(config: Config, folder: str) -> Config:
    """`config` with the folder for the page: that of the embeddings, unless one is given."""
    model_dir = os.path.expanduser(config.output.model_dir or folder)
    config = with_values(config, model_dir=model_dir)
    check_writable(model_dir, files=[os.path.relpath(output_path(config), model_dir)])
    return config


def _as_recorded(config: Config, given: Mapping[str, Any], record: Mapping[str, Any]) -> Config:
    """`config` with what is recorded of the embeddings, where no flag says otherwise.

    Raises:
        UserError: if nothing tells which network they are of, or they are of another layer.
    """
    layer, path = config.inference.layer, config.inference.embeddings
    if 'layer' in given and record.get('layer', layer) != layer:
        raise UserError(
            f'--layer must be {record["layer"]}, from which {path} was made; found {layer!r}. '
            'Leave it out, or embed the images again.'
        )
    names = ('layer', 'image_size', 'mixed_precision', 'dataset', 'data_dir')
    known = {name: record[name] for name in names if record.get(name) and name not in given}
    checkpoint = config.learning.checkpoint or record.get('checkpoint', '')
    if not checkpoint or ('checkpoint' not in given and '://' in checkpoint):
        raise UserError(
            f'--mode=search needs --checkpoint, the network that {path} was made with, which the '
            'file does not tell.'
        )
    return with_values(config, **known, checkpoint=checkpoint)


def _embedded(
    config: Config, given: Mapping[str, Any], query: str, record: Mapping[str, Any], wanted: int
) -> np.ndarray:
    """The embedding [wanted] of the query, computed as the recorded ones were.

    Raises:
        UserError: if the network is another one, or the query is no image.
    """
    layer = config.inference.layer or EMBEDDING
    sized = 'image_size' in given or 'image_size' in record
    config, weights = with_architecture(
        config, {'image_size': config.data.image_size} if sized else {}
    )
    name, path = f'--checkpoint={weights.path}', config.inference.embeddings
    image = view_of_file(query, config.data)
    strategy = tf.distribute.OneDeviceStrategy('/cpu:0')
    setting = precision.choose(config.train.mixed_precision, strategy)
    config = with_values(config, mixed_precision=setting)
    with strategy.scope():
        network = load_network(config, given, weights, layers_needed(layer, config))
        width = check_layer(network, layer)
    if width != wanted:
        raise UserError(
            f'{name} must give embeddings of {wanted} numbers, as {path} holds; found '
            f'{width}, from {layer}. Name another --checkpoint or --layer.'
        )
    own = fingerprint(network.model, strategy)
    if record.get('weights', own) != own:
        raise UserError(
            f'{name} must be the network that {path} was made with, at step {record["step"]}; '
            f'found other weights, of step {weights.step}. Name that checkpoint, or embed the '
            'images again.'
        )
    return pooled(network.model(image[tf.newaxis], training=False)[layer])[0].numpy()


def nearest(chunks: Iterable[Rows], vector: np.ndarray, count: int) -> list[Match]:
    """The rows with the highest cosine similarity to `vector`.

    Args:
        chunks: of rows, see `Stored.rows`.
        vector: [d] float.
        count: how many; fewer if there are fewer rows.

    Returns:
        Highest similarity first; of equal ones the first row.
    """
    query = _unit(vector[np.newaxis])[0]
    best: list[tuple[float, int, Match]] = []
    begin = 0
    for vectors, *columns in chunks:
        cosines = np.nan_to_num(_unit(vectors) @ query, nan=-1.0)
        order = np.argsort(-cosines, kind='stable')[:count]
        for row in order.tolist():
            match = Match(float(cosines[row]), *(column[row] for column in columns))
            best.append((-match.similarity, begin + row, match))
        best = heapq.nsmallest(count, best, key=lambda entry: entry[:2])
        begin += len(vectors)
    return [match for *_, match in best]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zeros stay zeros."""
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float64).tiny)


def _about(config: Config, path: str) -> str:
    """What similarities are, in words."""
    layer = config.inference.layer or EMBEDDING
    return (
        'The number below each image is its similarity to the query: 1 for the same image, near 0 '
        f'for unrelated ones. It is the cosine of the angle between embeddings, {layer} of '
        f'{config.learning.checkpoint}, in {path}.'
    )
