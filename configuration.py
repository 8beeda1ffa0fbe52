"""One configuration for a run: the settings of every room, presets, and `flags.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from data.config import DataConfig
from settings import UserError, check_options, option
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
    _check_memory(config)
    return config


def _check_stage(config: Config) -> None:
    """Raises UserError for a choice of labels in a stage that uses none."""
    chooses = config.data.label_fraction < 1 or config.data.labels_per_class > 0
    if not chooses or config.run.mode in ('export', 'pipeline'):
        return
    if config.objective.train_mode == 'pretrain':
        raise UserError(
            '--label_fraction and --labels_per_class choose labels for fine-tuning; pretraining '
            'uses all images. Leave them out, or use --train_mode=finetune.'
        )
    if config.objective.train_mode == 'distill' and config.objective.distill_alpha == 1:
        raise UserError(
            '--label_fraction and --labels_per_class choose labels, and --distill_alpha=1 uses '
            'none. Leave them out, or give a smaller --distill_alpha.'
        )


def _check_memory(config: Config) -> None:
    """Raises UserError for a memory that batches do not fill evenly, and for an export without."""
    size, batch = config.objective.memory_size, config.train.train_batch_size
    exports = config.run.mode == 'export'
    if size % batch and not exports:
        raise UserError(
            f'--memory_size must be a multiple of --train_batch_size, {batch}; found {size}. Try '
            f'{size // batch * batch or batch}, or 0 for no memory.'
        )
    if config.train.export_momentum_encoder and (exports or not size):
        found = '--mode=export, which reads the model alone' if exports else '--memory_size=0'
        raise UserError(
            '--export_momentum_encoder needs a training run with a momentum encoder, which '
            f'--memory_size gives it; found {found}. Leave it out, or train with --memory_size.'
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

    A preset fills in what is not given. No data set at all means the bundled one, with the demo
    preset; a data set without a preset keeps the defaults.

    Args:
        given: setting name -> value, the flags that were given.
        presets: name -> `presets.Preset`.

    Raises:
        UserError: if the preset is unknown, or a value is out of bounds or contradicts another.
    """
    if given.get('mode') == 'eval':
        # The folder's own settings complete these, and only then can they be compared.
        return Config(run=RunConfig(mode='eval'))
    needs_data = given.get('mode') != 'export'
    if needs_data and given.get('dataset') is None and given.get('preset') is None:
        given = {**given, 'preset': 'demo'}
    name = given.get('preset')
    if name is None:
        return from_values(given)
    if name not in presets:
        raise UserError(f'--preset must be one of {", ".join(presets)}; found {name!r}.')
    return from_values({**_unless_given(presets[name].flags, given), **given})


def _unless_given(flags: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's flags that something given doesn't take the place of."""
    labels = ('label_fraction', 'labels_per_class')
    dropped = labels if any(name in given for name in labels) else ()
    if given.get('checkpoint'):  # tells these itself
        dropped += ('resnet_depth', 'width_multiplier', 'sk_ratio', 'se_ratio')
    return {name: value for name, value in flags.items() if name not in dropped}


def write_flags(model_dir: str, config: Config, facts: Mapping[str, Any]) -> None:
    """Writes `flags.json`: all settings, and `facts` about the data such as 'num_classes'."""
    from tf2.files import write_text

    text = json.dumps({**to_values(config), **facts}, indent=1, sort_keys=True)
    write_text(os.path.join(model_dir, FLAGS_FILE), f'{text}\n')


def read_flags(model_dir: str) -> dict[str, Any] | None:
    """What `write_flags` wrote to `model_dir`, None if it did not.

    Raises:
        UserError: if the file cannot be understood.
    """
    return read_json(os.path.join(model_dir, FLAGS_FILE))


def read_json(path: str) -> dict[str, Any] | None:
    """The settings in a file of ours, None without it.

    Raises:
        UserError: if the file cannot be understood.
    """
    import tensorflow as tf

    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        text = file.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f'{path} should be JSON as a training run writes it; found otherwise ({error}). '
            'Restore it, or choose another --model_dir.'
        ) from error


# Where a run takes place and how it keeps house; what it computes is the same.
PLACES = (
    *('strategy', 'logical_devices', 'use_tpu', 'tpu_name', 'tpu_zone', 'gcp_project', 'master'),
    *('tf_data_service', 'cache_dataset', 'steps_per_loop', 'verbosity'),
)


def architecture(values: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether a checkpoint fits a run, from `read_flags` or `to_values`."""
    # Statistics are of one shape however they are taken.
    free = {'ft_proj_selector', 'global_bn', 'batch_norm_decay'}
    # Fine-tuning reads one layer of the head and has optimizer slots for what is not frozen.
    tuned = ('ft_proj_selector', 'fine_tune_after_block')
    # Pretraining may have a queue and a momentum encoder.
    kept = ('memory_size',)
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in free]
    return {
        **{name: values[name] for name in names},
        'small stem': values['image_size'] <= SMALL_IMAGE,
        'optimizer': values['optimizer'],
        # Only float16 comes with variables, those of the loss scaling.
        'mixed_precision': 'float16'
        if values['mixed_precision'] == 'float16'
        else 'bfloat16 or float32',
        'num_classes': values['num_classes'],
        'train_mode': values['train_mode'],
        **{name: values[name] for name in (tuned if values['train_mode'] != 'pretrain' else kept)},
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
