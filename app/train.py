"""A training run from its start, or from where it stopped, to the exported module."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

import hub_export
from app import lock, resuming
from app.assembly import assemble, views_of
from app.classes import check_recorded
from app.config.schema import TRAIN_EXAMPLES, Config
from app.evaluate import Tracker
from app.experiment import (
    Experiment,
    prepare,
    show_data,
    with_weights,
    within_memory,
)
from app.preflight import with_model_dir
from app.run_folder import RESTORE, write_flags
from common.errors import UserError
from common.file_names import (
    CHECKPOINT,
    FLAGS_FILE,
    LABELS_FILE,
    MODULES,
    MOMENTUM_MODULES,
    PIPELINE_FILE,
)
from common.interruption import Stop
from data.batches import Batch, decode_for_evaluation, finisher, sample_views, train_batches
from data.failures import as_user_errors, explain
from data.worker import Worker
from tf2 import checkpoints, distribution, records, schedules
from tf2.files import PATTERN, checkpoints_in, clear_leftovers, write_text, writing
from tf2.models.encoder import SimCLRModel
from tf2.trainer import EXAMPLES_SEEN, FIRST_LOSS, Trainer
from tf2.weights import Report

SAMPLE_VIEWS = 8  # images of which the views are shown in TensorBoard
GROWTH = 10  # so many times the loss of the first step says that a training diverged


def run(config: Config, given: Mapping[str, Any], stop: Stop) -> None:
    """Checks everything, then trains, and evaluates if the mode says so; see `train`.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        stop: whether a signal has come.
    """
    train(prepare(config, given), evaluate=config.run.does.measures, stop=stop)


def train(experiment: Experiment, *, evaluate: bool, stop: Stop) -> None:
    """Trains, or resumes training, in the model folder; evaluates if asked to; exports.

    Args:
        experiment: what to run.
        evaluate: whether to measure what was trained.
        stop: whether a signal has come.

    Raises:
        UserError: when the loss is not finite, files can't be read or written, another process
            uses the folder, or another worker is gone.
        Interrupted: when a signal came.
    """
    model_dir, strategy = experiment.config.output.model_dir, experiment.strategy
    momentum = experiment.config.learning.export_momentum_encoder
    roots = [MODULES, MOMENTUM_MODULES] if momentum else [MODULES]
    for root in roots:
        hub_export.check_place(os.path.join(model_dir, root), experiment.total_steps)
    writes = distribution.is_chief(strategy)
    with (
        lock.held(model_dir) if writes else contextlib.nullcontext(),
        distribution.together(strategy, model_dir),
        within_memory('training', experiment.config, strategy),
    ):
        _train(experiment, evaluate=evaluate, stop=stop)


def _train(experiment: Experiment, *, evaluate: bool, stop: Stop) -> None:
    config, model_dir = experiment.config, experiment.config.output.model_dir
    writes = distribution.is_chief(experiment.strategy)
    stop.listen()
    if writes:
        with writing(model_dir):
            clear_leftovers(model_dir)
    tf.keras.utils.set_random_seed(config.train.seed)
    with experiment.strategy.scope():
        made = assemble(
            config,
            num_classes=experiment.num_classes,
            train_examples=experiment.train_examples,
            teacher=experiment.teacher,
            prepare=_finisher(experiment),
        )
        model, method, trainer, schedule = made.model, made.method, made.trainer, made.schedule
        saved = checkpoints.Checkpoints(
            model_dir,
            model,
            method,
            made.optimizer,
            config.output.keep_checkpoint_max,
        )
        resumed = saved.resume()
        check_recorded(experiment.class_names, resumed, saved.record)
        saved.record['class_names'] = experiment.class_names
        # Before anything is written: the file may turn out to be damaged.
        report = None if resumed else _initialize(experiment, model)
        if not resumed:
            method.initialize()
        batch = config.train.train_batch_size
        history = experiment.history.at(trainer.step, saved.record, batch)
        experiment = dataclasses.replace(experiment, history=history)
        saved.record[EXAMPLES_SEEN] = history.position.examples
        schedule.ahead = history.position.ahead(config.train)
        _announce(experiment, resumed, report)
        _announce_rate(experiment, schedule)
        if experiment.stage.classifies:
            print(f'Training {describe_trainable(model)}')
        tracker = Tracker(experiment, model) if evaluate else None
        if resumed and tracker and experiment.stage.classifies:
            tracker.catch_up(trainer.step)
        _fit(experiment, trainer, saved, schedule, tracker, stop)
    _tell_growth(saved.record.get(FIRST_LOSS), trainer.latest_loss)
    for folder, exported in method.exports().items():
        _export(config, exported, trainer.step, folder, names=experiment.class_names, writes=writes)
    if tracker is not None:
        tracker.finish(trainer.step)
    distribution.wait_for_all(experiment.strategy)
    print(f'Curves and sample views: tensorboard --logdir {model_dir}')


def _initialize(experiment: Experiment, model: SimCLRModel) -> Report | None:
    """Loads `--checkpoint`, if there is one, into the new `model`."""
    zero = experiment.config.learning.zero_init_logits_layer
    if zero:
        for variable in model.classifier.variables:
            variable.assign(tf.zeros_like(variable))
    if experiment.weights is None:
        return None
    return experiment.weights.load_into(
        model,
        head_layers=experiment.config.model.ft_proj_selector if experiment.stage.classifies else 0,
        no_classifier='starts anew' if zero else _why_no_classifier(experiment),
    )


def _why_no_classifier(experiment: Experiment) -> str | None:
    """Why the classifier in `--checkpoint` may not be the one to start from; None if it may.

    It may not if it knows other classes or read another layer of the head, nor if it may have
    learned from labels that this run is not to know. A student may know what its teacher knows,
    and no more.
    """
    config = experiment.config
    if experiment.other_classes is not None:
        return experiment.other_classes
    if not experiment.stage.classifies:
        return None
    stays = (experiment.weights.selector or 0) == config.model.ft_proj_selector
    if experiment.teacher is not None:
        stays &= config.learning.checkpoint == config.learning.teacher
    else:
        stays &= experiment.subset is None
    return None if stays else 'starts anew'


def _show(report: Report, verbosity: int) -> None:
    print(report.details() if verbosity > 0 else f'{report.line()}.')


def describe_trainable(model: SimCLRModel) -> str:
    """What will be trained, by module, with the number of parameters of each."""
    stem, *blocks = model.backbone.blocks
    encoder = {'stem': stem, **{f'block_group{i}': block for i, block in enumerate(blocks, 1)}}
    head = {f'proj_layer{i}': [layer] for i, layer in enumerate(model.projection_head.blocks, 1)}
    modules = {**encoder, **head, 'classifier': [model.classifier]}
    counts = {
        name: sum(v.shape.num_elements() for layer in layers for v in layer.trainable_variables)
        for name, layers in modules.items()
    }
    listed = ', '.join(f'{name} {count:,}' for name, count in counts.items() if count)
    return f'{sum(counts.values()):,} parameters: {listed}.'


def _announce(experiment: Experiment, resumed: str | None, report: Report | None) -> None:
    config, model_dir = experiment.config, experiment.config.output.model_dir
    show_data(experiment)
    beginning = config.learning.checkpoint or 'scratch'
    start = f'going on from {resumed}' if resumed else f'from {beginning}'
    where = distribution.describe(config.devices, experiment.strategy)
    print(f'{where}, in {config.train.mixed_precision}.')
    print(
        f'{experiment.stage.doing} {config.model.title} {start}, '
        f'{experiment.total_steps} steps of {config.train.train_batch_size} images, in {model_dir}',
        flush=True,
    )
    if experiment.teacher is not None:
        teacher = experiment.teacher
        print(f'The teacher is {teacher.path}, {teacher.num_classes} classes.')
    if report is not None:
        _show(report, config.run.verbosity)
    if not distribution.is_chief(experiment.strategy):
        return
    facts = {
        'num_classes': experiment.num_classes,
        'class_names': experiment.class_names,
        TRAIN_EXAMPLES: experiment.train_examples,
        'changes': experiment.history.all_changes(),
    }
    with writing(model_dir):
        tf.io.gfile.makedirs(model_dir)
        write_flags(model_dir, config, facts)
        _write_labels(experiment, resumed)


def _announce_rate(experiment: Experiment, schedule: schedules.WarmupCosine) -> None:
    """Says what a resumed run changes, and what a schedule does that looks wrong."""
    config, history = experiment.config, experiment.history
    step = history.position.step
    for change in history.changes:
        print(f'From step {step} on {change.setting} is {change.after}; it was {change.before}.')
    if history.changes:
        before = resuming.settings_before(history)
        examples = history.recorded.get(TRAIN_EXAMPLES, experiment.train_examples)
        earlier = schedules.build(before.optimizer, before.train, examples)
        earlier.ahead = history.position.ahead(before.train)
        rates = float(earlier(step)), float(schedule(step))
        if not math.isclose(*rates, rel_tol=0.01):
            print(
                f'The learning rate resumes at {rates[1]:.4g}; it would have been {rates[0]:.4g}.'
            )
    if schedule.warmup_steps >= schedule.total_steps and schedule.peak:
        rate = float(schedule(experiment.total_steps - 1))
        print(
            f'The warm-up of {schedule.warmup_steps} steps (--warmup_epochs='
            f'{config.optimizer.warmup_epochs:g}) is not over when the run ends, after '
            f'{schedule.total_steps}: the learning rate ends at {rate:.4g}, '
            f'{rate / schedule.peak:.0%} of its peak.',
            flush=True,
        )


def _tell_growth(first: float | None, latest: float | None) -> None:
    """Says that a loss has grown by orders of magnitude, before what it led to is exported."""
    if first is not None and latest is not None and latest > GROWTH * max(first, 1.0):
        print(
            f'The loss has grown from {first:.4g} to {latest:.4g}: the training diverged, and what '
            'is exported is of little use. Try a lower --learning_rate or a longer '
            '--warmup_epochs.',
            flush=True,
        )


def _write_labels(experiment: Experiment, resumed: str | None) -> None:
    """Lists the labeled examples; a list that a change of settings ends is kept beside it."""
    path = os.path.join(experiment.config.output.model_dir, LABELS_FILE)
    listing = experiment.subset.listing() if experiment.subset else None
    there = tf.io.gfile.exists(path)
    if resumed and there:
        if not experiment.history.changes:
            return
        stem, extension = os.path.splitext(path)
        before = f'{stem}_before_{experiment.history.position.step}{extension}'
        if records.read_text(path, RESTORE) == listing:
            return
        tf.io.gfile.rename(path, before, overwrite=True)
    if listing is not None:
        write_text(path, listing)


def _fit(
    experiment: Experiment,
    trainer: Trainer,
    saved: checkpoints.Checkpoints,
    schedule: schedules.WarmupCosine,
    tracker: Tracker | None,
    stop: Stop,
) -> None:
    if trainer.step >= experiment.total_steps:
        print(f'Training is done: {trainer.step} steps.')
        return
    config = experiment.config
    writes = distribution.is_chief(experiment.strategy)
    make_writer = tf.summary.create_file_writer if writes else tf.summary.create_noop_writer
    writer = make_writer(*([config.output.model_dir] if writes else []))
    with writer.as_default():
        if writes:
            with as_user_errors(experiment.source):
                _write_sample_views(experiment, trainer.step)

        def write(step: int, means: Mapping[str, float]) -> None:
            with writing(config.output.model_dir):
                for name, value in means.items():
                    tf.summary.scalar(f'train/{name}', value, step)
                tf.summary.scalar('learning_rate', schedule(step), step)
                writer.flush()

        trainer.fit(
            distribution.distribute(experiment.strategy, functools.partial(_batches, experiment)),
            experiment.total_steps,
            checkpoints=saved,
            checkpoint_steps=experiment.checkpoint_steps,
            write=write,
            on_checkpoint=tracker.measure if tracker and experiment.stage.classifies else None,
            look=functools.partial(tracker.look, stop=stop) if tracker else None,
            stop=stop,
            explain=functools.partial(explain, source=experiment.source),
        )


def _batches(experiment: Experiment, worker: int, workers: int) -> tf.data.Dataset:
    """The rows of one worker of every global batch from the run's position on."""
    config = experiment.config
    return train_batches(
        experiment.source,
        config.data,
        split=config.data.train_split,
        views=views_of(config, experiment.teacher),
        batch_size=config.train.train_batch_size,
        seed=config.train.seed,
        start=experiment.history.position.examples,
        worker=Worker(worker, workers),
        finished=not distribution.has_accelerators(experiment.strategy),
    )


def _finisher(experiment: Experiment) -> Callable[[Batch], Batch] | None:
    """What accelerators do to their shares of batches; the host's processor does it earlier."""
    if not distribution.has_accelerators(experiment.strategy):
        return None
    config = experiment.config
    return finisher(config.data, views=views_of(config, experiment.teacher))


def _write_sample_views(experiment: Experiment, step: int) -> None:
    config = experiment.config
    views = sample_views(
        experiment.source,
        config.data,
        split=config.data.train_split,
        views=config.learning.entry.views,
        count=SAMPLE_VIEWS,
        seed=config.train.seed,
    )
    tf.summary.image('train/views', side_by_side(views), step, max_outputs=SAMPLE_VIEWS)


def side_by_side(views: Sequence[tf.Tensor]) -> tf.Tensor:
    """Views [n, s, s, 3] → [n, largest s, number of views · largest s, 3].

    Each view has a square of its own, which the report cuts out again: a smaller one lies at its
    top left, the rest is black.
    """
    size = max(view.shape[1] for view in views)
    squares = [tf.image.pad_to_bounding_box(view, 0, 0, size, size) for view in views]
    return tf.concat(squares, axis=2)


def export_checkpoint(config: Config, given: Mapping[str, Any], stop: Stop) -> None:
    """Turns `--checkpoint`, of any format, into a module of ours below the model folder.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        stop: not asked: what is interrupted here leaves nothing behind.

    Raises:
        UserError: if there is no checkpoint, or it contradicts the flags.
    """
    del stop
    if not config.learning.checkpoint or not config.output.model_dir:
        raise UserError(
            '--mode=export needs --checkpoint, the weights, and --model_dir, the folder for the '
            f'module; found {config.learning.checkpoint} and {config.output.model_dir}.'
        )
    config = with_model_dir(config)
    _check_own_folder(config.output.model_dir, config.learning.checkpoint)
    config, weights = with_weights(config, given)
    settings = config.model
    if 'ft_proj_selector' not in given and weights.selector is not None:
        settings = dataclasses.replace(settings, ft_proj_selector=weights.selector)
    model = weights.build(settings, config.data.image_size)
    report = weights.load_into(model, head_layers=-1)
    _show(report, config.run.verbosity)
    lacking = len(model.variables) - len(report.loaded)
    if lacking:
        raise UserError(
            f'--mode=export needs all {len(model.variables)} variables of the model, from '
            f'{weights.path}; {lacking} were not loaded. If the classifier reads a layer of the '
            'projection head, name it with --ft_proj_selector.'
        )
    with lock.held(config.output.model_dir):
        _export(config, model, weights.step, names=weights.class_names, writes=True)


def _check_own_folder(model_dir: str, checkpoint: str) -> None:
    """Raises UserError if an export would replace modules of a run that it doesn't read."""
    files = (FLAGS_FILE, PIPELINE_FILE)
    holds_run = any(tf.io.gfile.exists(os.path.join(model_dir, file)) for file in files)
    below = os.path.relpath(
        os.path.realpath(os.path.expanduser(checkpoint)), os.path.realpath(model_dir)
    )
    own = re.match(rf'\.$|{CHECKPOINT}-\d+|{MODULES}(/|$)', below)
    if not own and (holds_run or checkpoints_in(model_dir)):
        raise UserError(
            f'--mode=export must not replace the modules of another run; found one in {model_dir}, '
            f'and --checkpoint={checkpoint} is not of that run. Choose another --model_dir.'
        )


def _export(
    config: Config,
    model: SimCLRModel,
    step: int,
    folder: str = MODULES,
    *,
    names: Sequence[str] | None = None,
    writes: bool,
) -> None:
    if not writes:
        # The writing process reads variables that are means over all processes.
        hub_export.plain_copy(model, config.data.image_size)
        return
    root = os.path.join(config.output.model_dir, folder)
    strategy = tf.distribute.get_strategy()
    with within_memory('export', config, strategy), writing(root):
        path = hub_export.export_module(
            model,
            root,
            step,
            image_size=config.data.image_size,
            class_names=names,
            method=config.learning.method,
            decode=functools.partial(decode_for_evaluation, config=config.data),
            weight_decay=config.optimizer.weight_decay,
            keep=config.output.keep_hub_module_max,
        )
    print(f'Exported: hub.load({path!r})')
    if PATTERN.search(path):
        print(
            'Before others load it, rename the folder with [ or \\, which TensorFlow cannot read.'
        )
