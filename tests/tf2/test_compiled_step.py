"""Requirements of TPUs, as far as a CPU can test them: XLA compiles steps, and shapes are static.

XLA for the CPU compiles more than a TPU can run: it also takes operations whose result has as many
rows as the values say. So shapes are checked apart, in the graph.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from common.stages import STAGES
from tests.support import mirrored, plain_networks, relative_error, run_on_replicas
from tf2.config import LearningConfig, ModelConfig, OptimizerConfig, TrainConfig
from tf2.evaluators.agreement import TeacherAgreement
from tf2.evaluators.base import Inputs
from tf2.evaluators.classification import Classification
from tf2.evaluators.knn import NearestNeighbors
from tf2.evaluators.per_class import PerClass
from tf2.methods.base import build
from tf2.methods.nt_xent import nt_xent
from tf2.models.encoder import SimCLRModel, build_model
from tf2.optimizers import OPTIMIZERS, builder, decay
from tf2.trainer import Penalty, Trainer

pytestmark = pytest.mark.usefixtures('shallow')

BATCH, CLASSES = 8, 3
MODEL = ModelConfig(resnet_depth=18, width_multiplier=0.125, proj_out_dim=6)

# One for each method, and those that take another way through it.
STEPS = {
    'pretrain': LearningConfig(),
    'pretrain, memory': LearningConfig(memory_size=2 * BATCH, momentum_encoder_decay=0.5),
    'pretrain, SimSiam': LearningConfig(method='simsiam', predictor_hidden_dim=8),
    'finetune': LearningConfig(train_mode='finetune', fine_tune_after_block=2),
    'distill': LearningConfig(train_mode='distill', teacher='made up'),
    'distill, labels': LearningConfig(train_mode='distill', teacher='made up', distill_alpha=0.5),
}


# --- the checks


def dynamic_shapes(function: Any) -> list[str]:
    """Outputs in a concrete function, and those it calls, whose shape depends on values."""
    definition = function.graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return [
        f'{node.op} {node.name}:{index}'
        for node in nodes
        for index, shape in enumerate(node.attr['_output_shapes'].list.shape)
        if not tf.TensorShape(shape).is_fully_defined() and not _is_scratch(node, index)
    ]


def _is_scratch(node: Any, index: int) -> bool:
    """Whether this is space for cuDNN's gradient of batch normalization, unused elsewhere.

    It is the one output of that kernel without a shape; the gradient also asks for zeros like it.
    """
    if node.op == 'ZerosLike':
        source = node.input[0]
        return 'FusedBatchNormV3' in source and source.endswith((':5', ':reserve_space_3:0'))
    return (node.op, index) == ('FusedBatchNormV3', 5)


def check(function: Callable[..., Any], *args: Any) -> Any:
    """Compiles `function` and returns its result; fails if XLA can't, or a shape is not static."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    result = compiled(*args)
    found = dynamic_shapes(compiled.get_concrete_function(*args))
    assert not found, f'shapes that depend on values: {found}'
    return result


# --- the checks can fail


@tf.function(autograph=False)
def some_rows(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.boolean_mask(rows, rows > 0))


DYNAMIC = {
    'boolean_mask': lambda rows: tf.reduce_sum(tf.boolean_mask(rows, rows > 0)),
    'in a function': some_rows,
    'in a loop': lambda rows: tf.while_loop(
        lambda total: total < 1.0, lambda total: [total + some_rows(rows)], [0.0]
    )[0],
    'where': lambda rows: tf.shape(tf.where(rows > 0))[0],
    'unique': lambda rows: tf.size(tf.unique(rows)[0]),
}


@pytest.mark.smoke
@pytest.mark.parametrize('name', DYNAMIC)
def test_a_shape_that_depends_on_values_is_found(name: str) -> None:
    # XLA for the CPU compiles it.
    with pytest.raises(AssertionError, match='depend on values'):
        check(DYNAMIC[name], tf.constant([1.0, -2.0, 3.0]))


def test_a_batch_of_unknown_size_is_found() -> None:
    spec = tf.TensorSpec([None, 2])
    function = tf.function(lambda rows: rows + 1.0, autograph=False).get_concrete_function(spec)
    assert any('AddV2' in found for found in dynamic_shapes(function))


HOST_ONLY = {
    'EagerPyFunc': lambda rows: tf.py_function(abs, [rows], tf.float32),
    'AsString': lambda rows: tf.strings.to_number(tf.strings.as_string(rows)),
    'StringFormat': lambda rows: [rows, tf.print(rows)][0],
}


@pytest.mark.smoke
@pytest.mark.parametrize('operation', HOST_ONLY)
def test_an_operation_of_the_host_is_found(operation: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f'unsupported .*{operation}'):
        check(HOST_ONLY[operation], tf.ones([3]))


def test_a_summary_within_a_step_is_found(tmp_path: pathlib.Path) -> None:
    writer = tf.summary.create_file_writer(str(tmp_path))

    def step(rows: tf.Tensor) -> tf.Tensor:
        with writer.as_default(step=0):
            tf.summary.scalar('first', rows[0])
        return rows

    with pytest.raises(tf.errors.InvalidArgumentError, match=r'unsupported .*WriteSummary'):
        check(step, tf.ones([3]))


# --- training


def network_of(name: str) -> contextlib.AbstractContextManager[None]:
    """A ResNet in the first of `STEPS`, else a plain network, which compiles faster."""
    return contextlib.nullcontext() if name == next(iter(STEPS)) else plain_networks()


def trainer_of(
    name: str, precision: str = 'float32', replicas: int = 1
) -> tuple[Trainer, list[tf.Variable]]:
    """The training of `STEPS[name]`, and all its variables; each call starts from the same."""
    with network_of(name):
        return _trainer_of(STEPS[name], precision, replicas)


def _trainer_of(
    config: LearningConfig, precision: str, replicas: int
) -> tuple[Trainer, list[tf.Variable]]:
    tf.keras.utils.set_random_seed(0)

    def model_of(**options: Any) -> SimCLRModel:
        model = build_model(SimCLRModel(MODEL, 8, CLASSES, precision=precision, **options))
        for variable in model.variables:
            # Gammas of 0 would keep gradients from the blocks.
            if 'gamma' in variable.name:
                variable.assign(tf.ones_like(variable))
        return model

    model = model_of(replicas=replicas, detach_classifier=config.train_mode == 'pretrain')
    teacher = None
    if config.train_mode == 'distill':
        frozen = model_of()
        teacher = lambda images: frozen(images, training=False)['logits_sup']  # noqa: E731
    method = build(model, config, teacher)
    method.initialize()
    optimizer = builder.build(
        OptimizerConfig(weight_decay=1e-4), 0.1, decay.decayed_kernels([model.backbone])
    )
    trainer = Trainer(method, optimizer, Penalty(1e-4, [model.classifier.kernel]), TrainConfig())
    return trainer, [*model.variables, *method.variables]


def batch() -> dict[str, Any]:
    views = np.random.default_rng(0).random((2, BATCH, 8, 8, 3), np.float32)
    labels = np.arange(BATCH, dtype=np.int32) % (CLASSES + 1) - 1  # -1: without a label
    return {'views': tuple(map(tf.constant, views)), 'label': tf.constant(labels)}


def step_of(
    name: str, precision: str = 'float32', *, compiled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Metrics of one step, and all changes of variables in a row."""
    trainer, variables = trainer_of(name, precision)
    before = [variable.numpy() for variable in variables]
    if compiled:
        metrics = check(trainer.replica_step, batch())
    else:
        metrics = trainer.replica_step(batch())
    changes = [variable.numpy() - old for variable, old in zip(variables, before, strict=True)]
    assert trainer.step == 1
    return metrics.numpy(), np.concatenate([change.ravel() for change in changes])


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_every_method_is_among_the_steps() -> None:
    assert {config.train_mode for config in STEPS.values()} == set(STAGES)


@pytest.mark.parametrize('name', STEPS)
def test_a_compiled_step_changes_weights_as_the_eager_one(name: str) -> None:
    metrics, changes = step_of(name, compiled=True)
    expected_metrics, expected_changes = step_of(name, compiled=False)
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-4, atol=1e-5)
    assert distance(changes, expected_changes) < 5e-3


def test_a_compiled_step_in_bfloat16_is_as_accurate_as_the_plain_one() -> None:
    metrics, changes = step_of('pretrain', 'bfloat16', compiled=True)
    _, plain_changes = step_of('pretrain', 'bfloat16', compiled=False)
    expected_metrics, expected_changes = step_of('pretrain', compiled=False)
    np.testing.assert_allclose(metrics[0], expected_metrics[0], rtol=0.02)  # the loss
    # Where a program is cut into kernels decides where it rounds to bfloat16.
    rounding = distance(plain_changes, expected_changes)
    assert distance(changes, expected_changes) < 1.5 * rounding < 0.5


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_compiles(name: str) -> None:
    if name == 'lamb':
        pytest.importorskip('tensorflow_addons')

    def updated(run: Callable[..., Any]) -> np.ndarray:
        kernel, bias = tf.Variable([[3.0, -4.0]]), tf.Variable([2.0])
        optimizer = builder.build(OptimizerConfig(optimizer=name), 0.1, [kernel])
        builder.create_variables(optimizer, [kernel, bias])

        def step(slope: tf.Tensor) -> tf.Tensor:
            builder.apply(optimizer, [slope * kernel, slope], [kernel, bias])
            return slope

        run(step, tf.constant([0.5]))
        return np.append(kernel.numpy(), bias.numpy())

    plain = updated(lambda step, slope: tf.function(step, autograph=False)(slope))
    np.testing.assert_allclose(updated(check), plain, rtol=1e-5)
    assert (plain != [3, -4, 2]).all()


# --- evaluation


def _features_of(kind: type, inputs: Inputs) -> Callable[..., Any]:
    kind(inputs)  # announces what it reads
    return inputs.samples.feature_pass._pass._of_replica


# What each replica runs on its share of a batch.
EVALUATIONS = {
    Classification: lambda inputs: _features_of(Classification, inputs),  # with ranks
    TeacherAgreement: lambda inputs: TeacherAgreement(inputs)._count,
    PerClass: lambda inputs: _features_of(PerClass, inputs),  # with logits
    NearestNeighbors: lambda inputs: _features_of(NearestNeighbors, inputs),  # without
}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', EVALUATIONS)
def test_a_compiled_evaluation_gives_what_the_plain_one_does(kind: type, precision: str) -> None:
    """A ResNet's first, then those of a plain network, which compiles several times faster."""
    tf.keras.utils.set_random_seed(0)
    with contextlib.nullcontext() if kind is Classification else plain_networks():
        model = build_model(SimCLRModel(MODEL, 8, CLASSES, precision=precision))
    inputs = Inputs(
        batches=list,
        num_classes=CLASSES,
        predict=lambda images: model(images, training=False)['logits_sup'],
        teach=lambda images: -model(images, training=False)['logits_sup'],
        embed=lambda images: model(images, training=False)['final_avg_pool'],
    )
    step = EVALUATIONS[kind](inputs)
    filled = {**batch(), 'mask': tf.range(BATCH) < BATCH - 2}
    tolerance = 1e-4 if precision == 'float32' else 0.02
    plain = tf.nest.flatten(tf.function(step, autograph=False)(filled))
    for found, expected in zip(tf.nest.flatten(check(step, filled)), plain, strict=True):
        assert found.dtype == expected.dtype
        assert relative_error(*(tf.cast(v, tf.float64) for v in (found, expected))) < tolerance


# --- two replicas


@pytest.mark.parametrize('name', ['pretrain, memory', 'finetune', 'distill, labels'])
def test_a_step_of_two_replicas_has_static_shapes(name: str) -> None:
    strategy = mirrored(2)
    with strategy.scope():
        trainer, _ = trainer_of(name, replicas=2)
    dataset = tf.data.Dataset.from_tensor_slices(batch()).batch(BATCH, drop_remainder=True)
    share = next(iter(strategy.experimental_distribute_dataset(dataset)))

    @tf.function(autograph=False)
    def step(share: Any) -> Any:
        return strategy.run(trainer.replica_step, (share,))

    assert not dynamic_shapes(step.get_concrete_function(share))


@pytest.mark.parametrize('remembered', [0, 5])
def test_nt_xent_of_two_replicas_compiles(remembered: int) -> None:
    """TensorFlow compiles both replicas into one program, on one device."""
    rng = np.random.default_rng(0)
    shares = rng.normal(size=(2, 2, 4, 6)).astype(np.float32)
    negatives = rng.normal(size=(remembered, 6)).astype(np.float32) if remembered else None

    def loss_and_gradients(view_a: tf.Tensor, view_b: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([view_a, view_b])
            contrast = nt_xent(view_a, view_b, 0.5, negatives=negatives, filled=3)
        return [contrast.loss, *tape.gradient(contrast.loss, [view_a, view_b])]

    compiled = tf.function(loss_and_gradients, jit_compile=True, autograph=False)
    found = run_on_replicas(mirrored(2), compiled, *shares)
    expected = run_on_replicas(mirrored(2), loss_and_gradients, *shares)
    for value, wanted in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_a_step_of_two_replicas_does_not_compile() -> None:
    """Why `--jit_compile` is refused on several devices."""
    strategy = mirrored(2)
    with strategy.scope():
        weight = tf.Variable(1.0)
    step = tf.function(lambda: weight + 1.0, jit_compile=True, autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r'located in device .*CPU:1 from'):
        tf.function(lambda: strategy.run(step), autograph=False)()
