"""Builds the parts of a run, for training, evaluation and benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from app.config.schema import Config
from common.views import EVALUATION, View, teacher_view
from tf2 import precision, schedules
from tf2.methods import make_head
from tf2.methods.base import Batch, Method, build
from tf2.models.encoder import SimCLRModel, build_model
from tf2.optimizers import OPTIMIZERS, builder, decay
from tf2.teacher import Teacher
from tf2.trainer import Penalty, Trainer


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The parts of a training run."""

    model: SimCLRModel
    method: Method
    schedule: schedules.WarmupCosine
    optimizer: builder.Optimizer
    trainer: Trainer


def assemble(
    config: Config,
    *,
    num_classes: int | None,
    train_examples: int,
    teacher: Teacher | None = None,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Assembly:
    """Builds everything that a training step needs; to be called within the strategy's scope.

    Args:
        config: all settings; `mixed_precision` is no longer 'auto'.
        num_classes: of the classifier; None without one.
        train_examples: in an epoch.
        teacher: for a stage that has one.
        prepare: see `Trainer`.
    """
    model = network(config, num_classes)
    method = build(model, config.learning, teacher and teacher.logits, train_examples)
    schedule = schedules.build(config.optimizer, config.train, train_examples)
    method.progress = schedule.progress
    method.epoch = lambda step: schedules.epochs(
        step + schedule.ahead,
        num_examples=train_examples,
        batch_size=config.train.train_batch_size,
    )
    scales = config.train.mixed_precision == 'float16'
    optimizer = builder.build(
        config.optimizer,
        schedule,
        decayed_by(method),
        unscheduled=[v for module in method.unscheduled() for v in module.trainable_variables],
        scales_loss=scales,
    )
    penalty = penalty_of(config, model, method.trained())
    trainer = Trainer(method, optimizer, penalty, config.train, prepare)
    return Assembly(model, method, schedule, optimizer, trainer)


def network(config: Config, num_classes: int | None) -> SimCLRModel:
    """The model, with fresh weights; to be called within the strategy's scope."""
    strategy, dtype = tf.distribute.get_strategy(), config.train.mixed_precision
    return build_model(
        SimCLRModel(
            config.model,
            config.data.image_size,
            num_classes,
            replicas=strategy.num_replicas_in_sync,
            norm_parts=config.learning.norm_parts,
            precision=dtype,
            filter_products=precision.uses_filter_products(dtype, strategy),
            detach_classifier=not config.learning.stage.classifies,
            make_head=make_head(config.learning.method),
        )
    )


def decayed_by(method: Method) -> list[tf.Variable]:
    """The variables that LARS and LAMB decay and adapt: all kernels except the classifier's."""
    classifier = method.model.classifier
    return decay.decayed_kernels(method.trained(), besides=[classifier] if classifier else [])


def penalty_of(
    config: Config, model: SimCLRModel, trained: Sequence[tf.Module] | None = None
) -> Penalty:
    """The L2 term of the loss, for the variables that the optimizer itself does not decay.

    Args:
        config: all settings.
        model: the model that is trained or evaluated.
        trained: the modules that are trained; default: the model alone.
    """
    entry, modules = OPTIMIZERS[config.optimizer.optimizer], [model] if trained is None else trained
    if entry.decays_in_update:
        variables = [model.classifier.kernel] if model.classifier else []
    elif entry.decays_everything:
        variables = decay.everything(modules)
    else:
        variables = decay.kernels_and_biases(modules)
    return Penalty(config.optimizer.weight_decay, variables)


def views_of(
    config: Config, teacher: Teacher | None, *, evaluates: bool = False
) -> tuple[View, ...]:
    """The views of each example; the last one is the teacher's where it doesn't see the student's.

    Args:
        config: all settings.
        teacher: for a stage that has one.
        evaluates: whether to return the views of evaluation.
    """
    views = EVALUATION if evaluates else config.learning.views
    if teacher is None:
        return views
    size = teacher.image_size or config.data.image_size
    kind = 'eval' if evaluates else config.learning.teacher_view
    same = kind == 'student' or evaluates
    return views if same and size == config.data.image_size else (*views, teacher_view(kind, size))
