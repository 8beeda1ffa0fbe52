"""Opens the data of a run and checks that they suffice, before anything is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from app.config.resolution import from_values
from app.config.schema import Config, to_values
from app.run_folder import recorded_run
from common.errors import UserError, printable
from data.label_subset import (
    LabelSubset,
    choose_labels,
    hide_other_labels,
    restrict,
    wants_subset,
)
from data.labels import LabelCounts, count_labels, listed
from data.sources import open_source
from data.sources.source import Source
from tf2 import schedules

# If epochs are shorter than this, a run writes at most so many checkpoints by default.
_SHORT_EPOCH = 50  # steps
_MOST_CHECKPOINTS = 20


@dataclasses.dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
        source: the data set for training, with only the labels that are used.
        evaluated: the data set for evaluation.
        subset: the labeled examples; None if all labels are used.
        train_examples: number of training examples.
        train_labels: labels of the training split.
        eval_labels: labels of the examples that are evaluated; None if none are.
        notes: lines for the user: what is left out, which settings were adapted to the data.
    """

    source: Source
    evaluated: Source
    subset: LabelSubset | None
    train_examples: int
    train_labels: LabelCounts
    eval_labels: LabelCounts | None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """The number of images, and how many there are of each class."""
        names = self.source.class_names
        words = f'{self.train_examples} training images, {self.train_labels.describe(names)}'
        if self.eval_labels is not None:
            counts = self.eval_labels
            words += f'; {counts.examples} to evaluate on, {counts.describe(names)}'
        return f'{self.source.name}: {words}.'

    def lines(self) -> list[str]:
        """What the data are, and what is left out because of them, for the user."""
        summary, image_range = self.source.summary, self.source.image_range
        lines = [f'{summary}.'] if summary else []
        lines += [self.describe(), *self.notes]
        if image_range:
            lines.append(f'Images are floating-point numbers, taken to be in {image_range}.')
        return lines

    def record(self) -> dict[str, Any]:
        """What `data.json` holds, see `app.run_folder.DATA`."""
        names = self.source.class_names
        return {
            'lines': self.lines(),
            'class_names': list(names) if names else None,
            'train': self.train_labels.by_class.tolist(),
            'eval': None if self.eval_labels is None else self.eval_labels.by_class.tolist(),
        }

    def in_order(self, source: Source, evaluated: Source) -> RunData:
        """These data with their classes numbered as in `source` and `evaluated`, both alike."""
        before, names = self.source.class_names, source.class_names
        counts = (self.train_labels, self.eval_labels)
        train, evaluation = (c and c.in_order(before, names) for c in counts)
        return dataclasses.replace(
            self, source=source, evaluated=evaluated, train_labels=train, eval_labels=evaluation
        )

    @property
    def finds_neighbors(self) -> bool:
        """Whether both splits have labels, which nearest neighbors need."""
        return self.measures_accuracy and self.train_labels.labeled > 0

    @property
    def measures_accuracy(self) -> bool:
        """Whether the evaluation split has labels."""
        return self.eval_labels is not None and self.eval_labels.labeled > 0


def open_data(config: Config, given: Mapping[str, Any], replicas: int) -> tuple[Config, RunData]:
    """Opens the data set and counts its labels.

    Args:
        config: all settings; `output.model_dir` is set.
        given: those of them that were given on the command line.
        replicas: among which batches are split.

    Returns:
        `config`, in which settings of batches, neighbors and checkpoints that were not given are
        adapted to the data; and the data.

    Raises:
        UserError: if the data don't suffice for `config`.
    """
    whole = open_source(config.data)
    source, subset = _training_source(config, whole)
    train_examples = _count(source, '--train_split', config.data.train_split)
    # Before labels are read, because the split may be too small for the batch.
    config, sizes = _with_batch(config, given, source, train_examples, replicas)
    neighbors = config.evaluation.knn_neighbors
    train_labels = count_labels(source, config.data.train_split, at_least=max(1, neighbors))
    eval_labels = None
    if config.run.does.measures:
        _count(whole, '--eval_split', config.data.eval_split)
        first = config.evaluation.eval_steps * config.evaluation.eval_batch_size or None
        eval_labels = count_labels(whole, config.data.eval_split, first=first)
    data = RunData(source, whole, subset, train_examples, train_labels, eval_labels)
    if config.run.does.trains:
        _check_trainable(config, data)
    if eval_labels is not None:
        config, more = _with_evaluation(config, given, data, replicas)
        sizes += more
    sized = (f'Sized for few images: {", ".join(sizes)}.',) if sizes else ()
    notes = (*sized, *_left_out(config, data), *_unknown_classes(config, data))
    return config, dataclasses.replace(data, notes=notes)


def _training_source(config: Config, source: Source) -> tuple[Source, LabelSubset | None]:
    """The data set, with only some of its labels if that was asked for, and which ones."""
    if not wants_subset(config.data):
        return source, None
    split = config.data.train_split
    source.num_examples(split)
    if source.num_classes is None:
        raise UserError(
            f'--label_fraction and --labels_per_class need labels; {_without_labels(source)}.'
        )
    subset = choose_labels(source, config.data, split=split, seed=config.train.seed)
    # A student is trained on all images.
    only_labeled = config.learning.stage.needs_labels
    return (restrict if only_labeled else hide_other_labels)(source, split, subset), subset


def _without_labels(source: Source) -> str:
    return f'{source.name} has none' + (f', but {source.label_hint}' if source.label_hint else '')


def _count(source: Source, flag: str, split: str) -> int:
    examples = source.num_examples(split)
    if not examples:
        raise UserError(f'{flag} must have examples; {split!r} of {source.name} has none.')
    return examples


def _check_trainable(config: Config, data: RunData) -> None:
    """Raises UserError if a stage that needs labels has none, or none of some class."""
    learning, stage = config.learning, config.learning.stage
    source, split = data.source, config.data.train_split
    if learning.entry.remembers_examples and learning.bank_negatives > data.train_examples:
        raise UserError(
            '--bank_negatives must be at most the number of training examples, '
            f'{data.train_examples} in {split!r} of {source.name}; found '
            f'{learning.bank_negatives}. Give fewer, or --bank_loss=softmax --bank_negatives=0 for '
            'all.'
        )
    if 'prototypes' in learning.entry.reads and learning.prototypes > data.train_examples:
        raise UserError(
            '--prototypes must be at most the number of training examples, '
            f'{data.train_examples} in {split!r} of {source.name}; found {learning.prototypes}. '
            f'Try {max(2, data.train_examples // 10)}.'
        )
    if not learning.learns_from_labels:
        return
    if data.train_labels.labeled == 0:
        found = _without_labels(source)
        if source.num_classes is not None:
            found = (
                f'none of the {data.train_examples} images in {split!r} of {source.name} has one'
            )
        if stage.has_teacher:
            raise UserError(
                f'--distill_alpha={learning.distill_alpha} gives weight to labels; {found}. Use '
                '--distill_alpha=1.'
            )
        raise UserError(
            f'--train_mode={learning.train_mode} needs labels; {found}. Choose another '
            '--dataset or --train_split, or --train_mode=pretrain.'
        )
    if stage.needs_labels and source.num_classes == 1:
        found = source.class_names[0] if source.class_names else 'class 0'
        raise UserError(
            f'--train_mode={learning.train_mode} must have two classes to tell apart, or more; '
            f'{source.name} has one, {printable(found)}. Give the folder above it, or choose '
            'another --dataset.'
        )
    unknown = _only_evaluated(data)
    if unknown and stage.needs_labels:
        raise UserError(
            f'--train_mode={learning.train_mode} must see every class that is evaluated; '
            f'{split!r} of {source.name} has no example of {listed(unknown)}, which '
            f'{config.data.eval_split!r} has. Choose another --train_split or --eval_split.'
        )


def _only_evaluated(data: RunData) -> list[str]:
    """Names of the classes that are in the evaluation split, but not in the training split."""
    if data.eval_labels is None or not data.train_labels.complete:
        return []
    missing = np.flatnonzero((data.train_labels.by_class == 0) & (data.eval_labels.by_class > 0))
    names = data.source.class_names
    return [names[i] if names else f'class {i}' for i in missing]


def _left_out(config: Config, data: RunData) -> list[str]:
    """Notes on what is left out because there are no labels."""
    measures_only = not config.learning.stage.classifies
    if data.source.num_classes is None:
        online = 'no online classifier, and ' if measures_only else ''
        hint = f' ({data.source.label_hint}.)' if data.source.label_hint else ''
        return [f'Without labels there is {online}no accuracy.{hint}']
    if measures_only and data.train_labels.labeled == 0:
        what = 'no online classifier, no nearest neighbors and no accuracy'
        return [f'No image in {config.data.train_split!r} has a label: there is {what}.']
    if data.eval_labels is not None and data.eval_labels.labeled == 0:
        return [f'No image in {config.data.eval_split!r} has a label: there is no accuracy.']
    if config.evaluation.knn_neighbors and data.eval_labels and data.train_labels.labeled == 0:
        split = config.data.train_split
        return [f'No image in {split!r} has a label: there are no nearest neighbors.']
    return []


def _unknown_classes(config: Config, data: RunData) -> list[str]:
    """A note on classes that are evaluated but not trained on, if labels are optional."""
    unknown = _only_evaluated(data)
    if not unknown or data.train_labels.labeled == 0:
        return []
    return [
        f'{config.data.train_split!r} has no example of {listed(unknown)}, which '
        f'{config.data.eval_split!r} has: they cannot be learned from labels.'
    ]


def _with_batch(
    config: Config, given: Mapping[str, Any], source: Source, examples: int, replicas: int
) -> tuple[Config, list[str]]:
    """`config` with a batch size and a checkpoint interval that suit the number of examples.

    Returns:
        `config`, and a description of each change.
    """
    if not config.run.does.trains:
        return config, []
    batch, words = config.train.train_batch_size, []
    if batch > examples:
        fitting = 0 if 'train_batch_size' in given else _batch_for(config, examples, replicas)
        if not fitting:
            few = wants_subset(config.data) and config.learning.stage.needs_labels
            chosen = ' with a label that was chosen' if few else ''
            raise UserError(
                '--train_batch_size must be at most the number of training examples, '
                f'{examples} in {config.data.train_split!r} of {source.name}{chosen}; found '
                f'{batch}.'
            )
        config = _changed(config, train_batch_size=fitting)
        words.append(f'--train_batch_size={fitting} instead of {batch}')
    train, output = config.train, config.output
    epoch = schedules.epoch_steps(examples, train)
    interval = output.checkpoint_epochs * epoch
    fewest = math.ceil(schedules.train_steps(examples, train) / _MOST_CHECKPOINTS)
    asked = output.checkpoint_steps or 'checkpoint_epochs' in given
    if epoch < _SHORT_EPOCH and interval < fewest and not asked:
        config = _changed(config, checkpoint_steps=fewest)
        words.append(f'--checkpoint_steps={fewest} instead of {interval}')
    return config, words


def _batch_for(config: Config, examples: int, replicas: int) -> int:
    """The largest batch size up to `examples` that suits replicas and memory; 0 if there is none.

    A resumed run keeps its batch size.
    """
    queues = math.gcd(config.learning.memory_size, config.learning.queue_size)  # 0 without one
    recorded = recorded_run(config.output.model_dir) or {}
    batches = [recorded.get('train_batch_size', 0), *range(examples, 0, -1)]
    multiple = math.lcm(replicas, config.learning.norm_parts)
    fitting = (b for b in batches if 0 < b <= examples and b % multiple == 0 and queues % b == 0)
    return next(fitting, 0)


def _with_evaluation(
    config: Config, given: Mapping[str, Any], data: RunData, replicas: int
) -> tuple[Config, list[str]]:
    """`config` with neighbors and an evaluation batch that suit the data; what was changed."""
    settings, words = config.evaluation, []
    known = min(data.train_labels.labeled, settings.knn_examples)
    neighbors = settings.knn_neighbors
    if neighbors > known and data.finds_neighbors:
        if 'knn_neighbors' in given:
            raise UserError(
                '--knn_neighbors must be at most the number of labeled training examples that '
                f'are searched, {known}; found {neighbors}.'
            )
        config = _changed(config, knn_neighbors=known)
        words.append(f'--knn_neighbors={known} instead of {neighbors}')
    passed = [data.eval_labels.examples, data.train_examples if neighbors else 0]
    fitting = math.ceil(max(passed) / replicas) * replicas
    if settings.eval_batch_size > fitting and 'eval_batch_size' not in given:
        config = _changed(config, eval_batch_size=fitting)
        words.append(f'--eval_batch_size={fitting} instead of {settings.eval_batch_size}')
    return config, words


def _changed(config: Config, **values: Any) -> Config:
    """`config` with other values of some settings, checked again."""
    return from_values({**to_values(config), **values})
