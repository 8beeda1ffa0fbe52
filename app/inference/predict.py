"""--mode=predict: the most likely classes of every image, as a CSV file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import tensorflow as tf

from app.config.schema import Config
from app.inference import application
from app.inference.application import Application
from app.inference.network import check_classifier, layers_needed
from app.inference.parts import Parts, folder_of, rebatched
from app.inference.tables import ROWS_AT_ONCE
from app.modes import Outcome
from common.errors import UserError
from common.interruption import Stop
from data.labels import same_classes
from tf2 import distribution
from tf2.features import LOGITS, RowPass
from tf2.files import writing, written_whole
from tf2.models.encoder import SimCLRModel

TOP = 5  # classes of each image, unless --top_k says how many


def run(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Writes the most likely classes of every image, with their probabilities.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        stop: after a signal what is computed is kept, and a rerun goes on from there.

    Raises:
        UserError: for whatever the user can fix.
        Interrupted: when a signal came.
    """
    app = application.prepare(config, given, head_layers=lambda known: layers_needed(LOGITS, known))
    check_classifier(app.network)
    count = number_shown(config.inference.top_k, app)
    with application.in_folder(app):
        application.announce(app)
        results = write_predictions(app, row_pass(app, count), count, stop)
    return Outcome(app.config.output.model_dir, results, application.output_path(app.config))


def row_pass(app: Application, count: int) -> RowPass:
    """Images → their `count` most likely classes; see `classify`."""
    with app.strategy.scope():
        return RowPass(lambda batch: classify(app.network.model, batch['views'][0], count))


def write_predictions(
    app: Application, function: RowPass, count: int, stop: Stop
) -> dict[str, Any]:
    """Goes through all images and writes the file.

    Args:
        app: the data set and the model folder.
        function: from `row_pass`.
        count: classes of each image.
        stop: see `run`.

    Returns:
        'images', and 'top_1_accuracy' if there are labels; empty if another worker writes.
    """
    path = application.output_path(app.config)
    parts = Parts(folder_of(path), {**app.settings(), 'top_k': count}, writes=app.writes)
    with app.strategy.scope():
        application.pass_over(app, function, _kept, parts, stop)
    results = _write(app, path, parts, count) if app.writes else {}
    distribution.wait_for_all(app.strategy)
    return results


def classify(model: SimCLRModel, images: tf.Tensor, count: int) -> dict[str, tf.Tensor]:
    """'class' [b, count] int32, most likely first, and 'probability' [b, count] float32."""
    logits = tf.cast(model(images, training=False)[LOGITS], tf.float32)
    probability, number = tf.math.top_k(tf.nn.softmax(logits), count)
    return {'class': number, 'probability': probability}


def number_shown(top_k: int, app: Application) -> int:
    """How many classes are written of each image.

    Args:
        top_k: as asked for; 0 for the default.
        app: has a classifier.

    Raises:
        UserError: if the classifier has fewer classes than are asked for.
    """
    classes = app.network.weights.num_classes
    if top_k > classes:
        raise UserError(
            f'--top_k must be at most {classes}, the number of classes of '
            f'--checkpoint={app.network.weights.path}; found {top_k}.'
        )
    return top_k or min(TOP, classes)


def _kept(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: rows[name] for name in ('class', 'probability', 'label', 'place')}


@dataclasses.dataclass
class Accuracy:
    """How often the most likely class is that of the label.

    Attributes:
        right: number of images of which it is.
        labeled: number of images with a label.
    """

    right: int = 0
    labeled: int = 0

    @property
    def share(self) -> float:
        """Of the images with a label."""
        return self.right / self.labeled

    def __str__(self) -> str:
        return f'Top-1 accuracy on {self.labeled:,} images with a label: {self.share:.4f}.'


def _write(app: Application, path: str, parts: Parts, count: int) -> dict[str, Any]:
    """Writes the final file, then removes those that hold the rows; returns what it holds."""
    accuracy = Accuracy()
    with writing(os.path.dirname(path)):
        tf.io.gfile.makedirs(os.path.dirname(path) or '.')
        with written_whole(path) as partial:
            written = _write_csv(partial, app, parts, count, accuracy)
    parts.remove()
    print(f'Predictions for {written:,} images: {path}')
    if not (accuracy.labeled and knows_labels(app)):
        return {'images': written}
    print(accuracy)
    return {'images': written, 'top_1_accuracy': accuracy.share}


def _write_csv(path: str, app: Application, parts: Parts, count: int, accuracy: Accuracy) -> int:
    """Columns 'file', 'split', 'true_class', and 'class_1', 'probability_1' and so on."""
    fields = {'file': pa.string(), 'split': pa.string(), 'true_class': pa.string()}
    for rank in range(1, count + 1):
        fields |= {f'class_{rank}': pa.string(), f'probability_{rank}': pa.float32()}
    schema, written = pa.schema(fields.items()), 0
    keys = ('class', 'probability', 'label', 'place')
    with pa.csv.CSVWriter(path, schema) as writer:
        for rows in rebatched(parts.read(keys), ROWS_AT_ONCE):
            columns = [pa.array(column) for column in _columns(app, rows)]
            arrays = [column.cast(kind) for column, kind in zip(columns, schema.types)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            accuracy.right += int((rows['class'][:, 0] == rows['label']).sum())
            accuracy.labeled += int((rows['label'] >= 0).sum())
            written += len(rows['label'])
    return written


def _columns(app: Application, rows: Mapping[str, np.ndarray]) -> Iterator[Sequence[Any]]:
    splits, files = app.names(rows['place'])
    yield files
    yield splits
    yield [_name_of(label, app.class_names) for label in rows['label'].tolist()]
    weights = app.network.weights
    names = weights.class_names or tuple(map(str, range(weights.num_classes)))
    for numbers, probabilities in zip(rows['class'].T, rows['probability'].T, strict=True):
        yield [names[number] for number in numbers.tolist()]
        yield probabilities


def _name_of(label: int, names: Sequence[str] | None) -> str | None:
    return names[label] if names and 0 <= label < len(names) else None


def knows_labels(app: Application) -> bool:
    """Whether the classifier's numbers are those of the data set's labels, as far as is known."""
    own, theirs = app.network.weights.class_names, app.source.class_names
    if own and theirs:
        return same_classes(own, theirs)  # which are then numbered alike
    return app.source.num_classes == app.network.weights.num_classes
