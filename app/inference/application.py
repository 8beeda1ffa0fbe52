"""A trained network and a data set to run it over: checked first, then one resumable pass."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from app import lock
from app.classes import match_classes
from app.config.schema import Config, with_values
from app.experiment import check_devices, within_memory
from app.inference.network import Network, load_network, with_architecture
from app.inference.parts import Parts
from app.preflight import with_model_dir
from app.run_folder import read_flags
from app.skipped import listing_skipped_files
from common.errors import UserError
from common.interruption import Interrupted, Stop
from data.batches import eval_batches
from data.failures import as_user_errors
from data.names import folders_of
from data.sources import open_source
from data.sources.source import Source
from data.worker import Worker
from tf2 import distribution, precision
from tf2.features import RowPass
from tf2.files import clear_leftovers, writing
from tf2.progress import Progress
from tf2.weights import Weights

NAMES_AT_ONCE = 65_536  # names of files that are hashed at a time

Keep = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Application:
    """What a pass needs.

    Attributes:
        config: all settings, with the architecture of the weights.
        source: the data set, its files in the order of their listing.
        splits: name and number of examples of each split, in the order of the pass.
        strategy: where it runs.
        network: what `--checkpoint` names.
    """

    config: Config
    source: Source
    splits: Sequence[tuple[str, int]]
    strategy: tf.distribute.Strategy
    network: Network

    @property
    def examples(self) -> int:
        """Number of examples in all splits."""
        return sum(count for _, count in self.splits)

    @property
    def data_dir(self) -> str:
        """The folders of the data set, as absolute paths; empty if none was given."""
        places = folders_of(self.config.data.data_dir)
        return ','.join(place if '://' in place else os.path.abspath(place) for place in places)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the data set's classes, by label; their numbers if they have no names."""
        source = self.source
        if source.num_classes is None:
            return None
        return source.class_names or tuple(map(str, range(source.num_classes)))

    @property
    def writes(self) -> bool:
        """Whether this process writes for all."""
        return distribution.is_chief(self.strategy)

    def settings(self) -> dict[str, Any]:
        """What the rows of a pass depend on, as JSON values."""
        config = self.config
        return {
            'mode': config.run.mode,
            'checkpoint': _identity(self.network.weights),
            'image_size': config.data.image_size,
            'mixed_precision': config.train.mixed_precision,
            'eval_batch_size': config.evaluation.eval_batch_size,
            'replicas': self.strategy.num_replicas_in_sync,
            'dataset': self.source.name,
            'data_dir': self.data_dir,
            'splits': dict(self.splits),
            'files': _digest_of_names(self.source, self.splits),
        }

    def batches(self, split: str, count: int, first: int) -> Iterable[Any]:
        """Batches of the examples of a split from number `first` on."""
        source = _from(self.source, split, count, first)

        def share(worker: int, workers: int) -> tf.data.Dataset:
            return eval_batches(
                source,
                self.config.data,
                split=split,
                batch_size=self.config.evaluation.eval_batch_size,
                worker=Worker(worker, workers),
            )

        return distribution.distribute(self.strategy, share)

    def names(self, places: np.ndarray) -> tuple[list[str], list[str]]:
        """The split and the file of each example.

        Args:
            places: [n] int64, numbers of examples in the order of the pass, ascending.

        Returns:
            Two lists of n names. Of an example that is not a file, its name is a slice that holds
            only that example.
        """
        splits: list[str] = []
        files: list[str] = []
        begin = 0
        for split, count in self.splits:
            own = places[(places >= begin) & (places < begin + count)] - begin
            splits += [split] * len(own)
            if len(own) and self.source.identify:
                files += map(readable, self.source.identify(split, own))
            else:
                files += [f'{split}[{index}:{index + 1}]' for index in own.tolist()]
            begin += count
        return splits, files


def prepare(
    config: Config, given: Mapping[str, Any], *, head_layers: Callable[[Config], int]
) -> Application:
    """Opens weights and data and builds the model; writes nothing.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        head_layers: settings with the architecture of the weights → how many layers of the
            projection head are needed, see `Weights.load_into`.

    Raises:
        UserError: for whatever the user can fix.
    """
    config = with_model_dir(config)
    strategy = distribution.build_strategy(config.devices)
    config, weights = with_architecture(config, given)
    source, splits = _open_data(config, given, weights)
    config = _with_batch(config, given, strategy, max(count for _, count in splits))
    with (
        distribution.together(strategy, config.output.model_dir),
        within_memory('evaluation', config, strategy),
    ):
        setting = precision.choose(config.train.mixed_precision, strategy)
        config = with_values(config, mixed_precision=setting)
        check_devices(config, strategy)
        with strategy.scope():
            loaded = load_network(config, given, weights, head_layers(config))
    return Application(config, source, splits, strategy, loaded)


def _open_data(
    config: Config, given: Mapping[str, Any], weights: Weights
) -> tuple[Source, list[tuple[str, int]]]:
    """The data set, and its splits: those of `--eval_split`, if it is given, or all.

    What is held out of own images are the files that the network's run has held out.
    """
    if 'holdout_fraction' not in given:
        held_out = _recorded_holdout(config, weights) if 'eval_split' in given else 0.0
        config = with_values(config, holdout_fraction=held_out)
    source = open_source(config.data)
    if source.in_listing_order is not None:
        source = source.in_listing_order()
    source = match_classes(config, source, None, None, weights).source
    names = [config.data.eval_split] if 'eval_split' in given else source.splits
    splits = [(name, int(source.num_examples(name))) for name in names]
    if not any(count for _, count in splits):
        raise UserError(
            f'--mode={config.run.mode} needs images; found none in '
            f'{", ".join(map(repr, names)) or "any split"} of {source.name}. Choose another '
            '--data_dir or --eval_split.'
        )
    return source, [(name, count) for name, count in splits if count]


def _recorded_holdout(config: Config, weights: Weights) -> float:
    """`--holdout_fraction` of the run that the weights are of, if they are of one."""
    recorded = read_flags(os.path.dirname(weights.prefix)) or {}
    return recorded.get('holdout_fraction', config.data.holdout_fraction)


def _with_batch(
    config: Config, given: Mapping[str, Any], strategy: tf.distribute.Strategy, most: int
) -> Config:
    """`config` with a batch that is no larger than the largest split."""
    replicas = strategy.num_replicas_in_sync
    fitting = -(-most // replicas) * replicas
    if 'eval_batch_size' in given or config.evaluation.eval_batch_size <= fitting:
        return config
    return with_values(config, eval_batch_size=fitting)


def _from(source: Source, split: str, count: int, first: int) -> Source:
    """`source`, whose `split` starts at example `first`."""
    examples = source.examples(split).enumerate().skip(first)
    examples = examples.map(lambda index, example: {**example, 'index': index})
    return dataclasses.replace(
        source, num_examples=lambda _: count - first, examples=lambda _: examples
    )


def _identity(weights: Weights) -> str:
    """Name of a checkpoint and a hash of its index, which holds checksums of all variables."""
    with tf.io.gfile.GFile(f'{weights.prefix}.index', 'rb') as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return f'{os.path.basename(weights.prefix)} {digest[:16]}'


def _digest_of_names(source: Source, splits: Sequence[tuple[str, int]]) -> str | None:
    """A hash of the names of all files; None if examples are not files."""
    if source.read is None or source.identify is None:
        return None
    digest = hashlib.sha256()
    for split, count in splits:
        for first in range(0, count, NAMES_AT_ONCE):
            numbers = range(first, min(count, first + NAMES_AT_ONCE))
            for name in source.identify(split, numbers):
                digest.update(os.fsencode(name) + b'\0')
    return digest.hexdigest()[:16]


def readable(name: str) -> str:
    """A name of a file in UTF-8: other bytes are escaped, as \\xNN."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def output_path(config: Config) -> str:
    """The file to write: `--output`, relative to `--model_dir`, or the one of the mode."""
    output = config.inference.output or config.run.does.output
    return output if '://' in output else os.path.join(config.output.model_dir, output)


@contextlib.contextmanager
def in_folder(app: Application) -> Iterator[None]:
    """Within it no other process writes to the model folder, and what fails there is told."""
    model_dir = app.config.output.model_dir
    with (
        lock.held(model_dir) if app.writes else contextlib.nullcontext(),
        distribution.together(app.strategy, model_dir),
        within_memory('evaluation', app.config, app.strategy),
        listing_skipped_files(app.source, model_dir, app.strategy),
    ):
        if app.writes:
            with writing(model_dir):
                clear_leftovers(model_dir)
        yield


def announce(app: Application) -> None:
    """Prints where the pass runs, over what, and with which weights."""
    config = app.config
    if app.source.summary:
        print(f'{app.source.summary}.')
    splits = ', '.join(f'{count:,} in {name!r}' for name, count in app.splits)
    print(f'{app.source.name}: {app.examples:,} images, {splits}.')
    where = distribution.describe(config.devices, app.strategy)
    print(f'{where}, in {config.train.mixed_precision}.')
    verbose = config.run.verbosity > 0
    print(app.network.report.details() if verbose else f'{app.network.report.line()}.', flush=True)


def pass_over(app: Application, function: RowPass, keep: Keep, parts: Parts, stop: Stop) -> None:
    """Runs `function` over all examples after those that `parts` has.

    Args:
        app: the data set.
        function: images → rows.
        keep: what of the rows of a batch goes to `parts`; it gets those of `function` and 'place',
            [n] int64, the number of each example in the order of the pass.
        parts: takes the rows.
        stop: after a signal the rows are written, and a rerun goes on from there.

    Raises:
        Interrupted: when a signal came, to this process or to another worker.
        UserError: if an image can't be read, or rows can't be written.
    """
    stop.listen()
    stopping = False
    with stop.deferred(), as_user_errors(app.source):
        try:
            for examples, found in _rows(app, function, parts.examples):
                parts.add(keep(found), examples)
                stopping = not distribution.all_agree(app.strategy, stop.number is None)
                if stopping:
                    break
        finally:
            parts.flush()
    if stopping:  # by a signal to another process
        raise Interrupted(signal.SIGTERM)


def _rows(
    app: Application, function: RowPass, done: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Number of examples and rows of one batch after another; 'place' is among the rows."""
    size = app.config.evaluation.eval_batch_size
    total = sum(-(-count // size) for _, count in app.splits)
    finished, begin = 0, 0
    progress: Progress | None = None
    try:
        for split, count in app.splits:
            first = min(count, max(0, done - begin))
            finished += -(-first // size)
            if first < count:
                progress = progress or Progress(finished, total, size, (), noun='batch')
                for batch in app.batches(split, count, first):
                    found = function.rows(batch)
                    examples = min(size, count - first)
                    first, finished = first + examples, finished + 1
                    yield examples, {**found, 'place': begin + found['index']}
                    progress.update(finished, {})
            begin += count
    finally:
        if progress is not None:
            progress.close()
