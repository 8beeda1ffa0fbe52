"""Keras 2 on every supported version of TensorFlow."""

from __future__ import annotations

import importlib.metadata
import os


def choose_keras_2() -> None:
    """Makes tf.keras Keras 2 if TensorFlow has Keras 3; call it before importing TensorFlow."""
    major, minor = importlib.metadata.version('tensorflow').split('.')[:2]
    # Older versions of TensorFlow contain Keras 2, which AutoGraph knows not to convert.
    if (int(major), int(minor)) >= (2, 16):
        os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
