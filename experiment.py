"""A run from its configuration: what is checked first, what is built, trained and evaluated."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

import configuration
import hub_export
from configuration import Config
from data import pipeline
from data.sources import open_source
from data.sources.source import Source
from settings import UserError
from tf2 import checkpoints, distribution, evaluators, schedules
from tf2.evaluators.base import Inputs
from tf2.evaluators.results import write_results
from tf2.models.encoder import SimCLRModel, build_model
from tf2.objectives import OBJECTIVES
from tf2.optimizers import builder, decay
from tf2.trainer import Penalty, Trainer

SAMPLE_VIEWS = 8  # images of which both views are shown in TensorBoard
SECONDS_BETWEEN_POLLS = 10


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run that may start: everything the user could have got wrong was checked.

    Attributes:
        config: all settings; `train.model_dir` is set.
        source: the data set.
        strategy: where it runs.
        num_classes: classes of the online classifier, None without labels.
        train_examples: number of training examples.
    """

    config: Config
    source: Source
    strategy: tf.distribute.Strategy
    num_classes: int | None
    train_examples: int

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


def prepare(config: Config) -> Experiment:
    """Checks `config` against data, devices and what is in the model folder; writes nothing.

    Raises:
        UserError: for whatever the user can mend.
    """
    model_dir = os.path.expanduser(config.train.model_dir or _fresh_model_dir())
    _check_model_dir(model_dir)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, model_dir=model_dir)
    )
    if config.objective.train_mode == 'finetune':
        raise UserError('--train_mode=finetune is not available yet; use --train_mode=pretrain.')
    source = open_source(config.data)
    train_examples = source.num_examples(config.data.train_split)
    if train_examples < config.train.train_batch_size:
        raise UserError(
            f'--train_batch_size must be at most the number of training examples, '
            f'{train_examples} in {config.data.train_split!r} of {source.name}; found '
            f'{config.train.train_batch_size}.'
        )
    if config.run.mode != 'train':
        _check_evaluation(config, source, train_examples)
    num_classes = source.num_classes if config.objective.lineareval_while_pretraining else None
    configuration.check_same_architecture(model_dir, config, num_classes)
    strategy = distribution.build_strategy(config.train)
    distribution.check_divisible(
        strategy,
        train_batch_size=config.train.train_batch_size,
        eval_batch_size=config.train.eval_batch_size,
    )
    return Experiment(config, source, strategy, num_classes, train_examples)


def _check_evaluation(config: Config, source: Source, train_examples: int) -> None:
    """Refuses now what would fail when the training is over."""
    split, neighbors = config.data.eval_split, config.train.knn_neighbors
    if not source.num_examples(split):
        raise UserError(f'--eval_split must have examples; {split!r} of {source.name} has none.')
    known = min(train_examples, config.train.knn_examples)
    if neighbors > known:
        raise UserError(
            f'--knn_neighbors must be at most the number of training examples that are searched, '
            f'{known}; found {neighbors}.'
        )


def _fresh_model_dir() -> str:
    stem = os.path.join('runs', time.strftime('%Y%m%d-%H%M%S'))
    names = (stem if i == 0 else f'{stem}-{i}' for i in range(1000))
    return next(name for name in names if not os.path.exists(name))


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


def _build_model(experiment: Experiment) -> SimCLRModel:
    config = experiment.config
    return build_model(
        SimCLRModel(
            config.model,
            config.data.image_size,
            experiment.num_classes,
            replicas=experiment.strategy.num_replicas_in_sync,
            precision=config.train.mixed_precision,
            detach_classifier=True,
        )
    )


def _penalty(config: Config, model: SimCLRModel) -> Penalty:
    """The L2 term of the loss: of what the optimizer itself does not decay."""
    if config.optimizer.optimizer in builder.DECAY_IN_UPDATE:
        variables = [model.classifier.kernel] if model.classifier else []
    else:
        variables = decay.not_batch_norm(model, model.trainable_variables)
    return Penalty(config.optimizer.weight_decay, variables)


def train(experiment: Experiment, *, evaluate: bool) -> None:
    """Trains, or goes on training, in the model folder; evaluates if asked to; exports.

    Raises:
        UserError: when the loss is not finite.
    """
    config, model_dir = experiment.config, experiment.config.train.model_dir
    tf.keras.utils.set_random_seed(config.train.seed)
    with experiment.strategy.scope():
        model = _build_model(experiment)
        objective = OBJECTIVES[config.objective.train_mode](model, config.objective)
        schedule = schedules.build(config.optimizer, config.train, experiment.train_examples)
        decayed = [
            *decay.decayed_kernels(model.backbone),
            *decay.decayed_kernels(model.projection_head),
        ]
        optimizer = builder.build(config.optimizer, schedule, decayed)
        penalty = _penalty(config, model)
        trainer = Trainer(objective, optimizer, penalty, config.train)
        saved = checkpoints.Checkpoints(
            model_dir, model, objective, optimizer, config.train.keep_checkpoint_max
        )
        _announce(experiment, saved.resume())
        _fit(experiment, trainer, saved, schedule)
        if evaluate:
            _show(_evaluate(experiment, model, trainer.step))
    _export(experiment, model, trainer.step)
    print(f'Curves and sample views: tensorboard --logdir {model_dir}')


def follow(given: Mapping[str, Any]) -> None:
    """Evaluates each new checkpoint of a model folder until the last one of its training.

    Args:
        given: flags of the command line; they win over those the folder was trained with.

    Raises:
        UserError: if there is no such folder, or it does not fit the flags.
    """
    model_dir = given.get('model_dir') and os.path.expanduser(given['model_dir'])
    if not model_dir or not tf.io.gfile.isdir(model_dir):
        raise UserError(
            f'--mode=eval needs --model_dir, the folder of a training run; found {model_dir}.'
        )
    recorded = _wait_for_flags(model_dir)
    known = {field.name for _, _, field in configuration.all_options()}
    trained = {name: value for name, value in recorded.items() if name in known}
    experiment = prepare(configuration.from_values({**trained, **given}))
    with experiment.strategy.scope():
        model = _build_model(experiment)
        measures = _evaluators(experiment, model)
        for path in tf.train.checkpoints_iterator(model_dir, SECONDS_BETWEEN_POLLS):
            step = checkpoints.load_model(path, model)
            _show(_evaluate(experiment, model, step, measures))
            if step >= experiment.total_steps:
                return


def _wait_for_flags(model_dir: str) -> dict[str, Any]:
    """What the training run recorded; waits for it to start."""
    recorded = configuration.read_flags(model_dir)
    if recorded is None:
        print(f'Waiting for a training run to start in {model_dir}.', flush=True)
    while recorded is None:
        time.sleep(SECONDS_BETWEEN_POLLS)
        recorded = configuration.read_flags(model_dir)
    return recorded


def _show(results: Mapping[str, float]) -> None:
    print('  '.join(f'{name} {value:.4f}' for name, value in results.items()), flush=True)


def _announce(experiment: Experiment, resumed: str | None) -> None:
    config, source = experiment.config, experiment.source
    model_dir = config.train.model_dir
    classes = f'{source.num_classes} classes' if source.num_classes else 'no labels'
    print(f'{source.name}: {experiment.train_examples} training images, {classes}.')
    if source.num_classes is None:
        print('Without labels there is no online classifier, and no accuracy.')
    start = f'going on from {resumed}' if resumed else 'from scratch'
    print(
        f'Pretraining ResNet-{config.model.resnet_depth} '
        f'(width {config.model.width_multiplier}) {start}, '
        f'{experiment.total_steps} steps of {config.train.train_batch_size} images, in {model_dir}',
        flush=True,
    )
    tf.io.gfile.makedirs(model_dir)
    facts = {'num_classes': experiment.num_classes, 'train_examples': experiment.train_examples}
    configuration.write_flags(model_dir, config, facts)


def _fit(
    experiment: Experiment,
    trainer: Trainer,
    saved: checkpoints.Checkpoints,
    schedule: schedules.WarmupCosine,
) -> None:
    if trainer.step >= experiment.total_steps:
        print(f'Training is done: {trainer.step} steps.')
        return
    config = experiment.config
    writer = tf.summary.create_file_writer(config.train.model_dir)
    with writer.as_default():
        _write_sample_views(experiment, trainer.step)

        def write(step: int, means: Mapping[str, float]) -> None:
            for name, value in means.items():
                tf.summary.scalar(f'train/{name}', value, step)
            tf.summary.scalar('learning_rate', schedule(step), step)
            writer.flush()

        batches = pipeline.train_batches(
            experiment.source,
            config.data,
            split=config.data.train_split,
            recipe=config.objective.train_mode,
            batch_size=config.train.train_batch_size,
            seed=config.train.seed,
            start_step=trainer.step,
        )
        trainer.fit(
            batches,
            experiment.total_steps,
            checkpoints=saved,
            checkpoint_steps=experiment.checkpoint_steps,
            write=write,
        )


def _write_sample_views(experiment: Experiment, step: int) -> None:
    config = experiment.config
    views = pipeline.sample_views(
        experiment.source,
        config.data,
        split=config.data.train_split,
        recipe=config.objective.train_mode,
        count=SAMPLE_VIEWS,
        seed=config.train.seed,
    )
    pairs = tf.concat(views, axis=2)  # [n, h, 2w, 3]: the views of an image side by side
    tf.summary.image('train/views', pairs, step, max_outputs=SAMPLE_VIEWS)


def _evaluators(experiment: Experiment, model: SimCLRModel) -> list[evaluators.Evaluator]:
    """What to measure, to be built within the strategy's scope."""
    config, source = experiment.config, experiment.source

    def batches(split: str, limit: int) -> Iterable[Any]:
        whole = pipeline.eval_batches(
            source, config.data, split=split, batch_size=config.train.eval_batch_size
        )
        return experiment.strategy.experimental_distribute_dataset(
            whole.take(limit) if limit else whole
        )

    def endpoint(name: str) -> Any:
        return lambda images: model(images, training=False)[name]

    labels = source.num_classes is not None
    inputs = Inputs(
        batches=functools.partial(batches, config.data.eval_split, config.train.eval_steps),
        num_classes=source.num_classes or 0,
        predict=endpoint('logits_sup') if model.classifier else None,
        embed=endpoint('final_avg_pool') if labels else None,
        train_batches=functools.partial(batches, config.data.train_split, 0),
        neighbors=config.train.knn_neighbors,
        neighbor_examples=config.train.knn_examples,
    )
    return evaluators.build(inputs)


def _evaluate(
    experiment: Experiment,
    model: SimCLRModel,
    step: int,
    measures: list[evaluators.Evaluator] | None = None,
) -> dict[str, float]:
    """Measures, writes `result.json` and TensorBoard events, and returns name -> value."""
    config, model_dir = experiment.config, experiment.config.train.model_dir
    print(f'Evaluating step {step} on {config.data.eval_split!r} of {experiment.source.name}.')
    results = evaluators.run(measures or _evaluators(experiment, model))
    penalty = _penalty(config, model)
    results['eval/regularization_loss'] = float(penalty.value())
    writer = tf.summary.create_file_writer(os.path.join(model_dir, config.train.eval_name or ''))
    with writer.as_default():
        for name, value in results.items():
            tf.summary.scalar(name, value, step)
    writer.close()
    write_results(model_dir, step, results)
    return results


def _export(experiment: Experiment, model: SimCLRModel, step: int) -> None:
    config = experiment.config
    path = hub_export.export_module(
        model,
        os.path.join(config.train.model_dir, 'saved_model'),
        step,
        image_size=config.data.image_size,
        decode=functools.partial(pipeline.decode_for_evaluation, config=config.data),
        weight_decay=config.optimizer.weight_decay,
        keep=config.train.keep_hub_module_max,
    )
    print(f'Exported: hub.load({path!r})')
