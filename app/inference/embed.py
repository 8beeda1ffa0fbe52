"""--mode=embed: the representation of every image, as a file and for TensorBoard's projector."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from app.config.schema import Config
from app.inference import application, projector
from app.inference.application import Application
from app.inference.network import check_layer, fingerprint, layers_needed, pooled
from app.inference.parts import Parts, folder_of, rebatched
from app.inference.tables import ROWS_AT_ONCE, Names, Table, write_table
from app.modes import Outcome
from common.interruption import Stop
from tf2 import distribution
from tf2.features import EMBEDDING, RowPass
from tf2.files import writing, written_whole
from tf2.models.encoder import SimCLRModel

HEAD = ('proj_head_input', 'proj_head_output')


def run(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Writes the embedding of every image, with its file and label.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        stop: after a signal what is computed is kept, and a rerun goes on from there.

    Raises:
        UserError: for whatever the user can fix.
        Interrupted: when a signal came.
    """
    layer = config.inference.layer or EMBEDDING
    app = application.prepare(config, given, head_layers=lambda known: layers_needed(layer, known))
    with app.strategy.scope():
        width = check_layer(app.network, layer)
    with application.in_folder(app):
        application.announce(app)
        results = write_embeddings(app, row_pass(app, layer), layer, width, stop)
    return Outcome(app.config.output.model_dir, results, application.output_path(app.config))


def row_pass(app: Application, layer: str) -> RowPass:
    """Images → what is kept of them; see `embed`."""
    with app.strategy.scope():
        return RowPass(lambda batch: embed(app.network.model, batch['views'][0], layer))


def write_embeddings(
    app: Application, function: RowPass, layer: str, width: int, stop: Stop
) -> dict[str, Any]:
    """Goes through all images and writes the files.

    Args:
        app: the data set and the model folder.
        function: from `row_pass`.
        layer: endpoint that is the embedding.
        width: numbers in it.
        stop: see `run`.

    Returns:
        'images', 'width' and 'layer' of what was written; empty if another worker writes.
    """
    path = application.output_path(app.config)
    settings = {**app.settings(), 'layer': layer}
    parts = Parts(folder_of(path), settings, writes=app.writes)
    shown = projector.Shown(app.examples, width)
    with app.strategy.scope():
        application.pass_over(app, function, lambda rows: _kept(rows, shown), parts, stop)
    count = _write(app, path, parts, width, layer) if app.writes else None
    distribution.wait_for_all(app.strategy)
    return {} if count is None else {'images': count, 'width': width, 'layer': layer}


def embed(model: SimCLRModel, images: tf.Tensor, layer: str) -> dict[str, tf.Tensor]:
    """'vector' [b, d], the endpoint `layer`, and 'thumbnail' [b, s, s, 3] of images."""
    endpoint = model(images, training=False)[layer]
    return {'vector': pooled(endpoint), 'thumbnail': projector.thumbnails(images)}


def _kept(rows: Mapping[str, np.ndarray], shown: projector.Shown) -> dict[str, np.ndarray]:
    pictured = shown.chosen(rows['place'])
    return {
        'vector': rows['vector'],
        'label': rows['label'],
        'place': rows['place'],
        'pictured': pictured,
        'thumbnail': np.rint(255 * rows['thumbnail'][pictured]).astype(np.uint8),
    }


def _write(app: Application, path: str, parts: Parts, width: int, layer: str) -> int:
    """Writes the final files, then removes those that hold the rows; returns how many there are."""
    table = table_of(app, parts, width, layer)
    print(f'Writing {path}.', flush=True)
    with writing(os.path.dirname(path)):
        tf.io.gfile.makedirs(os.path.dirname(path) or '.')
        with written_whole(path) as partial:
            write_table(partial, os.path.splitext(path)[1].lower(), table)
        projector.write(app, parts)
    parts.remove()
    print(f'{table.count:,} embeddings of {width} numbers each, from {layer}: {path}')
    print(f'To look at them: tensorboard --logdir {app.config.output.model_dir}, "Projector"')
    return table.count


def table_of(app: Application, parts: Parts, width: int, layer: str) -> Table:
    """The rows in `parts`."""

    def vectors() -> Iterator[np.ndarray]:
        return (rows['vector'] for rows in rebatched(parts.read(['vector']), ROWS_AT_ONCE))

    def names() -> Iterator[Names]:
        for rows in rebatched(parts.read(['place', 'label']), ROWS_AT_ONCE):
            splits, files = app.names(rows['place'])
            yield Names(files, splits, rows['label'])

    count = sum(len(rows['label']) for rows in parts.read(['label']))
    return Table(count, width, vectors, names, app.class_names, record_of(app, layer))


def record_of(app: Application, layer: str) -> dict[str, Any]:
    """Where embeddings come from, as a search needs to know it."""
    place = app.network.weights.path
    return {
        'checkpoint': place if '://' in place else os.path.abspath(place),
        'step': app.network.weights.step,
        'weights': fingerprint(app.network.model, app.strategy),
        'layer': layer,
        'image_size': app.config.data.image_size,
        'mixed_precision': app.config.train.mixed_precision,
        'dataset': app.config.data.dataset,
        'data_dir': app.data_dir,
    }
