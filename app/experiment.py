"""Config → Experiment: checks everything that a user can get wrong, before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from app import capacity, resuming
from app.classes import Classes, match_classes, number_of_classes
from app.config.compatibility import check_same_architecture
from app.config.resolution import check_counts, check_crops, from_values
from app.config.schema import TRAIN_EXAMPLES, Config, to_values, with_values
from app.data_checks import RunData, open_data
from app.measurements import check_evaluators
from app.preflight import with_model_dir
from app.presets import PRESETS
from app.resuming import History
from app.run_folder import read_flags, recorded_run
from common.connections import bounded
from common.errors import UserError, one_line
from common.stages import Stage
from data.label_subset import LabelSubset
from data.labels import with_class_order
from data.names import folders_of
from data.service import check_answers
from data.sources import is_here
from data.sources.source import Source
from tf2 import distribution, precision, schedules
from tf2.config import ModelConfig
from tf2.files import checkpoints_in
from tf2.out_of_memory import advice_for
from tf2.teacher import Teacher, open_teacher
from tf2.weights import Report, Weights, config_for, open_weights
from tf2.weights.checkpoint_file import URL_SCHEMES


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run that passed all checks and can start.

    Attributes:
        config: all settings; `output.model_dir` is set.
        data: what it is trained and evaluated on.
        strategy: the distribution strategy.
        num_classes: classes of the classifier; None without one.
        weights: what `--checkpoint` names; None without it.
        teacher: the teacher of a distillation; None in other stages.
        class_names: names of the classifier's classes, by label; None if unknown, or without a
            classifier.
        classifier_mismatch: why the classifier in `weights` has other classes; None if it has the
            same, or nothing tells.
        history: what the model folder says about a run that is resumed.
    """

    config: Config
    data: RunData
    strategy: tf.distribute.Strategy
    num_classes: int | None
    weights: Weights | None
    teacher: Teacher | None = None
    class_names: tuple[str, ...] | None = None
    classifier_mismatch: str | None = None
    history: History = History()

    @property
    def source(self) -> Source:
        """The data set."""
        return self.data.source

    @property
    def subset(self) -> LabelSubset | None:
        """The labeled examples, None where all are used."""
        return self.data.subset

    @property
    def train_examples(self) -> int:
        """Number of training examples."""
        return self.data.train_examples

    @property
    def stage(self) -> Stage:
        """The stage of training."""
        return self.config.learning.stage

    @property
    def total_steps(self) -> int:
        """Updates of the run."""
        train, position = self.config.train, self.history.position
        return schedules.total_steps(self._epoch_of_schedule, train, position)

    @property
    def _epoch_of_schedule(self) -> int:
        """Training examples in an epoch; an evaluation may look at other data."""
        evaluates = not self.config.run.does.trains
        recorded = self.history.recorded.get(TRAIN_EXAMPLES) if evaluates else None
        return recorded or self.train_examples

    @property
    def checkpoint_steps(self) -> int:
        """Updates between checkpoints."""
        output = self.config.output
        epoch = schedules.epoch_steps(self.train_examples, self.config.train)
        return output.checkpoint_steps or output.checkpoint_epochs * epoch


def prepare(config: Config, given: Mapping[str, Any]) -> Experiment:
    """Checks `config` against data, weights, devices and the model folder; writes nothing.

    Args:
        config: all settings.
        given: those of them that were given on the command line.

    Raises:
        UserError: for whatever the user can fix.
    """
    trains = config.run.does.trains
    config, weights = with_model_dir(config), None
    model_dir = config.output.model_dir
    strategy = distribution.build_strategy(config.devices)
    history = resuming.read_history(model_dir, config.train.train_batch_size)
    if trains:
        config, weights = _with_architecture(config, given, history)
    config, data = _with_data(config, given, strategy)
    config, teacher = _on_devices(config, given, strategy, data.train_examples)
    recorded = recorded_run(model_dir) if trains else read_flags(model_dir)
    classes = match_classes(config, data.source, recorded, teacher, weights)
    num_classes = number_of_classes(config, data, teacher, recorded)
    classified, taught = num_classes is not None, teacher is not None
    check_evaluators(config, given, data, has_classifier=classified, has_teacher=taught)
    check_same_architecture(model_dir, config, num_classes)
    if trains:
        history = resuming.check_changes(config, data.train_examples, history)
    experiment = Experiment(
        config=config,
        data=_with_classes(data, classes, has_classifier=classified),
        strategy=strategy,
        num_classes=num_classes,
        weights=weights,
        teacher=teacher,
        class_names=classes.names if num_classes else None,
        classifier_mismatch=classes.mismatch,
        history=history,
    )
    if trains:
        _check_length(experiment)
    return experiment


def _with_architecture(
    config: Config, given: Mapping[str, Any], history: History
) -> tuple[Config, Weights | None]:
    """`config` with the architecture of the run or of `--checkpoint`, and the latter's weights."""
    config, weights = _as_recorded(config, given, history.recorded) or with_weights(config, given)
    check_counts(config)
    check_crops(config)
    return config, weights


def _with_data(
    config: Config, given: Mapping[str, Any], strategy: tf.distribute.Strategy
) -> tuple[Config, RunData]:
    """Opens the data; `config` then has what was recorded about them and what they determine."""
    if not config.run.does.trains:
        check_recorded_data(config, given)
    elif config.data.tf_data_service:
        check_answers(config.data.tf_data_service)
    config = _with_recorded_holdout(_with_recorded_range(config), given)
    config, data = open_data(config, given, strategy.num_replicas_in_sync)
    if data.source.image_range:
        config = with_values(config, image_range=data.source.image_range)
    return config, data


def _on_devices(
    config: Config,
    given: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
    train_examples: int,
) -> tuple[Config, Teacher | None]:
    """Checks the devices and opens the teacher there; `config` then has their precision."""
    trains, model_dir = config.run.does.trains, config.output.model_dir
    doing = 'training' if trains else 'evaluation'
    with distribution.together(strategy, model_dir), within_memory(doing, config, strategy):
        config = _with_precision(config, strategy)
        check_devices(config, strategy, train_examples)
        # An evaluation opens no model that only the record names: the folder may come from
        # elsewhere.
        opens = trains or 'teacher' in given
        return config, _open_teacher(config, strategy) if opens else None


def _with_classes(data: RunData, classes: Classes, *, has_classifier: bool) -> RunData:
    """`data` with its classes numbered as the classifier has them, and with notes about that."""
    notes = (*data.notes, *(classes.notes if has_classifier else ()))
    data = dataclasses.replace(data, notes=notes)
    if classes.source is data.source:
        return data
    evaluated = with_class_order(data.evaluated, classes.names, data.source.name)
    return data.in_order(classes.source, evaluated)


def check_recorded_data(config: Config, given: Mapping[str, Any]) -> None:
    """Checks a data set that a run's record names, and the command line doesn't.

    The folder may come from elsewhere, so its record must not cause a download of data or code.

    Args:
        config: all settings, as recorded and given.
        given: those of them that were given on the command line.

    Raises:
        UserError: if the data set isn't prepared, or a remote `data_dir` isn't reachable.
    """
    data = config.data
    for place in folders_of(data.data_dir) if 'data_dir' not in given else ():
        if '://' in place:
            check_reachable('data_dir', place, config.devices.connect_timeout)
    if not {'dataset', 'data_dir'} & given.keys() and not is_here(data):
        raise UserError(
            f'The data set {data.dataset!r}, which the run recorded, must be prepared already; '
            f'found none in {data.data_dir or "the default data_dir of TFDS"}. To have it '
            'prepared, give --data_dir.'
        )


def _check_length(experiment: Experiment) -> None:
    """Raises UserError if the run in the folder is already past its end."""
    train, history = experiment.config.train, experiment.history
    # The last batch may start at the end of the last epoch.
    batch = max(train.train_batch_size, history.recorded.get('train_batch_size', 0))
    examples = experiment.train_examples * train.train_epochs + batch
    position, total_steps = history.position, experiment.total_steps
    if position.step > total_steps if train.train_steps else position.examples > examples:
        raise UserError(
            f'--train_epochs or --train_steps must not end before what was trained: '
            f'{experiment.config.output.model_dir} holds step {position.step}, this run is to end '
            f'at step {total_steps}. Choose another --model_dir, or train longer.'
        )


def _as_recorded(
    config: Config, given: Mapping[str, Any], recorded: Mapping[str, Any]
) -> tuple[Config, None] | None:
    """The architecture that a run recorded when it started from `--checkpoint`.

    None for a new run. A resumed one needs only its own checkpoints, and its record says what it
    started from.
    """
    checkpoint = config.learning.checkpoint or recorded.get('checkpoint')
    if not recorded or checkpoint is None:
        return None
    asked = {**to_values(config), 'checkpoint': checkpoint}
    names = {'image_size', *(field.name for field in dataclasses.fields(ModelConfig))}
    names |= {'method'} if config.learning.stage.classifies else set()
    kept = {name: recorded[name] for name in names & recorded.keys() - given.keys()}
    return from_values({**asked, **kept}), None


def with_weights(config: Config, given: Mapping[str, Any]) -> tuple[Config, Weights | None]:
    """Opens `--checkpoint`, if there is one; it determines settings that were not given.

    These are the architecture, the method whose head the network has, and the image size. A
    preset's image size counts as given, because it belongs to the preset's data.

    Raises:
        UserError: if there is no checkpoint, or it contradicts what was given.
    """
    if config.learning.checkpoint is None:
        return config, None
    weights = open_weights(os.path.expanduser(config.learning.checkpoint))
    data = config.data
    preset = PRESETS.get(config.run.preset or '')
    if 'image_size' not in given and not (preset and 'image_size' in preset.flags):
        data = dataclasses.replace(data, image_size=weights.image_size)
    known = {**given, 'image_size': data.image_size}
    model = config_for(weights, config.model, known)
    chosen = 'ft_proj_selector' in given or weights.selector is None
    if config.learning.stage.has_teacher and not chosen:
        # A student that starts from a fine-tuned network keeps the layer its classifier reads.
        model = dataclasses.replace(model, ft_proj_selector=weights.selector)
    learning = config.learning
    if learning.stage.classifies or not config.run.does.trains:
        learning = dataclasses.replace(learning, method=weights.method)
    return dataclasses.replace(config, data=data, model=model, learning=learning), weights


def _with_recorded_range(config: Config) -> Config:
    """`config` with the range of images that 'auto' meant when the run started."""
    recorded = read_flags(config.output.model_dir) or {}
    if config.data.image_range != 'auto' or not checkpoints_in(config.output.model_dir):
        return config
    image_range = recorded.get('image_range', 'auto')
    return with_values(config, image_range=image_range)


def _with_recorded_holdout(config: Config, given: Mapping[str, Any]) -> Config:
    """`config` without a hold-out if the run in the folder is older than that setting."""
    recorded = recorded_run(config.output.model_dir) or {}
    if not recorded or 'holdout_fraction' in recorded.keys() | given.keys():
        return config
    return with_values(config, holdout_fraction=0.0)


def _with_precision(config: Config, strategy: tf.distribute.Strategy) -> Config:
    """`config` with the precision that 'auto' means here, or meant when the run started."""
    setting = config.train.mixed_precision
    if setting == 'auto':
        recorded = read_flags(config.output.model_dir) or {}
        begun = checkpoints_in(config.output.model_dir)
        setting = recorded.get('mixed_precision', 'float32') if begun else setting
        setting = precision.choose(setting, strategy)
    return with_values(config, mixed_precision=setting)


def _open_teacher(config: Config, strategy: tf.distribute.Strategy) -> Teacher | None:
    if config.learning.teacher is None:
        return None
    with strategy.scope():
        return open_teacher(
            os.path.expanduser(config.learning.teacher),
            precision=config.train.mixed_precision,
            safe=config.learning.safe_weights,
        )


def within_memory(
    doing: str, config: Config, strategy: tf.distribute.Strategy
) -> contextlib.AbstractContextManager[None]:
    """See `distribution.within_memory`."""
    replicas = strategy.num_replicas_in_sync
    advice = advice_for(doing, config.train, config.evaluation, replicas)
    return distribution.within_memory(doing, config.output.model_dir, advice)


def check_devices(
    config: Config, strategy: tf.distribute.Strategy, train_examples: int = 0
) -> None:
    """Checks that batches divide evenly among the replicas, and that these can run `config`.

    Raises:
        UserError: if not, or if the run doesn't fit into memory, of which a memory bank of
            `train_examples` rows may need a part.
    """
    batches = {'eval_batch_size': config.evaluation.eval_batch_size}
    if config.run.does.trains:
        batches['train_batch_size'] = config.train.train_batch_size
    distribution.check_divisible(strategy, **batches)
    replicas = strategy.num_replicas_in_sync
    parts = config.learning.norm_parts
    if config.run.does.trains and parts > 1 and parts % replicas:
        raise UserError(
            f'--norm_parts must be a multiple of the number of replicas, {replicas}; found '
            f'{parts}. Try {-(-parts // replicas) * replicas}.'
        )
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
    if distribution.is_tpu(strategy):  # its memory is not known
        return
    devices = capacity.devices_of(
        replicas,
        distribution.replicas_here(strategy),
        on_gpu=distribution.has_accelerators(strategy),
    )
    if devices is not None:
        recorded = _settings_of_teacher(config)
        capacity.check_fits(config, devices, recorded, train_examples)


def _settings_of_teacher(config: Config) -> dict[str, Any] | None:
    """The recorded settings of the teacher's run; None if the teacher isn't a run."""
    path = config.learning.teacher
    if not path or path.startswith(URL_SCHEMES) or not config.run.does.trains:
        return None
    return read_flags(os.path.expanduser(path))


def check_reachable(flag: str, place: str, seconds: float) -> None:
    """Checks that a remote `place` answers; TensorFlow itself retries silently for minutes.

    Raises:
        UserError: if it doesn't answer within `seconds`, or denies access.
    """
    print(f'Waiting up to {seconds} s (--connect_timeout) for {place}.', flush=True)
    try:
        bounded(lambda: tf.io.gfile.exists(place), seconds)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f'--{flag}={place} must be within reach; found: {one_line(error)}. Check '
            'the name, the network and the credentials (gcloud auth application-default login, or '
            'GOOGLE_APPLICATION_CREDENTIALS), or give a path of this machine.'
        ) from error


def show_data(experiment: Experiment) -> None:
    """Prints what the data are, and what is left out because of them."""
    for line in experiment.data.lines():
        print(line)


def show_report(report: Report, verbosity: int) -> None:
    """Prints which weights were loaded, by name with a verbosity of 1."""
    print(report.details() if verbosity > 0 else f'{report.line()}.')
