"""The spread of representations, and the line that tells a collapse."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored, run_on_replicas
from tests.tf2.methods import golden_steps
from tests.tf2.methods.golden_steps import batches_of, golden, losses_of
from tf2 import collapse
from tf2.config import LearningConfig, ModelConfig
from tf2.methods.simsiam import SimSiam
from tf2.optimizers import builder
from tf2.trainer import Penalty

ROWS = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)


def slow_spread(rows: np.ndarray) -> float:
    """Line by line, in float64."""
    units = [row / np.linalg.norm(row) for row in rows.astype(np.float64)]
    deviations = [np.std([unit[column] for unit in units]) for column in range(rows.shape[1])]
    return float(np.mean(deviations) * np.sqrt(rows.shape[1]))


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize('rows', [ROWS, np.abs(ROWS), ROWS * 1e-3 + 1, ROWS[:1].repeat(12, 0)])
def test_spread_is_that_of_the_global_batch(rows: np.ndarray, replicas: int) -> None:
    strategy = mirrored(replicas)
    for found in run_on_replicas(strategy, collapse.spread, np.split(rows, replicas)):
        np.testing.assert_allclose(found, slow_spread(rows), rtol=1e-2, atol=1e-3)


def test_rows_in_all_directions_spread_by_one() -> None:
    rows = tf.random.stateless_normal([4096, 64], [1, 2])
    assert float(collapse.spread(rows)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('found', [None, 1.0, collapse.COLLAPSED])
def test_what_is_no_collapse_is_not_told(found: float | None) -> None:
    assert collapse.Watch().message(5, found) is None


def test_a_collapse_is_told_once_in_one_line() -> None:
    watch = collapse.Watch()
    assert watch.message(10, 0.5) is None
    line = watch.message(20, 0.001)
    assert line.startswith('Step 20: the representation has collapsed') and '\n' not in line
    assert '0.001' in line and '--learning_rate' in line and '--method' in line
    assert watch.message(30, 0.001) is None


def collapsing(bias: float) -> tuple[SimSiam, builder.Optimizer, Penalty]:
    """A method whose encoder has large biases, next to which images make no difference."""
    model = ModelConfig(num_proj_layers=2, proj_out_dim=4)
    learning = LearningConfig(method='simsiam', predictor_hidden_dim=4)
    method = golden_steps.method_of('simsiam', model, learning)
    (layer,) = method.model.backbone.blocks[0]
    layer.bias.assign(tf.fill(layer.bias.shape, bias))
    return method, tf.keras.optimizers.SGD(0.0, jit_compile=False), Penalty()


@pytest.mark.parametrize(('bias', 'collapsed'), [(0.0, False), (1000.0, True)])
def test_a_run_measures_it(bias: float, collapsed: bool) -> None:
    batches = batches_of(golden('traj_simsiam'))[:1]
    with golden_steps.dense_encoder(10, last_relu=True):
        _, metrics = losses_of(lambda: collapsing(bias), batches)
    found = metrics[0][collapse.METRIC]
    assert (collapse.Watch().message(1, found) is not None) == collapsed
