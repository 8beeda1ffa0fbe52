"""The estimate's arithmetic: known layers, published figures, and TensorFlow's own counts."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

from benchmarks import scaling, scaling_checks
from benchmarks.scaling import Costs, Devices, Graph, Network
from tests.support import GOLDEN
from tf2.config import ModelConfig
from tf2.models import resnet
from tf2.models.encoder import SimCLRModel, build_model

SMALL = Network(ModelConfig(resnet_depth=18, width_multiplier=0.25), 32, 'float32')
DEVICES = Devices(count=4, peak_flops=1e12, utilization=0.5, bandwidth=1e9, memory=16e9)


@pytest.fixture(scope='module')
def resnet50() -> Costs:
    return scaling.costs(Network(ModelConfig(resnet_depth=50), 224, 'float32'), global_bn=False)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves one block in each group of ResNet-18, which is faster to trace."""
    monkeypatch.setitem(resnet.BLOCKS_PER_GROUP, 18, (1, 1, 1, 1))


def graph_of(function: object) -> Graph:
    """`function` returns a value, and what to differentiate it with respect to."""
    with tf.Graph().as_default() as graph:
        value, source = function()
        forward = graph.get_operations()
        tf.gradients(value, source)
        return Graph(None, forward, graph.get_operations()[len(forward) :])


@pytest.mark.parametrize(('padding', 'rows'), [('SAME', 112), ('VALID', 109)])
def test_a_convolution_and_its_gradients(padding: str, rows: int) -> None:
    def convolved() -> tuple[tf.Tensor, list[tf.Tensor]]:
        images, kernel = tf.ones([5, 224, 224, 3]), tf.ones([7, 7, 3, 64])
        return tf.nn.conv2d(images, kernel, 2, padding), [images, kernel]

    graph = graph_of(convolved)
    expected = 2 * (7 * 7 * 3) * (5 * rows * rows * 64)
    assert sum(map(scaling.flops, graph.forward)) == expected
    assert sum(map(scaling.flops, graph.backward)) == 2 * expected


@pytest.mark.parametrize('transpose_a', [False, True])
@pytest.mark.parametrize('transpose_b', [False, True])
def test_a_matrix_product_and_its_gradients(transpose_a: bool, transpose_b: bool) -> None:
    def product() -> tuple[tf.Tensor, list[tf.Tensor]]:
        left = tf.ones([3, 2] if transpose_a else [2, 3])
        right = tf.ones([5, 3] if transpose_b else [3, 5])
        options = {'transpose_a': transpose_a, 'transpose_b': transpose_b}
        return tf.matmul(left, right, **options), [left, right]

    graph = graph_of(product)
    assert sum(map(scaling.flops, graph.forward)) == 2 * 2 * 3 * 5
    assert sum(map(scaling.flops, graph.backward)) == 2 * (2 * 2 * 3 * 5)


def test_backward_keeps_what_it_reads_once() -> None:
    def two_layers() -> tuple[tf.Tensor, list[tf.Tensor]]:
        weights = tf.Variable(tf.ones([3, 5])), tf.Variable(tf.ones([5, 2]))
        hidden = tf.nn.relu(tf.ones([7, 3]) @ weights[0])
        return tf.nn.relu(hidden @ weights[1]), [weight.handle for weight in weights]

    # The input; the hidden layer, for its ReLU and for the next kernel; the output's ReLU.
    assert scaling.kept_bytes(graph_of(two_layers)) == 4 * (7 * 3 + 7 * 5 + 7 * 2)


def test_resnet50_costs_what_was_published(resnet50: Costs) -> None:
    """4.1e9 multiplications and additions for an image of 224 pixels (torchvision's model card)."""
    assert resnet50.forward_flops == pytest.approx(2 * 2 * 4.1e9, rel=0.01)
    # The images themselves get no gradient.
    assert 1.95 < resnet50.backward_flops / resnet50.forward_flops < 2


def test_parameters_are_the_golden_ones(resnet50: Costs) -> None:
    row = json.loads((GOLDEN / 'parameter_counts.json').read_text())[0]
    assert (row['resnet_depth'], row['width_multiplier'], row['sk_ratio']) == (50, 1, 0)
    assert resnet50.parameters == (
        row['backbone_trainable_parameters']
        + row['projection_head_trainable_parameters']
        + row['supervised_head_parameters']
    )
    # Each channel has a moving mean and a moving variance; the head has three norms more.
    moving = row['backbone_variables_total'] - row['backbone_trainable_parameters']
    assert resnet50.norm_channels == moving // 2 + 2048 + 2048 + 128
    assert resnet50.norms == 53 + 3


@pytest.mark.parametrize(('precision', 'global_bn'), [('float32', False), ('bfloat16', True)])
def test_costs_hold_for_other_batches(shallow: None, precision: str, global_bn: bool) -> None:
    network = Network(SMALL.model, SMALL.image_size, precision)
    found = scaling.costs(network, global_bn=global_bn)
    graph = scaling.trace(network, 6, global_bn=global_bn)
    expected = found.copied_bytes + 6 * found.kept_bytes
    assert scaling.kept_bytes(graph) == pytest.approx(expected, rel=0.02)
    assert sum(map(scaling.flops, graph.forward)) == pytest.approx(
        6 * found.forward_flops, rel=1e-3
    )


def test_the_profiler_counts_as_much() -> None:
    own, profiled = scaling_checks.profiled_flops(
        Network(ModelConfig(resnet_depth=18), 64, 'float32')
    )
    # It also counts ReLUs, sums and means, which weigh more where images are small.
    assert own < profiled < 1.1 * own


def test_nt_xent_has_the_products_that_are_counted(shallow: None) -> None:
    batch, width = 6, SMALL.model.proj_out_dim
    graph = scaling.trace(SMALL, batch, global_bn=False)
    products = [
        operation
        for operation in (*graph.forward, *graph.backward)
        if operation.type == 'MatMul' and batch in operation.outputs[0].shape
    ]
    found = sum(map(scaling.flops, products))
    assert found == batch * scaling.contrast_flops(batch, width)


def test_bytes_that_replicas_have_after_a_gather() -> None:
    assert (
        scaling.gathered_bytes(8, 6) == scaling_checks.gathered_on_replicas(8, 6) == 2 * 8 * 6 * 4
    )


def test_exchange_and_memory() -> None:
    found = Costs(1, 2, parameters=100, norms=2, norm_channels=10, kept_bytes=7, copied_bytes=50)
    assert scaling.all_reduce_seconds(2e9, DEVICES) == pytest.approx(2 * 3 / 4 * 2)
    assert scaling.statistics_bytes(found) == 4 * 10 * 4
    assert scaling.fixed_bytes(found, slots=1) == 3 * 100 * 4 + 50


def test_a_line_is_fitted() -> None:
    assert scaling_checks.slope([1, 2, 4], [5.0, 8.0, 14.0]) == pytest.approx(3)


def test_every_figure_of_the_estimate_is_printed(
    shallow: None, capsys: pytest.CaptureFixture
) -> None:
    rows = scaling.estimate(SMALL, 64, DEVICES, global_bn=True, slots=1)
    assert len(rows) == len({what for what, _ in rows})
    assert dict(rows)['images per device'] == '16'
    with pytest.raises(SystemExit):
        scaling.arguments(['--train_batch_size=100', '--devices=32'])
    assert 'must be a multiple of --devices' in capsys.readouterr().err


def test_measured_networks_are_the_named_ones() -> None:
    for measured in scaling_checks.MEASURED:
        assert measured.network.model == ModelConfig(resnet_depth=measured.depth)


def test_existing_models_still_work_after_tracing(shallow: None) -> None:
    """Making a model in a TensorFlow 1 graph makes Keras change the class of all models."""
    model = build_model(SimCLRModel(SMALL.model, SMALL.image_size, None))
    scaling.trace(SMALL, 2)
    assert model(tf.zeros([1, 32, 32, 3]))['final_avg_pool'].shape == [1, 128]
