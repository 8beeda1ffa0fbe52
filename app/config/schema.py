"""`Config`: all settings of a run, in sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from app.modes import MODES, Mode
from common.methods import MethodEntry
from common.settings import INFERENCE, check_options, option
from data.config import DataConfig
from tf2.config import (
    DeviceConfig,
    EvaluationConfig,
    LearningConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    TrainConfig,
)
from tf2.methods import entries, entry_of
from tf2.models import BACKBONES, BackboneEntry

Entry: TypeAlias = MethodEntry | BackboneEntry


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to do."""

    mode: str = option(
        'train',
        'What to do. "eval" follows new checkpoints until training is done; "export" turns '
        '--checkpoint, of any format, into a TF-Hub module below --model_dir; "pipeline" runs all '
        'stages, one after the other; "embed" writes the representation of every image, "predict" '
        'its most likely classes; "search" finds the images most similar to one; "check" reads '
        'every image once and reports what is in the data.',
        choices=MODES,
        modes=('eval', 'export', 'check', *INFERENCE, 'search'),
        resume='free',
    )
    preset: str | None = option(
        None,
        'Named set of flags, see below. Flags that are given take precedence.',
        modes=('export',),
        resume='free',
    )
    verbosity: int = option(
        0,
        '1 also lists variables by name when weights are loaded.',
        at_least=0,
        modes=('eval', 'export', *INFERENCE, 'search'),
        resume='free',
    )

    allow_changes: str | None = option(
        None,
        'Comma-separated settings that a resumed run may change although they affect its result. '
        'flags.json records each change: its step, the old value and the new one.',
        resume='free',
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def does(self) -> Mode:
        """The entry of `mode`."""
        return MODES[self.mode]


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """What is written about images, with a network that is trained."""

    layer: str | None = option(
        None,
        'Endpoint of the network that is the embedding; feature maps are averaged over space. '
        'Unset: final_avg_pool, the representation, or what is recorded in --embeddings.',
        modes=('embed', 'search'),
        runs=False,
        resume='free',
    )
    output: str | None = option(
        None,
        'File to write, relative to --model_dir; its extension says the format. Unset: '
        'embeddings.npz, which may also be .parquet or .csv, predictions.csv, and search.html.',
        modes=('embed', 'predict', 'search'),
        runs=False,
        resume='free',
    )
    top_k: int = option(
        0,
        'How many of the most likely classes are predicted for each image, or of the most similar '
        'images are found. 0: 5 classes, or all if there are fewer; 24 images.',
        at_least=0,
        modes=('predict', 'search'),
        runs=False,
        resume='free',
    )
    query: str | None = option(
        None, 'The image to search for.', modes=('search',), runs=False, resume='free'
    )
    embeddings: str | None = option(
        None,
        'The file to search, which --mode=embed wrote.',
        modes=('search',),
        runs=False,
        resume='free',
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, in sections."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    learning: LearningConfig = LearningConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    output: OutputConfig = OutputConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    devices: DeviceConfig = DeviceConfig()
    inference: InferenceConfig = InferenceConfig()


SECTIONS: dict[str, type] = {
    'run': RunConfig,
    'data': DataConfig,
    'model': ModelConfig,
    'learning': LearningConfig,
    'optimizer': OptimizerConfig,
    'train': TrainConfig,
    'output': OutputConfig,
    'evaluation': EvaluationConfig,
    'devices': DeviceConfig,
    'inference': InferenceConfig,
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

TRAIN_EXAMPLES = 'train_examples'  # in flags.json: the number of training examples
# Settings that name other runs, which may be moved together with the run that reads them.
PATHS = ('checkpoint', 'teacher')
LABELS = ('label_fraction', 'labels_per_class')


def is_read(name: str, values: Mapping[str, Any]) -> bool:
    """Whether method and backbone of a run with the settings `values` read setting `name`."""
    method = entry_of(values['train_mode'], values['method'])
    backbone = BACKBONES[values['backbone']]
    return _reads(method, entries(), name) and _reads(backbone, BACKBONES.values(), name)


def _reads(entry: Entry, others: Iterable[Entry], name: str) -> bool:
    """Whether `entry` reads `name`. A name that no entry lists is read with all of them."""
    return name in entry.reads or not any(name in other.reads for other in others)


def with_values(config: Config, **values: Any) -> Config:
    """`config` with other values of some settings."""
    changed = {}
    for name, section in SECTIONS.items():
        own = {f.name: values[f.name] for f in dataclasses.fields(section) if f.name in values}
        if own:
            changed[name] = dataclasses.replace(getattr(config, name), **own)
    return dataclasses.replace(config, **changed)


def to_values(config: Config) -> dict[str, Any]:
    """Setting name -> value, the inverse of `from_values`."""
    return {
        key: value
        for section in dataclasses.asdict(config).values()
        for key, value in section.items()
    }
