"""One configuration for a run: the settings of every room, presets, and `flags.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data.config import DataConfig
from settings import UserError, check_option, check_options, option
from stages import STAGES
from tf2 import records
from tf2.config import SMALL_IMAGE, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig

FLAGS_FILE = 'flags.json'
PIPELINE_FILE = 'pipeline.json'  # in a folder of several runs, instead


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to do."""

    mode: str = option(
        'train',
        'What to do. "eval" follows new checkpoints until training is done; "export" turns '
        '--checkpoint, of any format, into a TF-Hub module below --model_dir; "pipeline" runs all '
        'stages, one after the other.',
        choices=('train', 'eval', 'train_then_eval', 'export', 'pipeline'),
        modes=('eval', 'export'),
        resume='free',
    )
    preset: str | None = option(
        None,
        'Named bundle of flags, see below. A flag that is given wins.',
        modes=('export',),
        resume='free',
    )
    verbosity: int = option(
        0,
        '1 also lists variables by name when weights are loaded.',
        at_least=0,
        modes=('eval', 'export'),
        resume='free',
    )

    allow_changes: str | None = option(
        None,
        'Settings, separated by commas, with which the run in --model_dir may go on otherwise '
        'although that changes its result. flags.json records when each was changed, and from '
        'what.',
        resume='free',
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, one section a room."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()


SECTIONS: dict[str, type] = {
    'run': RunConfig,
    'data': DataConfig,
    'model': ModelConfig,
    'objective': ObjectiveConfig,
    'optimizer': OptimizerConfig,
    'train': TrainConfig,
}


def all_options() -> Iterator[tuple[str, type, dataclasses.Field]]:
    """Section name, section class and field of every setting, in the order `--help` shows them."""
    for name, section in SECTIONS.items():
        for field in dataclasses.fields(section):
            yield name, section, field


OPTIONS: dict[str, Mapping[str, Any]] = {
    field.name: field.metadata for _, _, field in all_options()
}
DEFAULTS = {name: metadata['default'] for name, metadata in OPTIONS.items()}
TRAIN_EXAMPLES = 'train_examples'  # a fact about the data in flags.json
# Other runs, which may be moved together with one that reads them.
PATHS = ('checkpoint', 'teacher')
LABELS = ('label_fraction', 'labels_per_class')
# They change which images a pretraining would see, or which weights it would train.
_TUNING = (*LABELS, 'fine_tune_after_block', 'zero_init_logits_layer')


_CHANGE = records.Value(
    dict,
    keys={
        'step': records.Value(int, required=True, check=records.at_least(0)),
        'setting': records.Value(str, required=True),
    },
)
FLAGS = records.Value(
    dict,
    keys={
        **{k: v for section in SECTIONS.values() for k, v in records.of_options(section).items()},
        'num_classes': records.Value(int, nullable=True, check=records.at_least(1)),
        'class_names': records.CLASS_NAMES,
        TRAIN_EXAMPLES: records.Value(int, check=records.at_least(1)),
        'changes': records.Value(list, items=_CHANGE),
    },
)
RESTORE = 'Restore it, or choose another --model_dir.'


def from_values(values: Mapping[str, Any]) -> Config:
    """The configuration with `values`, setting name -> value, over the defaults.

    Raises:
        UserError: if a value is out of bounds or contradicts another.
    """
    sections = {}
    for name, section in SECTIONS.items():
        names = {field.name for field in dataclasses.fields(section)}
        sections[name] = section(**{key: values[key] for key in names & values.keys()})
    config = Config(**sections)
    _check_stage(config)
    _check_negatives(config)
    _check_allowed(config)
    return config


def _check_stage(config: Config) -> None:
    """Raises UserError for what would be wrong in a stage that does not read it, a preset's too."""
    mode, objective = config.run.mode, config.objective
    if mode in ('export', 'pipeline'):
        return
    values = to_values(config)
    chosen = [name for name in _TUNING if values[name] != DEFAULTS[name]]
    if chosen and not objective.stage.classifies:
        raise UserError(why_unread(chosen[0], values))
    labels = [name for name in chosen if name in LABELS]
    if labels and not objective.learns_from_labels:
        raise UserError(
            f'--{labels[0]} chooses labels, and --distill_alpha=1 uses none. Leave it out, or give '
            'a smaller --distill_alpha.'
        )


def _check_negatives(config: Config) -> None:
    """Raises UserError for a loss without negatives, or a memory that batches don't fill evenly."""
    size, batch = config.objective.memory_size, config.train.train_batch_size
    if config.run.mode in ('export', 'eval') or config.objective.stage.classifies:
        return
    if size % batch:
        raise UserError(
            f'--memory_size must be a multiple of --train_batch_size, {batch}; found {size}. Try '
            f'{size // batch * batch or batch}, or 0 for no memory.'
        )
    if batch == 1 and not size:
        raise UserError(
            '--train_batch_size must be at least 2 while pretraining, where the other images of a '
            'batch are the negatives; found 1. Give a larger one.'
        )


def allowed_changes(config: Config) -> list[str]:
    """The names in `--allow_changes`."""
    return [name.strip() for name in (config.run.allow_changes or '').split(',') if name.strip()]


def _check_allowed(config: Config) -> None:
    """Raises UserError for a name in `--allow_changes` of nothing that can be changed."""
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


def to_values(config: Config) -> dict[str, Any]:
    """Setting name -> value, the inverse of `from_values`."""
    return {
        key: value
        for section in dataclasses.asdict(config).values()
        for key, value in section.items()
    }


def resolve(given: Mapping[str, Any], presets: Mapping[str, Any]) -> Config:
    """The configuration of a run from the flags on its command line.

    A preset fills in what is not given. No data set at all means the bundled one, with the stage's
    first preset for it; a data set without a preset keeps the defaults.

    Args:
        given: setting name -> value, the flags that were given.
        presets: name -> `presets.Preset`.

    Raises:
        UserError: if the preset is unknown, or a value is out of bounds or contradicts another.
    """
    name = given.get('preset')
    if name is not None and name not in presets:
        raise UserError(f'--preset must be one of {", ".join(presets)}; found {name!r}.')
    if given.get('mode') == 'eval':
        # The folder's own settings complete these, and only then can they be compared.
        for name, value in given.items():
            check_option(name, value, OPTIONS[name])
        return Config(run=RunConfig(mode='eval'))
    needs_data = given.get('mode') != 'export'
    if needs_data and given.get('dataset') is None and name is None:
        name = _bundled_preset(given.get('train_mode', ObjectiveConfig.train_mode), presets)
    flags = presets[name].flags if name else {}
    config = from_values({**_unless_given(flags, given), **given, 'preset': name})
    if config.run.mode != 'pipeline':  # its stages read different flags
        check_read(given, to_values(config))
    return config


def _bundled_preset(stage: str, presets: Mapping[str, Any]) -> str:
    """The first preset of the stage that is for the bundled images."""
    for name, preset in presets.items():
        mode = preset.flags.get('train_mode', ObjectiveConfig.train_mode)
        if mode == stage and preset.flags.get('dataset') == 'bundled':
            return name
    raise ValueError(f'Expected a preset of {stage} for the bundled images among {list(presets)}.')


def for_evaluation(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """The configuration with which --mode=eval evaluates a run.

    Args:
        recorded: what the run wrote, see `read_flags`.
        given: the flags that were given. They take the place of what was recorded, where they
            don't change what the run is.

    Raises:
        UserError: if they do, or a value is out of bounds or contradicts another.
    """
    trained = {**DEFAULTS, **{name: recorded[name] for name in OPTIONS if name in recorded}}
    for name, value in given.items():
        if 'eval' not in OPTIONS[name]['modes'] and value != trained[name]:
            raise UserError(
                f'--mode=eval evaluates the run as it was trained, with {name} {trained[name]}; '
                f'found --{name}={value}. Leave it out.'
            )
    # Where it was trained, and how it was shown, says nothing about this process.
    kept = {
        name: value
        for name, value in trained.items()
        if OPTIONS[name]['resume'] != 'free' or name in ('data_dir', 'eval_name', 'max_pixels')
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
    """Why a run with the settings `values` does not read `name`, for the user; None if it does."""
    metadata, mode, stage = OPTIONS[name], values['mode'], values['train_mode']
    if mode == 'export' and mode not in metadata['modes']:
        return (
            f'--{name} is for training; found --mode=export, which does not read it. Leave it out.'
        )
    if mode != 'export' and stage not in metadata['stages']:
        stages = metadata['stages']
        return (
            f'--{name} is for {" and ".join(STAGES[s].title.lower() for s in stages)}; found '
            f'--train_mode={stage}. Leave it out, or use --train_mode={stages[0]}.'
        )
    for other, wanted in metadata['requires'].items():
        if not (values[other] in wanted if wanted else values[other]):
            listed = f'={" or ".join(map(str, wanted))}' if wanted else ''
            return (
                f'--{name} is read with --{other}{listed} only; found --{other}={values[other]}. '
                'Leave it out, or give both.'
            )
    return None


def _unless_given(flags: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's flags that something given doesn't take the place of."""
    dropped = LABELS if any(name in given for name in LABELS) else ()
    if given.get('checkpoint'):  # tells these itself
        dropped += ('resnet_depth', 'width_multiplier', 'sk_ratio', 'se_ratio')
    return {name: value for name, value in flags.items() if name not in dropped}


def write_flags(model_dir: str, config: Config, facts: Mapping[str, Any]) -> None:
    """Writes `flags.json`: all settings, and `facts` about the data such as 'num_classes'."""
    from tf2.files import write_text

    text = json.dumps({**to_values(config), **facts}, indent=1, sort_keys=True)
    write_text(os.path.join(model_dir, FLAGS_FILE), f'{text}\n')


def read_flags(model_dir: str, need: Iterable[str] = ()) -> dict[str, Any] | None:
    """What `write_flags` wrote to `model_dir`, None if it did not.

    Args:
        model_dir: folder of a run.
        need: facts that have to be there. Settings need not, those of an older release have not
            all.

    Raises:
        UserError: if the file holds something else.
    """
    value = dataclasses.replace(
        FLAGS,
        keys={k: dataclasses.replace(v, required=k in need) for k, v in FLAGS.keys.items()},
    )
    return records.read_json(os.path.join(model_dir, FLAGS_FILE), value, RESTORE)


def read_pipeline(model_dir: str) -> dict[str, Any] | None:
    """Stage -> its settings, of the pipeline in `model_dir`; None where there is none.

    Raises:
        UserError: if the file holds something else.
    """
    value = records.Value(dict, items=FLAGS)
    return records.read_json(os.path.join(model_dir, PIPELINE_FILE), value, RESTORE)


def architecture(values: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether a checkpoint fits a run, from `read_flags` or `to_values`."""
    stage = values['train_mode']
    fixed = {
        name: values[name]
        for name, metadata in OPTIONS.items()
        if metadata['resume'] == 'fixed' and stage in metadata['stages'] and name not in PATHS
    }
    # Fine-tuning reads one layer of the head; pretraining's classifier may read any.
    selector = {'ft_proj_selector': values['ft_proj_selector']}
    tuned = selector if STAGES[stage].classifies else {}
    return {
        **fixed,
        **tuned,
        'small stem': values['image_size'] <= SMALL_IMAGE,
        # Only float16 comes with variables, those of the loss scaling.
        'mixed_precision': 'float16'
        if values['mixed_precision'] == 'float16'
        else 'bfloat16 or float32',
        'num_classes': values['num_classes'],
    }


def check_same_architecture(model_dir: str, config: Config, num_classes: int | None) -> None:
    """Raises UserError if `model_dir` has checkpoints of another architecture; shows both."""
    from tf2.files import checkpoints_in

    recorded = read_flags(model_dir)
    if recorded is None or not checkpoints_in(model_dir):
        return
    # Settings that are younger than the folder had their defaults then.
    theirs = architecture({'num_classes': None, **to_values(Config()), **recorded})
    ours = architecture({**to_values(config), 'num_classes': num_classes})
    differing = [name for name in ours if ours[name] != theirs.get(name, ours[name])]
    if differing:
        found = ', '.join(f'{name} {theirs[name]}' for name in differing)
        asked = ', '.join(f'{name} {ours[name]}' for name in differing)
        raise UserError(
            f'--model_dir={model_dir} holds checkpoints of {found}; this run asks for {asked}. '
            'Choose another --model_dir, or the flags it was made with.'
        )
