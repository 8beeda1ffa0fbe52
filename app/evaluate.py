"""Evaluates a run during and after training, or in another process that follows its checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from app import lock
from app.assembly import network, penalty_of
from app.budget import Budget
from app.classes import check_recorded
from app.config.resolution import for_evaluation
from app.config.schema import Config
from app.experiment import (
    Experiment,
    prepare,
    show_data,
    within_memory,
)
from app.modes import Outcome
from app.run_folder import newest_module, read_flags, read_result
from app.skipped import listing_skipped_files
from app.splits import GivenUpError, Splits
from common.errors import UserError
from common.file_names import FLAGS_FILE, PIPELINE_FILE
from common.interruption import Stop
from data.failures import as_user_errors
from tf2 import checkpoints, distribution, evaluators
from tf2.evaluators.base import Inputs, TooFewError, run_all
from tf2.evaluators.results import write_details, write_results
from tf2.features import EMBEDDING, LOGITS
from tf2.files import checkpoints_in, is_partial, names_in, step_of, writing
from tf2.models.encoder import SimCLRModel, freeze

SECONDS_BETWEEN_POLLS = 10.0
SECONDS_WITHOUT_TRAINING = 60.0  # how long to wait for a stopped training to resume
# Evaluations of pretraining on samples: the next one is due when the step has grown by this factor
# or by this fraction of the run, but evaluations, except the first, must not take more than this
# share of the time.
GROWTH = 1.5
FRACTION_OF_RUN = 0.05
SHARE_OF_TIME = 0.05
SAMPLED = 'eval/sample/'  # prefix of results on samples
TOP_1 = 'eval/label_top_1_accuracy'


def follow(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Evaluates each new checkpoint of a model folder until the last one of its training.

    Args:
        config: unused: the settings are those that the folder records.
        given: flags of the command line, which take precedence over recorded settings.
        stop: unused: an interrupted evaluation loses nothing.

    Raises:
        UserError: if there is no such folder, or it does not fit the flags.
    """
    del config, stop
    model_dir = _model_dir(given)
    # The recorded settings are complete: they include what presets and --checkpoint determined.
    experiment = prepare(for_evaluation(_wait_for_flags(model_dir), given), given)
    if experiment.config.learning.teacher and experiment.teacher is None:
        print(
            'The teacher is not opened, and agreement with it not measured: that takes a --teacher '
            'on the command line.',
            flush=True,
        )
    with (
        distribution.together(experiment.strategy, model_dir),
        listing_skipped_files(experiment.source, model_dir, experiment.strategy),
        experiment.strategy.scope(),
    ):
        model = _network(experiment)
        show_data(experiment)
        tracker = Tracker(experiment, model)
        for path in _new_checkpoints(model_dir, experiment.total_steps):
            step = _load(path, model, experiment.class_names)
            if step is not None:
                tracker.measure(step)
        return Outcome(tracker.folder, read_result(tracker.folder), newest_module(model_dir))


def _model_dir(given: Mapping[str, Any]) -> str:
    """The folder that `--model_dir` names; raises UserError if it can't be that of one run."""
    model_dir = given.get('model_dir') and os.path.expanduser(given['model_dir'])
    if not model_dir or not tf.io.gfile.isdir(model_dir):
        raise UserError(
            f'--mode=eval needs --model_dir, the folder of a training run; found {model_dir}.'
        )
    if tf.io.gfile.exists(os.path.join(model_dir, PIPELINE_FILE)):
        raise UserError(
            f'--mode=eval needs the folder of one run; {model_dir} holds a pipeline. Name one of '
            f'its stages, such as --model_dir={os.path.join(model_dir, "finetune")}.'
        )
    return model_dir


def _network(experiment: Experiment) -> SimCLRModel:
    model = network(experiment.config, experiment.num_classes)
    if experiment.stage.classifies:
        # The L2 term leaves out frozen variables.
        freeze(model, experiment.config.learning.fine_tune_after_block)
    return model


def _load(path: str, model: SimCLRModel, class_names: Sequence[str] | None) -> int | None:
    """Loads the checkpoint at `path` and returns its step; None if it was removed meanwhile."""
    try:
        check_recorded(class_names, path, checkpoints.recorded_in(path))
        return checkpoints.load_model(path, model)
    except UserError:
        if tf.io.gfile.exists(f'{path}.index'):
            raise
        return None  # the training keeps only the newest checkpoints


def _new_checkpoints(model_dir: str, total_steps: int) -> Iterator[str]:
    """Each time the newest checkpoint, as soon as there is a new one, up to the last step.

    Raises:
        UserError: if the training stopped before the last step.
    """
    newest, idle = None, 0.0
    while newest is None or step_of(newest) < total_steps:
        found = next(reversed(checkpoints_in(model_dir)), None)
        if found != newest and found is not None:
            newest, idle = found, 0.0
            yield found
            continue
        if idle >= SECONDS_WITHOUT_TRAINING:
            raise _stopped(model_dir, newest, total_steps)
        if '://' in model_dir or lock.holder(model_dir):
            idle = 0.0
        else:
            if not idle:
                wait = f'waiting {SECONDS_WITHOUT_TRAINING:.0f} s for one to start'
                print(f'No training is at work in {model_dir}; {wait}.', flush=True)
            idle += SECONDS_BETWEEN_POLLS
        time.sleep(SECONDS_BETWEEN_POLLS)


def _stopped(model_dir: str, newest: str | None, total_steps: int) -> UserError:
    reached = f'is at step {step_of(newest)}' if newest else 'has no checkpoint'
    return UserError(
        f'--mode=eval follows {model_dir} to step {total_steps}; it {reached}, and no '
        'training is at work there. Run the command of the training to resume it.'
    )


def _wait_for_flags(model_dir: str) -> dict[str, Any]:
    """The settings that the training recorded; waits for it to start."""
    recorded = read_flags(model_dir)
    if recorded is None:
        _check_empty(model_dir)
        trains = lock.holder(model_dir)
        wanted = f'{trains} to begin' if trains else 'a training run to start'
        print(f'Waiting for {wanted} in {model_dir}, which holds none yet.', flush=True)
    while recorded is None:
        time.sleep(SECONDS_BETWEEN_POLLS)
        recorded = read_flags(model_dir)
    return recorded


def _check_empty(model_dir: str) -> None:
    """Raises UserError if a folder without settings holds something else than a starting run."""
    if checkpoints_in(model_dir):
        raise UserError(
            f'--mode=eval needs the settings of the run, {FLAGS_FILE}, beside its '
            f'checkpoints; found none in {model_dir}.'
        )
    others = [
        n for n in names_in(model_dir) if n[0] != '.' and n != lock.FILE and not is_partial(n)
    ]
    if others and not lock.holder(model_dir):
        raise UserError(
            f'--mode=eval needs --model_dir, the folder of a training run; {model_dir} holds none, '
            f'but {", ".join(others[:3])}. Check the path.'
        )


def _inputs(experiment: Experiment, model: SimCLRModel, splits: Splits) -> Inputs:
    """The inputs of the evaluators; to be called within the strategy's scope."""
    config, data, teacher = experiment.config, experiment.data, experiment.teacher

    def endpoint(name: str) -> Any:
        return lambda images: model(images, training=False)[name]

    # A classifier that was trained on no label is not evaluated; older runs may have one.
    learns = data.train_labels.labeled > 0 or experiment.stage.classifies
    return Inputs(
        batches=splits.evaluated,
        num_classes=data.evaluated.num_classes if data.measures_accuracy else 0,
        predict=endpoint(LOGITS) if model.classifier and learns else None,
        teach=teacher and teacher.logits,
        embed=endpoint(EMBEDDING),
        endpoints=lambda images: model(images, training=False),
        train_batches=splits.trained if data.train_labels.labeled else None,
        pairs=splits.pairs,
        class_names=experiment.class_names or data.evaluated.class_names,
        neighbors=config.evaluation.knn_neighbors,
        neighbor_examples=config.evaluation.knn_examples,
    )


def _check_is_own(model_dir: str, folder: str) -> None:
    """Raises UserError if `folder`, below `model_dir`, is a link."""
    below = folder.rstrip('/') != model_dir.rstrip('/')
    if '://' not in model_dir and below and os.path.islink(folder):
        raise UserError(
            f'{folder} must be a folder of its own, for results go there; found a link to '
            f'{os.path.realpath(folder)}. Choose another --eval_name.'
        )


class Tracker:
    """Evaluates one run and writes the results: the latest ones, and the best ones beside them.

    To be created within the strategy's scope.

    Args:
        experiment: what is run.
        model: the model to evaluate.

    Attributes:
        folder: where the results go.
    """

    def __init__(self, experiment: Experiment, model: SimCLRModel) -> None:
        self._experiment, self._model = experiment, model
        config = experiment.config
        self._splits = Splits(experiment)
        self._inputs = _inputs(experiment, model, self._splits)
        self._evaluators = evaluators.build(self._inputs, config.evaluation.evaluators)
        self._budget = Budget(SHARE_OF_TIME)
        self._samples, self._latest_sample = bool(self._evaluators), 0
        # An evaluation with a name, of another split say, keeps its results apart from the run's.
        model_dir = config.output.model_dir
        self.folder = os.path.join(model_dir, config.evaluation.eval_name or '')
        _check_is_own(model_dir, self.folder)
        self._latest: int | None = None
        self._final: Mapping[str, float] = {}
        self._best = self._recorded_best()

    def _recorded_best(self) -> dict[str, float]:
        """The best results so far of a resumed run."""
        recorded = read_result(self.folder)
        best = {name: value for name, value in recorded.items() if name.startswith('best/')}
        return best if None not in (best.get(f'best/{TOP_1}'), best.get('best/global_step')) else {}

    def look(self, step: int, stop: Stop) -> None:
        """During pretraining, evaluates a sample of both splits if one is due.

        A classifier is evaluated at its checkpoints instead.

        Args:
            step: number of updates done.
            stop: a signal cancels the evaluation.
        """
        experiment, last = self._experiment, self._latest_sample
        if experiment.stage.classifies or not self._samples or step >= experiment.total_steps:
            return
        due = min(GROWTH * last, last + FRACTION_OF_RUN * experiment.total_steps)
        # Either all workers take part or none.
        if step >= due and distribution.all_agree(experiment.strategy, self._budget.allows()):
            self._latest_sample = step
            with self._budget.spending(), self._splits.sampling(stop):
                self._sample(step)

    def _sample(self, step: int) -> None:
        try:
            measured = self._run()
        except TooFewError as error:
            self._samples = False
            tqdm.write(f'Step {step}: pretraining is not evaluated before its end. {error}')
        except GivenUpError:
            tqdm.write(f'Step {step}: evaluation canceled.')
        else:
            results = {
                name.replace('eval/', SAMPLED, 1): value
                for name, value in measured.items()
                if isinstance(value, float)
            }
            self._report(step, results, part='a sample of ')

    def measure(self, step: int) -> dict[str, float]:
        """Evaluates, writes result files and TensorBoard events; returns name -> value."""
        measured = self._run()
        results = {name: value for name, value in measured.items() if isinstance(value, float)}
        details = {name: value for name, value in measured.items() if name not in results}
        penalty = penalty_of(self._experiment.config, self._model)
        results['eval/regularization_loss'] = float(penalty.value())
        self._keep_best(step, results)
        self._report(step, results, details=details)
        self._latest, self._final = step, results
        return results

    def _run(self) -> dict[str, Any]:
        experiment, strategy = self._experiment, self._experiment.strategy
        with (
            within_memory('evaluation', experiment.config, strategy),
            as_user_errors(experiment.source),
            strategy.scope(),  # a function is traced again outside of the scope
        ):
            return run_all(self._inputs, self._evaluators)

    def _report(
        self,
        step: int,
        results: Mapping[str, float],
        details: Mapping[str, Any] | None = None,
        part: str = '',
    ) -> None:
        """Writes `results` and `details`, and prints the former."""
        if distribution.is_chief(self._experiment.strategy):
            with writing(self.folder):
                self._write(step, results, details or {})
        values = '  '.join(f'{key} {value:.4f}' for key, value in results.items())
        name = f'{self._experiment.config.data.eval_split!r} of {self._experiment.source.name}'
        tqdm.write(f'Step {step} on {part}{name}: {values}')  # above a progress bar

    def _write(self, step: int, results: Mapping[str, float], details: Mapping[str, Any]) -> None:
        tf.io.gfile.makedirs(self.folder)
        writer = tf.summary.create_file_writer(self.folder)
        with writer.as_default():
            for key, value in results.items():
                tf.summary.scalar(key, value, step)
        writer.close()
        best = self._best if self._experiment.stage.classifies else {}
        if details:
            write_details(self.folder, step, details)
        write_results(self.folder, step, {**results, **best})

    def catch_up(self, step: int) -> None:
        """Evaluates the checkpoint of `step` if the run was stopped before it could."""
        # `write_results` writes this file last.
        recorded = read_result(self.folder)
        if step % self._experiment.checkpoint_steps == 0 and recorded.get('global_step') != step:
            self.measure(step)

    def _keep_best(self, step: int, results: Mapping[str, float]) -> None:
        if results.get(TOP_1, -1.0) > self._best.get(f'best/{TOP_1}', -1.0):
            self._best = {f'best/{name}': value for name, value in results.items()}
            self._best['best/global_step'] = step

    def finish(self, step: int) -> None:
        """Evaluates the final weights if not done yet; prints which checkpoint was the best."""
        if self._latest != step:
            self.measure(step)
        final, best = self._final.get(TOP_1, -1.0), self._best.get(f'best/{TOP_1}', -1.0)
        if best > final and self._experiment.stage.classifies:
            reached = self._best['best/global_step']
            print(
                f'The result is {final:.4f}; on the way it was {best:.4f}, at step {reached:.0f}.'
            )
