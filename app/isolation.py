"""Leaves a process that goes on after a run as it was before: a notebook, or another program."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

LOG_LEVEL = 'TF_CPP_MIN_LOG_LEVEL'


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Restores at the end of the context what a run changes outside of its folder.

    These are the states of random generators and whether operations are deterministic, the levels
    of logs and the settings of the garbage collector. Memory of the run is freed. What can't be
    undone are TensorFlow's import, `TF_USE_LEGACY_KERAS` and logical devices.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(gc.collect)  # models refer to themselves
        for keep in _KEPT:
            stack.callback(keep())
        yield


def _garbage_collector() -> Callable[[], None]:
    enabled, frozen, threshold = gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()

    def restore() -> None:
        gc.set_threshold(*threshold)
        if not enabled:
            gc.disable()
        if not frozen:
            gc.unfreeze()

    return restore


def _random_state() -> Callable[[], None]:
    own, arrays = random.getstate(), np.random.get_state()

    def restore() -> None:
        random.setstate(own)
        np.random.set_state(arrays)

    return restore


def _log_levels() -> Callable[[], None]:
    level, verbosity = os.environ.get(LOG_LEVEL), logging.get_verbosity()

    def restore() -> None:
        logging.set_verbosity(verbosity)
        if level is None:
            os.environ.pop(LOG_LEVEL, None)

    return restore


def _tensorflow_state() -> Callable[[], None]:
    """TensorFlow sets its seeds and determinism by public functions, but has none to read them."""
    before = _seeds() if 'tensorflow' in sys.modules else (None, None, None)
    deterministic = 'tensorflow' in sys.modules and _config().is_op_determinism_enabled()

    def restore() -> None:
        if 'tensorflow' not in sys.modules:
            return
        seed, state, keras = before
        context = _context()
        context._set_global_seed(seed)
        if state is not None:
            context._rng.setstate(state)
        _keras_seeds().generator = keras
        if not deterministic:
            _config().disable_op_determinism()

    return restore


def _custom_gradients() -> Callable[[], None]:
    """TensorFlow never forgets a traced `tf.custom_gradient`, which refers to graph and weights.

    Those of another thread are lost too if it traces one during the run.
    """
    before = set(_gradients()) if 'tensorflow' in sys.modules else set()

    def restore() -> None:
        traced = _gradients() if 'tensorflow' in sys.modules else {}
        for name in traced.keys() - before:
            if name.startswith('CustomGradient-'):
                del traced[name]

    return restore


_KEPT = (_garbage_collector, _random_state, _log_levels, _tensorflow_state, _custom_gradients)


def _seeds() -> tuple[int | None, Any, random.Random | None]:
    """TensorFlow's seed, the state that it has reached, and Keras's generator."""
    context = _context()
    generator = getattr(context, '_rng', None)  # there is none before the first seed
    state = generator and generator.getstate()
    return context._seed, state, getattr(_keras_seeds(), 'generator', None)


def _context() -> Any:
    from tensorflow.python.eager import context

    return context.context()


def _config() -> Any:
    from tensorflow.python.framework import config

    return config


def _gradients() -> dict[str, Any]:
    from tensorflow.python.framework import ops

    return ops.gradient_registry._registry


def _keras_seeds() -> Any:
    import tensorflow as tf

    package = tf.keras.layers.Layer.__module__.partition('.')[0]  # keras, or tf_keras
    return sys.modules[f'{package}.src.backend']._SEED_GENERATOR
