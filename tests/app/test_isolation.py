"""What a run changes in its process is restored."""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from tensorflow.python.framework import config

from app.isolation import LOG_LEVEL, isolated


def draws() -> list[float]:
    """The next numbers of all generators that a program might use."""
    layer = tf.keras.layers.Dense(1)
    layer.build([1, 1])
    numbers = (random.random(), np.random.rand(), tf.random.uniform([]), layer.kernel[0, 0])
    return [float(number) for number in numbers]


@pytest.fixture
def seeded() -> Iterator[None]:
    tf.keras.utils.set_random_seed(7)
    yield
    with isolated():  # so that determinism isn't left behind if the test fails
        pass


@pytest.mark.usefixtures('seeded')
def test_random_numbers_go_on_as_without_the_run() -> None:
    draws()
    expected = draws()
    tf.keras.utils.set_random_seed(7)
    draws()
    with isolated():
        tf.keras.utils.set_random_seed(0)
        draws()
    assert draws() == expected


def test_determinism_log_levels_and_the_garbage_collector_are_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(LOG_LEVEL, raising=False)
    verbosity, frozen = logging.get_verbosity(), gc.get_freeze_count()
    threshold = gc.get_threshold()
    gc.unfreeze()
    try:
        with isolated():
            tf.config.experimental.enable_op_determinism()
            os.environ[LOG_LEVEL] = '3'
            logging.set_verbosity(logging.ERROR)
            gc.freeze()
            gc.set_threshold(7, 8, 9)
        assert not config.is_op_determinism_enabled()
        assert LOG_LEVEL not in os.environ
        assert logging.get_verbosity() == verbosity
        assert gc.get_freeze_count() == 0
        assert gc.get_threshold() == threshold
    finally:
        gc.set_threshold(*threshold)
        if frozen:
            gc.freeze()


def test_what_a_run_has_traced_is_freed() -> None:
    @tf.custom_gradient
    def doubled(x: tf.Tensor) -> tuple[tf.Tensor, object]:
        return 2 * x, lambda upstream: 2 * upstream

    def gradient(weight: tf.Variable) -> tf.Tensor:
        with tf.GradientTape() as tape:
            y = doubled(weight * 1)
        return tape.gradient(y, weight)

    def traced() -> weakref.ref:
        weight = tf.Variable(1.0)
        function = tf.function(lambda: gradient(weight), autograph=False)
        assert function() == 2
        return weakref.ref(function.get_concrete_function().graph)

    with isolated():
        graph = traced()
    assert graph() is None
    kept = traced()  # what others trace is theirs
    with isolated():
        pass
    assert kept() is not None
