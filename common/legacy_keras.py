"""Keras 2 on every supported version of TensorFlow."""

from __future__ import annotations

import importlib.metadata
import os
import sys

from common.errors import UserError


def choose_keras_2() -> None:
    """Makes tf.keras Keras 2 if TensorFlow has Keras 3; call it before importing TensorFlow.

    Raises:
        UserError: if TensorFlow was imported before, and tf.keras is Keras 3.
    """
    major, minor = importlib.metadata.version('tensorflow').split('.')[:2]
    # Older versions of TensorFlow contain Keras 2, which AutoGraph knows not to convert.
    if (int(major), int(minor)) >= (2, 16):
        os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
    tensorflow = sys.modules.get('tensorflow')
    if tensorflow is not None and hasattr(tensorflow.keras, 'ops'):  # new in Keras 3
        raise UserError(
            'tf.keras must be Keras 2; found Keras 3, which this process has loaded already. '
            'Restart Python, and import simclr before TensorFlow, or set TF_USE_LEGACY_KERAS=1.'
        )
