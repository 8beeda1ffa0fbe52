"""A run from its configuration: all a user can get wrong is checked, before anything is written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

import capacity
import configuration
from configuration import Config
from data.label_subset import (
    LabelSubset,
    choose_labels,
    hide_other_labels,
    restrict,
    wants_subset,
)
from data.recipes import View, teacher_view
from data.service import check_answers
from data.sources import open_source
from data.sources.source import Source
from settings import UserError
from tf2 import distribution, precision, schedules
from tf2.config import ModelConfig
from tf2.files import checkpoints_in, step_of
from tf2.models.encoder import SimCLRModel, build_model
from tf2.objectives import build
from tf2.objectives.base import Objective
from tf2.optimizers import builder, decay
from tf2.teacher import Teacher, open_teacher
from tf2.trainer import Penalty
from tf2.weights import Weights, config_for, open_weights
from tf2.weights.files import URL_SCHEMES


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run that may start: everything the user could have got wrong was checked.

    Attributes:
        config: all settings; `train.model_dir` is set.
        source: the data set.
        strategy: where it runs.
        num_classes: classes of the classifier, None without one.
        train_examples: number of training examples.
        weights: what `--checkpoint` names, None without it.
        subset: the labelled examples, None where all are used.
        teacher: what a distillation learns from, None in other stages.
    """

    config: Config
    source: Source
    strategy: tf.distribute.Strategy
    num_classes: int | None
    train_examples: int
    weights: Weights | None
    subset: LabelSubset | None
    teacher: Teacher | None = None

    @property
    def pretrains(self) -> bool:
        """Whether this is the stage without labels."""
        return self.config.objective.train_mode == 'pretrain'

    @property
    def total_steps(self) -> int:
        """Updates of the run."""
        return schedules.train_steps(self.train_examples, self.config.train)

    @property
    def checkpoint_steps(self) -> int:
        """Updates between checkpoints."""
        train = self.config.train
        epoch = max(1, round(self.train_examples / train.train_batch_size))
        return train.checkpoint_steps or train.checkpoint_epochs * epoch


def prepare(config: Config, given: Mapping[str, Any]) -> Experiment:
    """Checks `config` against data, weights, devices and the model folder; writes nothing.

    Args:
        config: all settings.
        given: those of them that were given on the command line.

    Raises:
        UserError: for whatever the user can mend.
    """
    evaluates = config.run.mode == 'eval'
    config, weights = with_model_dir(config), None
    model_dir = config.train.model_dir
    strategy = distribution.build_strategy(config.train)
    if not evaluates:
        config, weights = _as_recorded(config, given) or with_weights(config, given)
    if config.data.tf_data_service and not evaluates:
        check_answers(config.data.tf_data_service)
    config = _with_recorded_range(config)
    source, subset, train_examples = open_data(config)
    if source.image_range:
        data = dataclasses.replace(config.data, image_range=source.image_range)
        config = dataclasses.replace(config, data=data)
    doing = 'evaluation' if evaluates else 'training'
    with (
        distribution.together(strategy, model_dir),
        distribution.within_memory(doing, config.train, strategy),
    ):
        config = _with_precision(config, strategy)
        check_devices(config, strategy)
        teacher = _open_teacher(config, strategy)
    num_classes = _num_classes(config, source, teacher)
    configuration.check_same_architecture(model_dir, config, num_classes)
    experiment = Experiment(
        config, source, strategy, num_classes, train_examples, weights, subset, teacher
    )
    if not evaluates:
        _check_length(model_dir, experiment.total_steps)
    return experiment


def _check_length(model_dir: str, total_steps: int) -> None:
    """Raises UserError if the folder's run already went further than it is to go."""
    done = max(map(step_of, checkpoints_in(model_dir)), default=0)
    if done > total_steps:
        raise UserError(
            f'--train_epochs or --train_steps must not end before what was trained: {model_dir} '
            f'holds step {done}, this run is to end at step {total_steps}. Choose another '
            '--model_dir, or train longer.'
        )


def open_data(config: Config) -> tuple[Source, LabelSubset | None, int]:
    """The data set, the labelled examples where only some are, and how many there are to train on.

    Raises:
        UserError: if they don't suffice for what `config` wants.
    """
    source, subset = _training_source(config)
    train_examples = source.num_examples(config.data.train_split)
    if train_examples < config.train.train_batch_size:
        raise UserError(
            f'--train_batch_size must be at most the number of training examples, '
            f'{train_examples} in {config.data.train_split!r} of {source.name}; found '
            f'{config.train.train_batch_size}.'
        )
    if config.objective.train_mode == 'finetune' and source.num_classes is None:
        raise UserError(
            f'--train_mode=finetune needs labels; {source.name} has none. Choose another '
            '--dataset, or --train_mode=pretrain.'
        )
    if config.run.mode != 'train':
        _check_evaluation(config, source, train_examples, subset)
    return source, subset, train_examples


def _as_recorded(config: Config, given: Mapping[str, Any]) -> tuple[Config, None] | None:
    """The architecture that a run recorded when it started from `--checkpoint`.

    None for a new run. One that goes on needs its own checkpoints only.
    """
    recorded = configuration.read_flags(config.train.model_dir)
    begun = recorded and checkpoints_in(config.train.model_dir)
    if not begun or config.objective.checkpoint is None:
        return None
    asked = configuration.to_values(config)
    names = {'image_size', *(field.name for field in dataclasses.fields(ModelConfig))}
    kept = {name: recorded[name] for name in names & recorded.keys() - given.keys()}
    return configuration.from_values({**asked, **kept}), None


def with_weights(config: Config, given: Mapping[str, Any]) -> tuple[Config, Weights | None]:
    """Opens `--checkpoint`, if there is one; what it tells fills in what was not given.

    That is the architecture, and the image size. A preset's image size counts as given: it belongs
    to the preset's data.

    Raises:
        UserError: if there is none where it should be, or it contradicts what was given.
    """
    if config.objective.checkpoint is None:
        return config, None
    weights = open_weights(os.path.expanduser(config.objective.checkpoint))
    data = config.data
    if 'image_size' not in given and config.run.preset is None:
        data = dataclasses.replace(data, image_size=weights.image_size)
    known = {**given, 'image_size': data.image_size}
    model = config_for(weights, config.model, known)
    distills = config.objective.train_mode == 'distill'
    if distills and 'ft_proj_selector' not in given and weights.selector is not None:
        # A student that goes on from a fine-tuned network keeps the layer its classifier reads.
        model = dataclasses.replace(model, ft_proj_selector=weights.selector)
    return dataclasses.replace(config, data=data, model=model), weights


def _training_source(config: Config) -> tuple[Source, LabelSubset | None]:
    """The data set, with fewer training examples where only some labels are to be used."""
    source = open_source(config.data)
    if not wants_subset(config.data):
        return source, None
    split = config.data.train_split
    source.num_examples(split)
    if source.num_classes is None:
        raise UserError(
            f'--label_fraction and --labels_per_class need labels; {source.name} has none.'
        )
    subset = choose_labels(source, config.data, split=split, seed=config.train.seed)
    # A student learns from all images.
    distills = config.objective.train_mode == 'distill'
    return (hide_other_labels if distills else restrict)(source, split, subset), subset


def _with_recorded_range(config: Config) -> Config:
    """`config` with the range of images that 'auto' stood for when the run began."""
    recorded = configuration.read_flags(config.train.model_dir) or {}
    if config.data.image_range != 'auto' or not checkpoints_in(config.train.model_dir):
        return config
    image_range = recorded.get('image_range', 'auto')
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, image_range=image_range)
    )


def _with_precision(config: Config, strategy: tf.distribute.Strategy) -> Config:
    """`config` with the precision that 'auto' stands for here, or stood for when the run began."""
    setting = config.train.mixed_precision
    if setting == 'auto':
        recorded = configuration.read_flags(config.train.model_dir) or {}
        begun = checkpoints_in(config.train.model_dir)
        setting = recorded.get('mixed_precision', 'float32') if begun else setting
        setting = precision.choose(setting, strategy)
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, mixed_precision=setting)
    )


def _open_teacher(config: Config, strategy: tf.distribute.Strategy) -> Teacher | None:
    if config.objective.teacher is None:
        return None
    with strategy.scope():
        return open_teacher(
            os.path.expanduser(config.objective.teacher), precision=config.train.mixed_precision
        )


def _num_classes(config: Config, source: Source, teacher: Teacher | None) -> int | None:
    if config.objective.train_mode == 'pretrain':
        return source.num_classes if config.objective.lineareval_while_pretraining else None
    if teacher is not None:
        _check_teacher(config, source, teacher)
        return teacher.num_classes
    return source.num_classes


def _check_teacher(config: Config, source: Source, teacher: Teacher) -> None:
    if source.num_classes not in (None, teacher.num_classes):
        raise UserError(
            f'--teacher={teacher.path} must have the classes of {source.name}, '
            f'{source.num_classes}; found {teacher.num_classes}. Choose a teacher that was '
            'fine-tuned on this data set.'
        )
    if source.num_classes is None and config.objective.distill_alpha < 1:
        raise UserError(
            f'--distill_alpha={config.objective.distill_alpha} gives weight to labels; '
            f'{source.name} has none. Use --distill_alpha=1.'
        )


def _check_evaluation(
    config: Config, source: Source, train_examples: int, subset: LabelSubset | None
) -> None:
    """Refuses now what would fail when the training is over."""
    split, neighbors = config.data.eval_split, config.train.knn_neighbors
    if not source.num_examples(split):
        raise UserError(f'--eval_split must have examples; {split!r} of {source.name} has none.')
    labelled = len(subset.indices) if subset else train_examples
    known = min(labelled, config.train.knn_examples)
    if source.num_classes and neighbors > known:
        raise UserError(
            f'--knn_neighbors must be at most the number of labelled training examples that are '
            f'searched, {known}; found {neighbors}.'
        )


def check_devices(config: Config, strategy: tf.distribute.Strategy) -> None:
    """Raises UserError if batches don't split over the replicas, or they can't do what is asked.

    What doesn't fit into their memory is refused too.
    """
    batches = {'eval_batch_size': config.train.eval_batch_size}
    if config.run.mode != 'eval':
        batches['train_batch_size'] = config.train.train_batch_size
    distribution.check_divisible(strategy, **batches)
    replicas = strategy.num_replicas_in_sync
    if config.train.jit_compile and replicas > 1 and not distribution.is_tpu(strategy):
        raise UserError(
            f'--jit_compile works on one device or a TPU; found {replicas} devices, between which '
            'a compiled step cannot communicate. Leave it out.'
        )
    if config.train.mixed_precision == 'float16' and distribution.is_tpu(strategy):
        raise UserError(
            '--mixed_precision=float16 works on GPUs and CPUs; found a TPU, for which Keras scales '
            'no loss. Use --mixed_precision=bfloat16.'
        )
    if distribution.is_tpu(strategy):  # nobody tells how much memory it has
        return
    devices = capacity.devices_of(
        replicas,
        distribution.replicas_here(strategy),
        on_gpu=distribution.has_accelerators(strategy),
    )
    if devices is not None:
        capacity.check_fits(config, devices, _settings_of_teacher(config))


def _settings_of_teacher(config: Config) -> dict[str, Any] | None:
    """What the run that made the teacher recorded; None where the teacher is something else."""
    path = config.objective.teacher
    if not path or path.startswith(URL_SCHEMES):
        return None
    return configuration.read_flags(os.path.expanduser(path))


def with_model_dir(config: Config) -> Config:
    """`config` with a model folder that can be written to.

    Raises:
        UserError: if the one given is, or can become, no such folder.
    """
    model_dir = os.path.expanduser(config.train.model_dir)
    _check_model_dir(model_dir)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, model_dir=model_dir))


def _check_model_dir(model_dir: str) -> None:
    if '://' in model_dir:
        return
    if os.path.exists(model_dir) and not os.path.isdir(model_dir):
        raise UserError(f'--model_dir must be a folder; {model_dir} is a file.')
    existing = os.path.abspath(model_dir)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f'--model_dir={model_dir} cannot be made: {existing} is a file.')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f'--model_dir={model_dir} cannot be written: {existing} is not writable.')


def build_model_of(experiment: Experiment) -> SimCLRModel:
    """The model, with fresh weights; to be called within the strategy's scope."""
    config = experiment.config
    return build_model(
        SimCLRModel(
            config.model,
            config.data.image_size,
            experiment.num_classes,
            replicas=experiment.strategy.num_replicas_in_sync,
            precision=config.train.mixed_precision,
            filter_products=precision.gains_from_products(
                config.train.mixed_precision, experiment.strategy
            ),
            detach_classifier=experiment.pretrains,
        )
    )


def build_objective(experiment: Experiment, model: SimCLRModel) -> Objective:
    """What is minimised; freezes parts of `model`. Within the strategy's scope."""
    teacher = experiment.teacher
    return build(model, experiment.config.objective, teacher and teacher.logits)


def view_for_teacher(experiment: Experiment, *, evaluates: bool = False) -> View | None:
    """The view that the pipeline adds for the teacher; None where it sees the student's.

    Args:
        experiment: what is run.
        evaluates: whether views are those of evaluation.
    """
    teacher, config = experiment.teacher, experiment.config
    if teacher is None:
        return None
    size = teacher.image_size or config.data.image_size
    kind = 'eval' if evaluates else config.objective.teacher_view
    same = kind == 'student' or evaluates
    return None if same and size == config.data.image_size else teacher_view(kind, size)


def penalty_of(config: Config, model: SimCLRModel) -> Penalty:
    """The L2 term of the loss: of what the optimizer itself does not decay."""
    if config.optimizer.optimizer in builder.DECAY_IN_UPDATE:
        variables = [model.classifier.kernel] if model.classifier else []
    else:
        variables = decay.not_batch_norm(model, model.trainable_variables)
    return Penalty(config.optimizer.weight_decay, variables)
