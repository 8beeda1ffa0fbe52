"""Flags and presets → `Config`; refuses flags that nothing reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from app.config.schema import (
    DEFAULTS,
    LABELS,
    OPTIONS,
    SECTIONS,
    TRAIN_EXAMPLES,
    Config,
    RunConfig,
    is_read,
    to_values,
)
from app.modes import MODES
from common.errors import UserError
from common.settings import check_option
from common.stages import STAGES
from data.config import OWN_IMAGES
from tf2.config import LearningConfig, OptimizerConfig
from tf2.methods import METHODS, entry_of
from tf2.models import BACKBONES

# Settings of where a run was trained that its evaluation keeps.
_KEPT = ('data_dir', 'eval_name', 'max_pixels', 'max_bad_fraction')
# In presets and the published program, this value trains the classifier alone in any encoder.
_CLASSIFIER_ONLY = 4
# Pretraining doesn't read these, but presets may set them.
_TUNING = (*LABELS, 'fine_tune_after_block', 'zero_init_logits_layer')


def from_values(values: Mapping[str, Any]) -> Config:
    """The configuration with `values`, setting name -> value, and defaults for the rest.

    Raises:
        UserError: if a value is out of bounds or contradicts another.
    """
    sections = {}
    for name, section in SECTIONS.items():
        names = {field.name for field in dataclasses.fields(section)}
        sections[name] = section(**{key: values[key] for key in names & values.keys()})
    config = Config(**sections)
    _check_stage(config)
    _check_needs(config)
    _check_negatives(config)
    check_crops(config)
    _check_parts(config)
    _check_rates(config)
    _check_allowed(config)
    # In later stages, a checkpoint or the folder's record may determine the network.
    if not config.learning.stage.classifies and config.learning.checkpoint is None:
        check_counts(config)
    return config


def check_counts(config: Config) -> None:
    """Raises UserError if a setting names a layer of the head or a block that doesn't exist.

    Args:
        config: all settings; the network is that of `--checkpoint` if there is one.
    """
    learning, model = config.learning, config.model
    layers = learning.count_head_layers(model)
    if model.ft_proj_selector > layers:
        raise UserError(
            f'--ft_proj_selector must be at most the number of projection layers, {layers}; '
            f'found {model.ft_proj_selector}.'
        )
    limit = max(model.blocks, _CLASSIFIER_ONLY)
    if learning.fine_tune_after_block > limit:
        raise UserError(
            f'--fine_tune_after_block must be at most {limit}; found '
            f'{learning.fine_tune_after_block}. {model.title} has {model.blocks} blocks: with '
            f'{model.blocks} the classifier alone is trained.'
        )


def _check_stage(config: Config) -> None:
    """Raises UserError if a setting, given or of a preset, makes no sense in the stage."""
    does, learning = config.run.does, config.learning
    if does.several or not does.needs_data:
        return
    values = to_values(config)
    chosen = [name for name in _TUNING if values[name] != DEFAULTS[name]]
    if chosen and not learning.stage.classifies:
        raise UserError(why_unread(chosen[0], values))
    labels = [name for name in chosen if name in LABELS]
    if labels and not learning.learns_from_labels:
        raise UserError(
            f'--{labels[0]} chooses labels, and --distill_alpha=1 uses none. Leave it out, or give '
            'a smaller --distill_alpha.'
        )


def _check_negatives(config: Config) -> None:
    """Raises UserError if the loss has no negatives, or batches don't divide a queue evenly."""
    learning, batch = config.learning, config.train.train_batch_size
    if not config.run.does.trains or learning.stage.classifies:
        return
    queues = {'memory_size': learning.memory_size, 'queue_size': learning.queue_size}
    for name, size in queues.items():
        if size % batch:
            raise UserError(
                f'--{name} must be a multiple of --train_batch_size, {batch}; found {size}. Try '
                f'{size // batch * batch or batch}, or 0 for none.'
            )
    if batch == 1 and not learning.memory_size:
        raise UserError(
            '--train_batch_size must be at least 2 while pretraining, which needs the other images '
            'of a batch: as negatives, or for batch statistics; found 1. Give a larger one.'
        )


def _check_needs(config: Config) -> None:
    """Raises UserError if a setting that the method can't do without is 0."""
    values = to_values(config)
    if not config.run.does.trains:
        return
    for name in config.learning.entry.needs:
        if not values[name]:
            raise UserError(
                f'--method={config.learning.method} needs a --{name} above 0; found '
                f'{values[name]}. Leave it out for {config.learning.entry.defaults[name]}.'
            )


def check_crops(config: Config) -> None:
    """Raises UserError if local crops are not smaller than global ones."""
    learning, size = config.learning, config.data.image_size
    takes_crops = config.run.does.trains and learning.entry.local_view is not None
    if takes_crops and learning.local_crops and learning.local_crop_size >= size:
        raise UserError(
            f'--local_crop_size must be less than --image_size, {size}; found '
            f'{learning.local_crop_size}. Try {max(1, size * 3 // 7)}, or --local_crops=0.'
        )


def _check_parts(config: Config) -> None:
    """Raises UserError if batches can't be divided into the parts of batch normalization."""
    parts, batch = config.learning.norm_parts, config.train.train_batch_size
    if config.run.does.trains and parts > 1 and (batch % parts or batch == parts):
        raise UserError(
            f'--train_batch_size must be a multiple of --norm_parts, {parts}, with at least 2 '
            f'images in each part; found {batch}. Try {max(2, batch // parts) * parts}.'
        )


def _check_rates(config: Config) -> None:
    """Raises UserError if the optimizer can't keep the predictor's learning rate constant."""
    learning, able = config.learning, OptimizerConfig.that_fix_rates()
    fixes = learning.fixed_predictor_rate and 'fixed_predictor_rate' in learning.entry.reads
    if config.run.does.trains and fixes and config.optimizer.optimizer not in able:
        raise UserError(
            f'--optimizer must be one of {", ".join(able)} with a constant learning rate of the '
            f'predictor; found {config.optimizer.optimizer}. Choose one, or give '
            '--fixed_predictor_rate=False.'
        )


def allowed_changes(config: Config) -> list[str]:
    """The names in `--allow_changes`."""
    return [name.strip() for name in (config.run.allow_changes or '').split(',') if name.strip()]


def _check_allowed(config: Config) -> None:
    """Raises UserError if `--allow_changes` names something that can't be changed."""
    for name in allowed_changes(config):
        if name not in OPTIONS and name != TRAIN_EXAMPLES:
            raise UserError(
                f'--allow_changes must name settings, such as learning_rate,temperature; found '
                f'{name!r}. See python run.py --help.'
            )
        if name in OPTIONS and OPTIONS[name]['resume'] == 'fixed':
            raise UserError(
                f'--allow_changes cannot name {name}: checkpoints fit one value of it. Leave it '
                'out, or choose another --model_dir.'
            )


def resolve(given: Mapping[str, Any], presets: Mapping[str, Any]) -> Config:
    """The configuration of a run from the flags on its command line.

    A preset fills in what is not given. Without data set and preset, the data set is the user's own
    images if there is a `--data_dir`, else the bundled one, and the preset is the stage's first one
    for it. A data set without a preset keeps the defaults.

    Args:
        given: setting name -> value, the flags that were given.
        presets: name -> `presets.Preset`.

    Raises:
        UserError: if the preset is unknown, or a value is out of bounds or contradicts another.
    """
    name = given.get('preset')
    if name is not None and name not in presets:
        raise UserError(f'--preset must be one of {", ".join(presets)}; found {name!r}.')
    mode = given.get('mode', DEFAULTS['mode'])
    does = MODES[mode]
    if does.measures and not does.trains:
        # The recorded settings will complete these, and only then can they be compared.
        for name, value in given.items():
            check_option(name, value, OPTIONS[name])
        return Config(run=RunConfig(mode=mode))
    dataset = 'bundled' if given.get('data_dir') is None else OWN_IMAGES[0]
    if not does.follows_run:
        given = {'dataset': dataset, **given} if mode in OPTIONS['dataset']['modes'] else given
    elif given.get('dataset') is None and name is None:
        stage = given.get('train_mode', LearningConfig.train_mode)
        name = _first_preset(stage, dataset, given.get('method', LearningConfig.method), presets)
    flags = _unless_given(presets[name].flags if name else {}, given)
    chosen = {**DEFAULTS, **flags, **given}
    defaults = entry_of(chosen['train_mode'], chosen['method']).defaults
    config = from_values({**defaults, **flags, **given, 'preset': name})
    if not does.several:  # stages read different flags
        check_read(given, to_values(config))
    return config


def _first_preset(stage: str, dataset: str, method: str, presets: Mapping[str, Any]) -> str:
    """The first preset of the stage that is for the data set; if possible, for the method too."""
    fitting = {
        name: preset.flags.get('method', LearningConfig.method)
        for name, preset in presets.items()
        if preset.flags.get('train_mode', LearningConfig.train_mode) == stage
        and preset.flags.get('dataset') == dataset
    }
    if not fitting:
        raise ValueError(f'Expected a preset of {stage} for {dataset} among {list(presets)}.')
    return next((name for name, own in fitting.items() if own == method), next(iter(fitting)))


def for_evaluation(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """The configuration with which --mode=eval evaluates a run.

    Args:
        recorded: the settings that the run recorded, see `read_flags`.
        given: the flags that were given. They replace recorded settings.

    Raises:
        UserError: if they would change the run itself, or a value is out of bounds or contradicts
            another.
    """
    trained = {**DEFAULTS, **{name: recorded[name] for name in OPTIONS if name in recorded}}
    for name, value in given.items():
        if 'eval' not in OPTIONS[name]['modes'] and value != trained[name]:
            raise UserError(
                f'--mode=eval evaluates the run as it was trained, with {name} {trained[name]}; '
                f'found --{name}={value}. Leave it out.'
            )
    # Settings of where the run was trained, or what it printed, don't apply to this process.
    kept = {
        name: value
        for name, value in trained.items()
        if OPTIONS[name]['resume'] != 'free' or name in _KEPT
    }
    config = from_values({**kept, **given})
    check_read(given, to_values(config))
    return config


def check_read(given: Iterable[str], values: Mapping[str, Any]) -> None:
    """Raises UserError if one of the flags `given` is not read by a run with settings `values`."""
    for name in given:
        reason = why_unread(name, values)
        if reason:
            raise UserError(reason)


def why_unread(name: str, values: Mapping[str, Any]) -> str | None:
    """Why a run with the settings `values` doesn't read `name`, as a message; None if it does."""
    metadata, mode = OPTIONS[name], values['mode']
    does = MODES[mode]
    if not (metadata['runs'] if does.follows_run else mode in metadata['modes']):
        readers = 'training' if metadata['runs'] else f'--mode={" or ".join(metadata["modes"])}'
        return (
            f'--{name} is for {readers}; found --mode={mode}, which does not read it. Leave it out.'
        )
    if does.follows_run and not is_read(name, values):
        return _other_readers(name, values)
    for other, wanted in metadata['requires'].items():
        if not (values[other] in wanted if wanted else values[other]):
            if wanted == (None,):
                return (
                    f'--{name} is read without --{other} only; found --{other}={values[other]}. '
                    'Give one of them.'
                )
            listed = f'={" or ".join(map(str, wanted))}' if wanted else ''
            return (
                f'--{name} is read with --{other}{listed} only; found --{other}={values[other]}. '
                'Leave it out, or give both.'
            )
    return None


def _other_readers(name: str, values: Mapping[str, Any]) -> str:
    """A message that names the backbones, stages or methods that read `name`."""
    backbones = [backbone for backbone, entry in BACKBONES.items() if name in entry.reads]
    if backbones and values['backbone'] not in backbones:
        return (
            f'--{name} is for --backbone={" or ".join(backbones)}; found '
            f'--backbone={values["backbone"]}. Leave it out, or choose another backbone.'
        )
    stages, stage = stages_reading(name), values['train_mode']
    if stage not in stages:
        titles = ' and '.join(STAGES[other].title.lower() for other in stages)
        return (
            f'--{name} is for {titles}; found --train_mode={stage}. Leave it out, or use '
            f'--train_mode={stages[0]}.'
        )
    methods = [method for method, entry in METHODS.items() if name in entry.reads]
    return (
        f'--{name} is for --method={" or ".join(methods)}; found --method={values["method"]}. '
        'Leave it out, or choose another method.'
    )


def stages_reading(name: str) -> list[str]:
    """The stages that read setting `name`, with at least one method and backbone."""
    return [
        stage
        for stage in STAGES
        if any(
            is_read(name, {**DEFAULTS, 'train_mode': stage, 'method': method, 'backbone': backbone})
            for method in METHODS
            for backbone in BACKBONES
        )
    ]


def _unless_given(flags: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's flags, without those that given flags replace."""
    dropped = LABELS if any(name in given for name in LABELS) else ()
    if given.get('checkpoint'):  # it determines these
        dropped += ('backbone', *(name for entry in BACKBONES.values() for name in entry.reads))
    return {name: value for name, value in flags.items() if name not in dropped}
