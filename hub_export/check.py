"""Loads an exported module as its users do, and compares its outputs with those of the model.

Runs in a process of its own, so that nothing of the exporting process can help it:
`echo '["MODULE", "REFERENCE"]' | python hub_export/check.py`, where REFERENCE is written by
`save_reference`. It imports nothing of the project, and may be started before the module exists.
"""

from __future__ import annotations

import gc

if __name__ == '__main__':
    # Garbage collection would add a third to the time of TensorFlow's import.
    gc.disable()

import json
import sys
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import tensorflow as tf

Endpoints: TypeAlias = Mapping[str, tf.Tensor]

TOLERANCE = 1e-3  # of the largest magnitude; other fusions, threads and kernels differ far less


def save_reference(file: str, pixels: np.ndarray, **expected: Endpoints) -> None:
    """Writes what `check` compares to.

    Args:
        file: local path ending in '.npz'.
        pixels: [b, h, w, 3] uint8.
        **expected: for each signature, its endpoints for `pixels` / 255, or for their PNGs.
    """
    arrays = {
        f'{signature}/{name}': np.asarray(value)
        for signature, endpoints in expected.items()
        for name, value in endpoints.items()
    }
    np.savez(file, pixels=pixels, **arrays)


def check(path: str, reference: str) -> None:
    """Loads the module at `path` and calls it in every way that runs inference.

    Args:
        path: SavedModel folder.
        reference: file written by `save_reference`.

    Raises:
        ValueError: if an output differs; says what was expected and found.
    """
    arrays = np.load(reference)
    images, encoded = inputs(arrays['pixels'])
    module = tf.saved_model.load(path)
    serve, decode = (module.signatures[name] for name in ('serving_default', 'encoded_images'))
    expected = _endpoints(arrays, 'serving_default')
    _compare('training=False', module(images, training=False), expected)
    _compare('trainable=False', module(images, trainable=False), expected)
    _compare('serving_default', serve(images=images), expected)
    _compare('encoded_images', decode(bytes=encoded), _endpoints(arrays, 'encoded_images'))


def inputs(pixels: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """`pixels` [b, h, w, 3] uint8 as float32 images in [0, 1], and as PNGs [b]."""
    images = tf.constant(pixels / np.float32(255))  # [b, h, w, 3]
    return images, tf.stack([tf.io.encode_png(image) for image in pixels])


def _endpoints(arrays: Mapping[str, np.ndarray], signature: str) -> dict[str, np.ndarray]:
    prefix = f'{signature}/'
    return {n.removeprefix(prefix): arrays[n] for n in arrays if n.startswith(prefix)}


def _compare(call: str, found: Endpoints, expected: Mapping[str, np.ndarray]) -> None:
    if found.keys() != expected.keys():
        raise ValueError(f'{call}: expected endpoints {sorted(expected)}, found {sorted(found)}.')
    for name, target in expected.items():
        value = found[name].numpy()
        if value.shape != target.shape:
            raise ValueError(f'{call}, {name}: expected {target.shape}, found {value.shape}.')
        if not np.all(np.isfinite(value)):
            raise ValueError(f'{call}, {name}: expected finite numbers, found others.')
        error, scale = np.max(np.abs(value - target)), np.max(np.abs(target))
        if not error <= TOLERANCE * scale:
            raise ValueError(
                f'{call}, {name}: expected values within {TOLERANCE * scale:.2g}, '
                f'found a difference of {error:.2g}.'
            )


if __name__ == '__main__':
    try:
        check(*json.load(sys.stdin))
    except ValueError as failure:
        sys.exit(str(failure))
    finally:
        gc.freeze()  # no garbage collection at exit either
