"""A checkpoint, and a folder of images of several formats and sizes in two splits."""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import run
from tests.support import GOLDEN, plain_networks

# 8 steps of `PlainNetwork` with 2 to 16 channels, for 8 pixels, with a classifier of 10 classes.
CHECKPOINT = str(GOLDEN / 'plain_run')
CLASSES = ('cat', 'dog, "old"', 'élan')
COUNTS = {'train': 9, 'test': 2}  # of each class
FLAGS = {'eval_batch_size': 4, 'mixed_precision': 'float32'}

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope='session')
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder, random = tmp_path_factory.mktemp('inference') / 'images', np.random.RandomState(0)
    for split, count in COUNTS.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 256, [9 + number, 12, 3], np.uint8)
                extension = ('png', 'jpg', 'webp')[number % 3]
                Image.fromarray(pixels).save(folder / split / name / f'{number}.{extension}')
    return folder


@pytest.fixture(scope='session')
def main() -> Main:
    """Runs the program: exit status, what is printed and what is said of errors."""

    def call(mode: str, **flags: object) -> tuple[int, str, str]:
        arguments = [f'--{name}={value}' for name, value in flags.items()]
        shown, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
            status = run.main(['run.py', f'--mode={mode}', *arguments])
        return status, shown.getvalue(), said.getvalue()

    return call


@pytest.fixture(scope='session')
def made(
    tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path, main: Main
) -> pathlib.Path:
    """A folder with the embeddings of all images in each format; tests only read it."""
    folder = tmp_path_factory.mktemp('made')
    flags = {'checkpoint': CHECKPOINT, 'data_dir': images, 'model_dir': folder, **FLAGS}
    for output in ('v.npz', 'v.parquet', 'v.csv'):
        with plain_networks():
            status, shown, said = main('embed', output=output, **flags)
        assert status == 0, said
        assert '33 embeddings of 16 numbers each, from final_avg_pool' in shown
    return folder
