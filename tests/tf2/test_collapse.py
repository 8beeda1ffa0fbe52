"""The spread of representations and projections, and the line that tells a collapse."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored, on_replicas
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
def test_spread_is_that_of_the_global_batch(replicas: int) -> None:
    def spreads(both: tf.Tensor) -> tf.Tensor:
        return tf.stack(collapse.spreads([both[:, :7], both[:, 7:]]))

    run = on_replicas(mirrored(replicas), spreads)
    for rows in (ROWS, np.abs(ROWS), ROWS * 1e-3 + 1, ROWS[:1].repeat(12, 0)):
        both = np.concatenate([rows, -ROWS[:, :4]], -1)
        expected = [slow_spread(rows), slow_spread(ROWS[:, :4])]
        for found in run(np.split(both, replicas)):
            np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_rows_in_all_directions_spread_by_one() -> None:
    rows = tf.random.stateless_normal([4096, 64], [1, 2])
    assert [float(spread) for spread in collapse.spreads([rows])] == [pytest.approx(1, abs=0.01)]


def test_of_several_views_the_first_is_measured() -> None:
    outputs = {'h': tf.constant(ROWS), 'z': (tf.constant(ROWS[:, :4]), tf.zeros([12, 4])), 'x': ()}
    found = collapse.measure({'representation': 'h', 'projection': 'z'}, outputs)
    expected = {
        'representation_spread': pytest.approx(slow_spread(ROWS), rel=1e-2),
        'projection_spread': pytest.approx(slow_spread(ROWS[:, :4]), rel=1e-2),
    }
    assert {name: float(value) for name, value in found.items()} == expected


def test_nothing_is_measured_where_nothing_is_watched() -> None:
    assert collapse.measure({}, {'h': tf.constant(ROWS)}) == {}


def means(representation: float, projection: float) -> dict[str, float]:
    return {
        'total_loss': 0.0,
        'representation_spread': representation,
        'projection_spread': projection,
    }


@pytest.mark.parametrize(
    'found', [{'total_loss': 0.0}, means(1.0, 1.0), means(*collapse.LOWEST.values())]
)
def test_what_is_no_collapse_is_not_told(found: dict[str, float]) -> None:
    assert collapse.Watch().message(5, found) is None


@pytest.mark.parametrize(
    ('found', 'what', 'values'),
    [
        (means(0.001, 1.0), 'the representation has collapsed', ['representation_spread is 0.001']),
        (means(0.5, 0.01), 'the projection has collapsed', ['projection_spread is 0.01']),
        (
            means(0.001, 0.01),
            'the representation has collapsed',
            ['representation_spread is 0.001', 'projection_spread is 0.01'],
        ),
    ],
)
def test_a_collapse_is_told_once_in_one_line(
    found: dict[str, float], what: str, values: list[str]
) -> None:
    watch = collapse.Watch()
    assert watch.message(10, means(0.5, 1.0)) is None
    line = watch.message(20, found)
    assert line.startswith(f'Step 20: {what}') and '\n' not in line
    assert all(value in line for value in values)
    assert '--learning_rate' in line and '--method' in line
    assert watch.message(30, found) is None


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
        _, metrics = losses_of(lambda: collapsing(bias), batches, eager=True)
    assert {'representation_spread', 'projection_spread'} <= set(metrics[0])
    assert (collapse.Watch().message(1, metrics[0]) is not None) == collapsed
