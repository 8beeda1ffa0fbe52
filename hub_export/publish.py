"""Writes a module under a temporary name, checks it, and renames it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from common.errors import UserError
from hub_export import check
from hub_export.module import Decode, build_module, plain_copy
from hub_export.record import ModuleRecord, has_record, write_record
from tf2.config import LearningConfig
from tf2.files import names_in, plain_path, remove_if_there
from tf2.models.encoder import SimCLRModel

LEFTOVER = re.compile(r'\.(\d+)\.[0-9a-f]{32}\.(partial|replaced)')


class ExportError(RuntimeError):
    """An exported module failed its check and was not published."""


def export_module(
    model: SimCLRModel,
    root: str,
    step: int,
    *,
    image_size: int,
    decode: Decode,
    weight_decay: float,
    keep: int,
    class_names: Sequence[str] | None = None,
    method: str = LearningConfig.method,
) -> str:
    """Exports `model` to the folder `<root>/<step>`.

    The module appears there complete and checked, or not at all. Only one process at a time may
    export to a root, because leftovers of crashed exports are removed. Object stores rename a
    folder by copying and deleting its files, so readers may see a part of it for a moment.

    Args:
        model: built; under a distribution strategy or not. It isn't changed.
        root: folder of the modules, on any file system of TensorFlow; made if it doesn't exist.
        step: number of updates of the weights.
        image_size: height and width in pixels that the model was built for.
        decode: maps encoded bytes, a string scalar, to an image [image_size, image_size, 3]
            float32 in [0, 1]. It becomes a part of the module.
        weight_decay: factor of the module's L2 term; with 0 there is none.
        keep: number of modules to keep, this one and the newest others; 0 keeps all.
        class_names: names of the classifier's classes, by label; None if unknown.
        method: the method of pretraining, which determines the projection head.

    Returns:
        The path of the module. An older module of the same step is replaced.

    Raises:
        ExportError: if the module, loaded by another process, has other outputs than the model. It
            is removed, and the module that was there before stays.
        UserError: if something other than a module of this program is in its place.
    """
    root = root.rstrip('/')
    check_place(root, step)
    tf.io.gfile.makedirs(root)
    _clear_leftovers(root)
    path, partial = f'{root}/{step}', _aside(root, step, 'partial')
    record = ModuleRecord(model.config, image_size, model.num_classes, step, class_names, method)
    try:
        with tempfile.TemporaryDirectory() as scratch, _checker() as check_module:
            reference = f'{scratch}/reference.npz'
            _save(plain_copy(model, image_size), partial, record, decode, weight_decay, reference)
            with plain_path(partial) as plain:
                check_module(plain, reference)
        _publish(partial, path)
    finally:
        remove_if_there(partial)
    _prune(root, step, keep)
    return path


def check_place(root: str, step: int) -> None:
    """Raises UserError if a link, or a folder without our record, is in the place of a module."""
    path = f'{root.rstrip("/")}/{step}'
    if (os.path.lexists(path) or tf.io.gfile.exists(path)) and not has_record(path):
        raise UserError(
            f'{path} should be free for the module that is exported; found {_foreign(path)}. Move '
            'it, then run the same command.'
        )


def _foreign(path: str) -> str:
    return 'a link' if os.path.islink(path) else 'something that is no module of this program'


def _save(
    model: SimCLRModel,
    path: str,
    record: ModuleRecord,
    decode: Decode,
    weight_decay: float,
    reference: str,
) -> None:
    """Writes the SavedModel to `path`, and its expected outputs to the file `reference`."""
    write_record(path, record)  # first: it marks the folder as ours, should this be interrupted
    module, signatures = build_module(model, record.image_size, decode, weight_decay)
    with _quiet():
        tf.saved_model.save(module, path, signatures=signatures)
    shape = [2, record.image_size, record.image_size, 3]
    pixels = np.random.RandomState(0).randint(256, size=shape).astype(np.uint8)
    with tf.device('/cpu:0'):  # where the check runs too; accelerators round differently
        images, encoded = check.inputs(pixels)
        expected = {
            'serving_default': signatures['serving_default'](images),
            'encoded_images': signatures['encoded_images'](encoded),
        }
    check.save_reference(reference, pixels, **expected)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences a log line with the path, which is a temporary one."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _checker() -> Iterator[Callable[[str, str], None]]:
    """Starts a process that checks a module, given its path and the reference file.

    It imports TensorFlow while the module is exported.
    """
    # On the CPU, because the exporting process may hold all memory of the accelerators.
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    process = subprocess.Popen(
        [sys.executable, str(pathlib.Path(check.__file__).resolve())],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def check_module(path: str, reference: str) -> None:
        _, errors = process.communicate(json.dumps([path, reference]))
        if process.returncode:
            message = errors.strip() or f'the checking process ended with {process.returncode}'
            raise ExportError(f'The exported module was not published; its check failed: {message}')

    with process:
        try:
            yield check_module
        finally:
            process.kill()  # it still waits if the export failed


def _publish(partial: str, path: str) -> None:
    """Renames `partial` to `path`, and removes what was there before."""
    if not tf.io.gfile.exists(path):
        tf.io.gfile.rename(partial, path)
        return
    root, step = path.rsplit('/', 1)
    replaced = _aside(root, int(step), 'replaced')
    tf.io.gfile.rename(path, replaced)
    try:
        tf.io.gfile.rename(partial, path)
    except BaseException:
        tf.io.gfile.rename(replaced, path)
        raise
    remove_if_there(replaced)


def _aside(root: str, step: int, kind: str) -> str:
    return f'{root}/.{step}.{uuid.uuid4().hex}.{kind}'


def _clear_leftovers(root: str) -> None:
    """Removes what a killed export left; restores a module that it was replacing."""
    for name in names_in(root):
        match, path = LEFTOVER.fullmatch(name), f'{root}/{name}'
        if match is None or not has_record(path):
            continue
        published = f'{root}/{match[1]}'
        if match[2] == 'replaced' and not tf.io.gfile.exists(published):
            tf.io.gfile.rename(path, published)
        else:
            remove_if_there(path)


def _prune(root: str, step: int, keep: int) -> None:
    """Keeps the module of `step` and the newest `keep` - 1 others; names those that aren't ours."""
    if not keep:
        return
    numbers = sorted((n for n in names_in(root) if n.isdecimal() and int(n) != step), key=int)
    paths = [f'{root}/{number}' for number in numbers]
    ours = [path for path in paths if has_record(path) and not os.path.islink(root)]
    for old in ours[: max(0, len(ours) - keep + 1)]:
        remove_if_there(old)
    for path in paths if len(paths) >= keep else []:
        if path not in ours:
            found = f'{root} is a link' if os.path.islink(root) else f'it is {_foreign(path)}'
            print(f'{path} stays, though {keep} modules are to be kept: {found}.')
