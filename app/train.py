"""Trains a new or resumed run, evaluates it and exports it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

import hub_export
from app import lock, resuming
from app.assembly import Assembly, assemble, views_of
from app.classes import check_recorded
from app.config.schema import TRAIN_EXAMPLES, Config
from app.evaluate import Tracker
from app.experiment import Experiment, prepare, show_data, show_report, within_memory
from app.export import export_model
from app.modes import Outcome
from app.planned_run import PlannedRun
from app.run_folder import RESTORE, newest_module, read_result, write_data, write_flags
from app.skipped import listing_skipped_files
from common.file_names import LABELS_FILE, MODULES, MOMENTUM_MODULES
from common.interruption import Stop
from data.batches import Batch, finisher, sample_views, train_batches
from data.failures import as_user_errors, explain
from data.worker import Worker
from tf2 import checkpoints, collapse, distribution, records, schedules
from tf2.files import clear_leftovers, write_text, writing
from tf2.models.encoder import SimCLRModel
from tf2.trainer import EXAMPLES_SEEN, FIRST_LOSS
from tf2.weights import Report

SAMPLE_VIEWS = 8  # images whose views TensorBoard shows
DIVERGED = 10  # times the loss of the first step


def run(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Checks everything, then trains, and evaluates if the mode says so.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        stop: whether a signal has come.
    """
    experiment = prepare(config, given)
    model_dir = experiment.config.output.model_dir
    planned = PlannedRun(experiment.stage.title, {**given, 'model_dir': model_dir})
    train(experiment, planned, evaluate=config.run.does.measures, stop=stop)
    return Outcome(model_dir, read_result(model_dir), newest_module(model_dir))


def train(experiment: Experiment, planned: PlannedRun, *, evaluate: bool, stop: Stop) -> None:
    """Trains, or resumes training, in the model folder; evaluates if asked to; exports; reports.

    Args:
        experiment: what to run.
        planned: its title and flags, for the report.
        evaluate: whether to evaluate what is trained.
        stop: whether a signal has come.

    Raises:
        UserError: if the loss is not finite, a file can't be read or written, another process
            uses the folder, or another worker is gone.
        Interrupted: when a signal came.
    """
    model_dir, strategy = experiment.config.output.model_dir, experiment.strategy
    _check_module_folders(experiment)
    with (
        lock.held(model_dir) if distribution.is_chief(strategy) else contextlib.nullcontext(),
        distribution.together(strategy, model_dir),
    ):
        with (
            within_memory('training', experiment.config, strategy),
            listing_skipped_files(experiment.source, model_dir, strategy),
        ):
            _train(experiment, evaluate=evaluate, stop=stop)
        if experiment.config.output.report and distribution.is_chief(strategy):
            _report(experiment, planned)
        distribution.wait_for_all(strategy)
        print(f'Curves and sample views: tensorboard --logdir {model_dir}')


def _report(experiment: Experiment, planned: PlannedRun) -> None:
    # Imported here because the libraries that draw would delay the start.
    from app import report

    report.report_on(planned.folder, [planned], experiment.data.evaluated)


def _check_module_folders(experiment: Experiment) -> None:
    """Raises UserError if something else is where the run will export its modules."""
    momentum = experiment.config.learning.export_momentum_encoder
    for folder in (MODULES, MOMENTUM_MODULES) if momentum else (MODULES,):
        root = os.path.join(experiment.config.output.model_dir, folder)
        hub_export.check_place(root, experiment.total_steps)


def _train(experiment: Experiment, *, evaluate: bool, stop: Stop) -> None:
    stop.listen()
    _clear_leftovers(experiment)
    tf.keras.utils.set_random_seed(experiment.config.train.seed)
    with experiment.strategy.scope():
        session = _start(experiment)
        _announce(session)
        _record(session)
        tracker = Tracker(session.experiment, session.parts.model) if evaluate else None
        if session.resumed and tracker and experiment.stage.classifies:
            tracker.catch_up(session.parts.trainer.step)
        _fit(session, tracker, stop)
    _warn_if_diverged(session.checkpoints.record.get(FIRST_LOSS), session.parts.trainer.latest_loss)
    _export(session)
    if tracker is not None:
        tracker.finish(session.parts.trainer.step)


def _clear_leftovers(experiment: Experiment) -> None:
    model_dir = experiment.config.output.model_dir
    if distribution.is_chief(experiment.strategy):
        with writing(model_dir):
            clear_leftovers(model_dir)


@dataclasses.dataclass(frozen=True)
class _Session:
    """A new or resumed run, ready to train.

    Attributes:
        experiment: what is run, with the history of the checkpoint that was restored.
        parts: model, method, schedule, optimizer and trainer.
        checkpoints: those of the model folder.
        resumed: path of the checkpoint that was restored; None for a new run.
        report: what was loaded from `--checkpoint`; None if nothing was.
    """

    experiment: Experiment
    parts: Assembly
    checkpoints: checkpoints.Checkpoints
    resumed: str | None
    report: Report | None


def _start(experiment: Experiment) -> _Session:
    """Builds a run and restores its newest checkpoint, or gives a new run its first weights.

    Writes nothing, because the checkpoint may be damaged.
    """
    config = experiment.config
    parts = assemble(
        config,
        num_classes=experiment.num_classes,
        train_examples=experiment.train_examples,
        teacher=experiment.teacher,
        prepare=_finisher(experiment),
    )
    saved = checkpoints.Checkpoints(
        config.output.model_dir,
        parts.model,
        parts.method,
        parts.optimizer,
        config.output.keep_checkpoint_max,
    )
    resumed = saved.resume()
    check_recorded(experiment.class_names, resumed, saved.record)
    report = None if resumed else _initialize(experiment, parts)
    batch = config.train.train_batch_size
    history = experiment.history.at(parts.trainer.step, saved.record, batch)
    saved.record['class_names'] = experiment.class_names
    saved.record[EXAMPLES_SEEN] = history.position.examples
    parts.schedule.ahead = history.position.ahead(config.train)
    experiment = dataclasses.replace(experiment, history=history)
    return _Session(experiment, parts, saved, resumed, report)


def _initialize(experiment: Experiment, parts: Assembly) -> Report | None:
    """Gives a new run its first weights; returns what `--checkpoint` gave, if there is one."""
    report = _load_weights(experiment, parts.model)
    parts.method.initialize()
    return report


def _load_weights(experiment: Experiment, model: SimCLRModel) -> Report | None:
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
    """Why the classifier in `--checkpoint` isn't loaded; None if it is.

    It isn't if it has other classes, reads another layer of the head, or may have been trained on
    labels that this run must not use. A student may start from the classifier of its teacher only.
    """
    config = experiment.config
    if experiment.classifier_mismatch is not None:
        return experiment.classifier_mismatch
    if not experiment.stage.classifies:
        return None
    loads = (experiment.weights.selector or 0) == config.model.ft_proj_selector
    if experiment.teacher is not None:
        loads &= config.learning.checkpoint == config.learning.teacher
    else:
        loads &= experiment.subset is None
    return None if loads else 'starts anew'


def describe_trainable(model: SimCLRModel) -> str:
    """The number of trainable parameters, by module."""
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


def _announce(session: _Session) -> None:
    """Prints what is trained on what, and how it starts."""
    experiment, config = session.experiment, session.experiment.config
    show_data(experiment)
    where = distribution.describe(config.devices, experiment.strategy)
    print(f'{where}, in {config.train.mixed_precision}.')
    beginning = config.learning.checkpoint or 'scratch'
    start = f'going on from {session.resumed}' if session.resumed else f'from {beginning}'
    print(
        f'{experiment.stage.doing} {config.model.title} {start}, {experiment.total_steps} steps of '
        f'{config.train.train_batch_size} images, in {config.output.model_dir}',
        flush=True,
    )
    if experiment.teacher is not None:
        teacher = experiment.teacher
        print(f'The teacher is {teacher.path}, {teacher.num_classes} classes.')
    if session.report is not None:
        show_report(session.report, config.run.verbosity)
    _announce_changes(experiment, session.parts.schedule)
    _announce_short_run(experiment, session.parts.schedule)
    if experiment.stage.classifies:
        print(f'Training {describe_trainable(session.parts.model)}')


def _announce_changes(experiment: Experiment, schedule: schedules.WarmupCosine) -> None:
    """Prints the settings that a resumed run changes, and a jump of the learning rate."""
    history, step = experiment.history, experiment.history.position.step
    for change in history.changes:
        print(f'From step {step} on {change.setting} is {change.after}; it was {change.before}.')
    if not history.changes:
        return
    before = resuming.settings_before(history)
    examples = history.recorded.get(TRAIN_EXAMPLES, experiment.train_examples)
    earlier = schedules.build(before.optimizer, before.train, examples)
    earlier.ahead = history.position.ahead(before.train)
    rates = float(earlier(step)), float(schedule(step))
    if not math.isclose(*rates, rel_tol=0.01):
        print(f'The learning rate resumes at {rates[1]:.4g}; it would have been {rates[0]:.4g}.')


def _announce_short_run(experiment: Experiment, schedule: schedules.WarmupCosine) -> None:
    """Prints a note if the run ends before its warm-up does."""
    if schedule.warmup_steps < schedule.total_steps or not schedule.peak:
        return
    rate = float(schedule(experiment.total_steps - 1))
    print(
        f'The warm-up of {schedule.warmup_steps} steps (--warmup_epochs='
        f'{experiment.config.optimizer.warmup_epochs:g}) is not over when the run ends, after '
        f'{schedule.total_steps}: the learning rate ends at {rate:.4g}, '
        f'{rate / schedule.peak:.0%} of its peak.',
        flush=True,
    )


def _warn_if_diverged(first: float | None, latest: float | None) -> None:
    """Prints a warning if the loss is much larger than at the first step."""
    if first is not None and latest is not None and latest > DIVERGED * max(first, 1.0):
        print(
            f'The loss has grown from {first:.4g} to {latest:.4g}: the training diverged, and what '
            'is exported is of little use. Try a lower --learning_rate or a longer '
            '--warmup_epochs.',
            flush=True,
        )


def _record(session: _Session) -> None:
    """Writes settings, facts about the data and the labeled examples to the model folder."""
    experiment, model_dir = session.experiment, session.experiment.config.output.model_dir
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
        write_flags(model_dir, experiment.config, facts)
        write_data(model_dir, experiment.data.record())
        _write_labels(experiment, session.resumed)


def _write_labels(experiment: Experiment, resumed: str | None) -> None:
    """Writes the list of labeled examples; keeps the one that a change of settings replaces."""
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


def _fit(session: _Session, tracker: Tracker | None, stop: Stop) -> None:
    experiment, trainer = session.experiment, session.parts.trainer
    if trainer.step >= experiment.total_steps:
        print(f'Training is done: {trainer.step} steps.')
        return
    batches = functools.partial(_batches, experiment)
    with _summaries(session) as write:
        trainer.fit(
            distribution.distribute(experiment.strategy, batches),
            experiment.total_steps,
            checkpoints=session.checkpoints,
            checkpoint_steps=experiment.checkpoint_steps,
            write=write,
            on_checkpoint=tracker.measure if tracker and experiment.stage.classifies else None,
            look=functools.partial(tracker.look, stop=stop) if tracker else None,
            stop=stop,
            explain=functools.partial(explain, source=experiment.source),
        )


@contextlib.contextmanager
def _summaries(session: _Session) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Writes sample views for TensorBoard; provides the function that writes metrics for it.

    The function takes a step and metrics, name -> mean. It also tells if the representation or the
    projection collapses. It writes and prints only on the chief worker.
    """
    experiment, model_dir = session.experiment, session.experiment.config.output.model_dir
    writes = distribution.is_chief(experiment.strategy)
    make_writer = tf.summary.create_file_writer if writes else tf.summary.create_noop_writer
    writer = make_writer(*([model_dir] if writes else []))
    watch = collapse.Watch()

    def write(step: int, means: Mapping[str, float]) -> None:
        collapsed = watch.message(step, means)
        if collapsed and writes:
            print(f'\n{collapsed}', flush=True)
        with writing(model_dir):
            for name, value in means.items():
                tf.summary.scalar(f'train/{name}', value, step)
            tf.summary.scalar('learning_rate', session.parts.schedule(step), step)
            writer.flush()

    with writer.as_default():
        if writes:
            with as_user_errors(experiment.source):
                _write_sample_views(experiment, session.parts.trainer.step)
        yield write


def _batches(experiment: Experiment, worker: int, workers: int) -> tf.data.Dataset:
    """One worker's share of every global batch, from the run's position on."""
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
    """Finishes views on accelerators; None on a CPU, where the input pipeline finishes them."""
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
        views=config.learning.views,
        count=SAMPLE_VIEWS,
        seed=config.train.seed,
    )
    tf.summary.image('train/views', side_by_side(views), step, max_outputs=SAMPLE_VIEWS)


def side_by_side(views: Sequence[tf.Tensor]) -> tf.Tensor:
    """Views [n, s, s, 3] → [n, largest s, number of views · largest s, 3].

    Each view has a square of the largest size, so that the report can split them again: smaller
    views are at its top left, and the rest is black.
    """
    size = max(view.shape[1] for view in views)
    squares = [tf.image.pad_to_bounding_box(view, 0, 0, size, size) for view in views]
    return tf.concat(squares, axis=2)


def _export(session: _Session) -> None:
    experiment, step = session.experiment, session.parts.trainer.step
    config, strategy = experiment.config, experiment.strategy
    for folder, model in session.parts.method.exports().items():
        if distribution.is_chief(strategy):
            export_model(config, model, step, folder, class_names=experiment.class_names)
        else:
            # The chief reads variables that are means over all workers.
            hub_export.plain_copy(model, config.data.image_size)
