"""Times --mode=embed and --mode=predict beside a bare Keras loop over the same files.

    python -m benchmarks.speed.inference

All go from image files to a finished file of results: the program's with their names, labels and
pictures for TensorBoard, resumable; the Keras loop is tf.data with the same crop and size,
`predict` of the same network with the same batch, and NumPy's or Python's own file. They are timed
in turns in one process; each case has its own process. What is made once for a run, the graphs of
the network and of the input, is not counted on either side. Images per second of processor time are
listed too, since they vary less while other programs run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from common.legacy_keras import choose_keras_2

choose_keras_2()

import numpy as np
import tensorflow as tf

from app.config.resolution import resolve
from app.config.schema import Config
from app.inference import application, embed, predict
from app.inference.application import Application
from app.inference.network import layers_needed
from app.presets import PRESETS
from benchmarks.speed.case import add_case
from benchmarks.speed.inputs import LARGE, QUALITY, SMALL, picture
from benchmarks.speed.spread import spread
from benchmarks.speed.timing import Call
from common.interruption import Stop
from common.limits import SMALL_IMAGE
from tf2.features import EMBEDDING, LOGITS

ROOT = pathlib.Path(__file__).parents[2]
# Depth, width, pixels, batch, precision, images.
CASES = (
    (50, 1, 224, 64, 'bfloat16', 256),
    (18, 1, 224, 64, 'bfloat16', 512),
    (18, 0.25, 28, 256, 'bfloat16', 8192),
)
CLASSES = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
DIFFERENT = 64  # images; the others are copies
KINDS = ('embed', 'predict')
_WALL, _PROCESSOR = '_images_per_second', '_images_per_processor_second'
_MARGIN = 0.875  # share of the shorter side in a view, as the program takes it


# --- files and a network


def write_images(folder: str, count: int, *, large: bool) -> None:
    """Writes `count` files in folders of classes: JPEGs of 375 x 500 pixels, or PNGs of 28 x 28."""
    for name in CLASSES:
        os.makedirs(f'{folder}/{name}')
    for number in range(min(count, DIFFERENT)):
        pixels = picture(number, *(LARGE if large else SMALL))
        content = tf.io.encode_jpeg(pixels, quality=QUALITY) if large else tf.io.encode_png(pixels)
        for copy in range(number, count, DIFFERENT):
            name = f'{CLASSES[copy % len(CLASSES)]}/{copy:06d}.{"jpg" if large else "png"}'
            tf.io.write_file(f'{folder}/{name}', content)


def train_a_step(case: argparse.Namespace, data: str, folder: str) -> None:
    """Makes a run of one step in `folder`."""
    command = [
        *(
            sys.executable,
            str(ROOT / 'run.py'),
            '--mode=train',
            '--train_mode=pretrain',
            '--report=False',
        ),
        *('--train_steps=1', '--train_batch_size=8', f'--data_dir={data}', f'--model_dir={folder}'),
        f'--resnet_depth={case.depth}',
        f'--width_multiplier={case.width}',
        f'--image_size={case.size}',
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def opened(case: argparse.Namespace, mode: str, folder: str) -> Application:
    """The network and the images below `folder`, as the program opens them."""
    given = {
        'mode': mode,
        'checkpoint': f'{folder}/run',
        'data_dir': f'{folder}/images',
        'model_dir': f'{folder}/{mode}',
        'eval_batch_size': case.batch,
        'mixed_precision': case.precision,
    }
    config = resolve(given, PRESETS)

    def head(known: Config) -> int:
        return layers_needed(LOGITS if mode == 'predict' else EMBEDDING, known)

    made = application.prepare(config, given, head_layers=head)

    class Ready(Application):
        """Makes its batches' graph once."""

        batches = staticmethod(functools.cache(made.batches))

    return Ready(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})


# --- what is timed


def own(app: Application, mode: str, folder: str, stop: Stop) -> Call:
    """A whole pass of the program, after which its files are removed."""
    if mode == 'embed':
        width = app.network.model.backbone.width
        function = embed.row_pass(app, EMBEDDING)

        def go() -> None:
            embed.write_embeddings(app, function, EMBEDDING, width, stop)
    else:
        count = predict.number_shown(0, app)
        function = predict.row_pass(app, count)

        def go() -> None:
            predict.write_predictions(app, function, count, stop)

    def call() -> None:
        shutil.rmtree(f'{folder}/{mode}', ignore_errors=True)
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            go()

    return call


def plain(app: Application, mode: str, files: Sequence[str], path: str) -> Call:
    """A pass as in a user's own script."""
    size, batch = app.config.data.image_size, app.config.evaluation.eval_batch_size
    images = tf.keras.Input([size, size, 3])
    endpoint = app.network.model(images, training=False)[LOGITS if mode == 'predict' else EMBEDDING]
    network = tf.keras.Model(images, tf.cast(endpoint, tf.float32))
    dataset = tf.data.Dataset.from_tensor_slices(list(files))
    dataset = dataset.map(lambda file: _plain_view(file, size), tf.data.AUTOTUNE)
    dataset = dataset.batch(batch).prefetch(tf.data.AUTOTUNE)

    def call() -> None:
        found = network.predict(dataset, verbose=0)
        if mode == 'embed':
            np.savez(path, embeddings=found, files=files)
        else:
            _write_csv(path, files, found)

    return call


def _plain_view(file: tf.Tensor, size: int) -> tf.Tensor:
    image = tf.io.decode_image(tf.io.read_file(file), channels=3, expand_animations=False)
    if size > SMALL_IMAGE:
        shape = tf.shape(image)[:2]
        side = tf.cast(tf.round(_MARGIN * tf.cast(tf.reduce_min(shape), tf.float32)), tf.int32)
        top, left = tf.unstack((shape - side + 1) // 2)
        image = tf.image.crop_to_bounding_box(image, top, left, side, side)
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.image.resize(image, [size, size], 'bicubic')
    return tf.clip_by_value(image, 0.0, 1.0)


def _write_csv(path: str, files: Sequence[str], logits: np.ndarray) -> None:
    probability = tf.nn.softmax(logits).numpy()
    best = np.argsort(-probability, axis=1)[:, : predict.TOP]
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        for name, row, order in zip(files, probability, best, strict=True):
            pairs = ((CLASSES[number], row[number]) for number in order)
            writer.writerow([name, *(cell for pair in pairs for cell in pair)])


# --- measurement


def measure(case: argparse.Namespace) -> dict[str, float]:
    """Images per second of one case, in this process."""
    with tempfile.TemporaryDirectory() as folder, Stop().handling() as stop:
        write_images(f'{folder}/images', case.images, large=case.size > SMALL_IMAGE)
        train_a_step(case, f'{folder}/images', f'{folder}/run')
        calls = {}
        for mode in KINDS:
            app = opened(case, mode, folder)
            (_, count), *_ = app.splits
            _, names = app.names(np.arange(count))
            files = [f'{folder}/images/{name}' for name in names]
            calls[f'own_{mode}'] = own(app, mode, folder, stop)
            calls[f'plain_{mode}'] = plain(app, mode, files, f'{folder}/{mode}.npz')
        return rates(calls, count, case.rounds)


def rates(calls: Mapping[str, Call], images: int, rounds: int) -> dict[str, float]:
    """Median rates of all `calls`, each of which handles `images`, in turns."""
    for call in calls.values():
        call()  # traces
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began, worked = time.perf_counter(), time.process_time()
            call()
            spent[name].append((time.perf_counter() - began, time.process_time() - worked))
    found = {}
    for name, pairs in spent.items():
        wall, processor = zip(*pairs, strict=True)
        found[name + _WALL] = images / statistics.median(wall)
        found[name + _PROCESSOR] = images / statistics.median(processor)
    return found


def name_of(case: Sequence[object]) -> str:
    """A case in words."""
    depth, width, size, batch, precision, _ = case
    return f'ResNet-{depth} width {width}, {size} px, batch {batch}, {precision}'


def measure_apart(case: Sequence[object], rounds: int) -> dict[str, float]:
    """Figures of one case, measured in a separate process; names are 'CASE: FIGURE'."""
    keys = ('depth', 'width', 'size', 'batch', 'precision', 'images')
    flags = [f'--{key}={value}' for key, value in zip(keys, case, strict=True)]
    command = [sys.executable, '-m', 'benchmarks.speed.inference', '--single', *flags]
    run = subprocess.run(
        [*command, f'--rounds={rounds}'], check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    return {f'{name_of(case)}: {figure}': value for figure, value in found.items()}


def rows(runs: Sequence[Mapping[str, float]]) -> str:
    """A Markdown table of several runs: median (lowest to highest)."""
    units = ('images/s', 'images per processor second')
    columns = [
        column
        for unit in units
        for column in (unit, f'bare Keras loop, {unit}', 'times the Keras loop')
    ]
    lines = [f'| network | mode | {" | ".join(columns)} |', f'|{" --- |" * (2 + len(columns))}']
    for case in dict.fromkeys(name.split(': ')[0] for run in runs for name in run):
        for mode in KINDS:
            cells = [case, mode]
            for unit in (_WALL, _PROCESSOR):
                ours, keras = (
                    [run[f'{case}: {who}_{mode}{unit}'] for run in runs] for who in ('own', 'plain')
                )
                ratios = [one / other for one, other in zip(ours, keras, strict=True)]
                cells += [spread(ours), spread(keras), spread(ratios)]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_case(parser)
    parser.add_argument('--precision', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--images', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--single', action='store_true', help='only this case, in this process')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of all cases, or of one, and the figures as JSON in the last line."""
    given = parsed(arguments)
    if given.single:
        print(json.dumps(measure(given)))
        return
    figures: dict[str, float] = {}
    for case in CASES:
        figures |= measure_apart(case, given.rounds)
    print(rows([figures]))
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
