"""Keras 2 on every supported version of TensorFlow."""

from __future__ import annotations

import importlib.metadata
import os


def choose_keras_2() -> None:
    """Makes tf.keras Keras 2, where TensorFlow brings Keras 3; before TensorFlow is imported."""
    major, minor = importlib.metadata.version('tensorflow').split('.')[:2]
    # Older TensorFlow has Keras 2 of its own, and AutoGraph knows to leave that one alone.
    if (int(major), int(minor)) >= (2, 16):
        os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
