"""Keeps the list of a run's skipped files in its folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from app.run_folder import RESTORE
from common.file_names import SKIPPED_FILE
from data.image_files import UNREADABLE
from data.sources.source import Source
from tf2 import distribution, records
from tf2.files import write_text, writing

_WRITTEN_AT_ONCE = 100  # so many files are listed as they are found; later ones in hundreds


@contextlib.contextmanager
def listing_skipped_files(
    source: Source, model_dir: str, strategy: tf.distribute.Strategy
) -> Iterator[None]:
    """Lists files of `source` that are skipped within the context in `model_dir`.

    Those that are listed there already, from before an interruption, stay; but files that could not
    even be read may be there again. At the end it prints how many there are.

    Args:
        source: what is read; one that isn't made of files is never listed.
        model_dir: the folder.
        strategy: each of several workers has a list of its own.
    """
    skipped = source.skipped
    if skipped is None:
        yield
        return
    path = os.path.join(model_dir, file_name(distribution.worker_name(strategy)))

    def write() -> None:
        # Another process, which evaluates the run while it trains, may have written it too.
        skipped.add_listed(records.read_text(path, RESTORE) or '')
        with writing(model_dir):
            tf.io.gfile.makedirs(model_dir)
            write_text(path, skipped.listing())

    def write_sometimes() -> None:
        if len(skipped) <= _WRITTEN_AT_ONCE or len(skipped) % _WRITTEN_AT_ONCE == 0:
            write()

    _forget_unreadable(path)
    skipped.on_change(write_sometimes)
    try:
        yield
    finally:
        skipped.on_change(lambda: None)
        if len(skipped):
            write()
            print(f'{describe(len(skipped))}: {path}', flush=True)


def _forget_unreadable(path: str) -> None:
    before = (records.read_text(path, RESTORE) or '').splitlines(keepends=True)
    kept = [line for line in before if f'\t{UNREADABLE}' not in line]
    if len(kept) == len(before):
        return
    with writing(os.path.dirname(path)):
        if kept:
            write_text(path, ''.join(kept))
        else:
            tf.io.gfile.remove(path)


def file_name(worker: str | None) -> str:
    """The name of the list of one of several workers; the first one's has no suffix."""
    stem, extension = os.path.splitext(SKIPPED_FILE)
    return f'{stem}_{worker}{extension}' if worker else SKIPPED_FILE


def describe(count: int) -> str:
    """How many images were skipped, in words."""
    images = '1 image' if count == 1 else f'{count:,} images'
    return f'{images} could not be decoded and {"was" if count == 1 else "were"} skipped'
