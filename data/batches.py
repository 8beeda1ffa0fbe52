"""Source + views → batches: an endless stream for training, a single pass for evaluation.

A training batch depends only on the settings and its number: epoch e is a permutation seeded by
(seed, e), and every view is drawn from (seed, e, example, view). So a run that starts at step k
sees the same batches as an uninterrupted run from step k on.

With several workers, each makes its own rows of every batch. If there are enough files, each worker
reads, shuffles and repeats its own share of them: batches then depend on the number of workers, but
the views of an example in an epoch do not. Otherwise all workers follow the same order and decode
only their own rows: the workers' rows, concatenated, are then the batches of a single process, bit
for bit if a worker's rows form groups of the same size (`_group_size`), else up to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from common.errors import UserError, line_within, one_line, printable, text_of
from common.limits import SMALL_IMAGE
from common.views import EVALUATION, View
from data.augmentations import apply_op, entry_of
from data.config import DataConfig
from data.image_files import decode_anywhere, decode_file, why_undecodable
from data.images import check_size, to_rgb
from data.randomness import epoch_key, view_seed
from data.service import check_answers
from data.sources.source import HELD_BYTES, NO_LABEL, Source
from data.tolerant_map import tolerant_map
from data.worker import Worker

Example = dict[str, tf.Tensor | tuple[tf.Tensor, ...]]
Batch = dict[str, tf.Tensor | tuple[tf.Tensor, ...]]

# Examples in the shuffle buffer. Encoded ones are also limited to HELD_BYTES: data sets of small
# images fit as a whole; of ImageNet, at about 110 kB each, 2 GB are held.
_BUFFER_SMALL_IMAGES = 65_536
_BUFFER_LARGE_IMAGES = 16_384
_BUFFER_PATHS = 262_144  # if files are read after the shuffle; about 100 MB
# Most images per call of a compiled function: many small ones, so that overhead doesn't dominate;
# fewer large ones, to limit memory. A batch that is a single group is not copied again.
_GROUP_SMALL_IMAGES = 256
_GROUP_LARGE_IMAGES = 64
# Images that are read and decoded in one call.
_READ_SMALL_IMAGES = 256
_READ_LARGE_IMAGES = 32
_PLACE = 'place'  # temporary key of examples
_SMALLEST_GROUP = 8  # groups have at least an eighth of the images they may have
_PREFETCHED_BATCHES = 2


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    split: str,
    views: Sequence[View],
    batch_size: int,
    seed: int,
    start: int = 0,
    worker: Worker = Worker(),
    finished: bool = True,
) -> tf.data.Dataset:
    """An endless stream of training batches; a batch may span two epochs.

    With `config.tf_data_service`, that service's workers make the batches, each for an epoch of
    its own. Every epoch still holds every example once, with its own views. But batches of several
    epochs mix, their order is not repeatable, and a run that starts at example `start` starts at
    the beginning of that example's epoch.

    Args:
        source: where the examples come from.
        config: settings of the augmentations; `image_size` is the views' size in pixels.
        split: split or slice of `source`.
        views: the views of each example.
        batch_size: examples per batch, of all workers together.
        seed: the run's seed.
        start: number of examples to skip, of all workers together; a multiple of their number.
            Skipped examples are neither decoded nor augmented.
        worker: which of several processes this is.
        finished: whether views are complete. If not, `finisher` applies on the device the
            operations that take whole batches, and batches also hold 'seeds': tuple of [b, 2]
            int32.

    Returns:
        Dataset of {'views': tuple of [b, size, size, 3] float32 in [0, 1], 'label': [b] int32,
        -1 = none, 'index': [b] int64, position in the split}, and any other features of the
        source's examples except strings; b is batch_size / worker.count.

    Raises:
        UserError: if there is no such split, it has fewer examples than a batch, the batch cannot
            be divided evenly, or nothing answers at `config.tf_data_service`.
    """
    _check_fills_a_batch(source, split, batch_size)
    rows = _rows(worker, batch_size, '--train_batch_size')
    if config.tf_data_service:
        check_answers(config.tf_data_service)
    dataset = _training_examples(
        source, config, split, batch_size, seed=seed, start=start, worker=worker
    )
    dataset = _map_files(dataset, source, config, split, _first_steps(source, views, config))
    if finished:
        dataset = _finish_in_groups(dataset, views, config, len(rows))
    else:
        dataset = dataset.batch(len(rows), drop_remainder=True)
    if config.tf_data_service:
        dataset = _made_by_service(dataset, config.tf_data_service)
    return dataset.prefetch(_PREFETCHED_BATCHES)


def _check_fills_a_batch(source: Source, split: str, batch_size: int) -> None:
    count = _count(source, split)
    if count < batch_size:
        raise UserError(
            f'Split {split!r} of data set {source.name} has {count} examples, fewer than one '
            f'batch of {batch_size}; lower --train_batch_size or choose a larger split.'
        )


def _made_by_service(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    # The service distributes the epoch numbers, so no two of its workers make the same epoch.
    mode = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    return dataset.apply(tf.data.experimental.service.distribute(mode, address))


def _finish_in_groups(
    dataset: tf.data.Dataset, views: Sequence[View], config: DataConfig, batch_size: int
) -> tf.data.Dataset:
    """Applies `_last_steps` on the host, compiled, and batches."""
    limit = _GROUP_SMALL_IMAGES if _is_small(config) else _GROUP_LARGE_IMAGES
    dataset = dataset.batch(_group_size(batch_size, limit), drop_remainder=True)
    dataset = _map(dataset, _last_steps(views, functools.partial(_compile, config=config)))
    return dataset.rebatch(batch_size, drop_remainder=True)


def _training_examples(
    source: Source,
    config: DataConfig,
    split: str,
    batch_size: int,
    *,
    seed: int,
    start: int,
    worker: Worker,
) -> tf.data.Dataset:
    """(epoch key, position, example) of the worker's rows, from example `start` on."""
    share = source.share(split, worker) if worker.count > 1 else None
    if share is None:
        examples, count = source.examples(split).enumerate(), _count(source, split)
        skip = start
    else:
        examples, count = share, len(worker.part(_count(source, split)))
        skip = start // worker.count
    if config.cache_dataset:
        examples = _cached(examples, source, config, split)
    buffer = min(count, _most_buffered(source, config, split))
    is_own = None
    if share is None and worker.count > 1:
        is_own = _is_row_of(worker, batch_size, start)
    return _epochs(examples, count, buffer, seed, skip=skip, is_own=is_own)


def _most_buffered(source: Source, config: DataConfig, split: str) -> int:
    """The largest number of examples in the shuffle buffer."""
    if source.read is not None:
        return _BUFFER_PATHS
    most = _BUFFER_SMALL_IMAGES if _is_small(config) else _BUFFER_LARGE_IMAGES
    size = source.bytes_per_example(split)
    return min(most, max(1, int(HELD_BYTES // size))) if size else most


def finisher(config: DataConfig, *, views: Sequence[View]) -> Callable[[Batch], Batch]:
    """Completes the batches of `train_batches(..., finished=False)`, on any device.

    The views are those of the host up to rounding, because each image has the same draws.

    Args:
        config: as given to `train_batches`.
        views: as given to `train_batches`.

    Returns:
        Batch with 'seeds' → batch without; XLA compiles it.
    """

    def at_once(view: View) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        return functools.partial(_augment, view=view, config=config)

    return _last_steps(views, at_once)


def _first_steps(
    source: Source, views: Sequence[View], config: DataConfig
) -> Callable[..., Example]:
    """(epoch key, position, example) → example with 'views' after the single-image operations."""
    firsts = [_split_ops(view)[0] for view in views]

    def first_steps(key: tf.Tensor, index: tf.Tensor, example: Example) -> Example:
        seeds = tuple(view_seed(key, index, view.draw) for view in views)
        opened = _open_views(source, example, seeds, firsts, config)
        # A source that is a part of another says where its examples are in the whole.
        return {'index': index, **_others(example), 'views': opened, 'seeds': seeds}

    return first_steps


def _last_steps(
    views: Sequence[View], augment: Callable[[View], Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]
) -> Callable[[Example], Batch]:
    """A group of what `_first_steps` returns → a group with complete views.

    Args:
        views: the views of each example.
        augment: view → (images, seeds) → images.
    """
    # Views that differ only in their draws share a function, which is compiled once.
    lasts = [dataclasses.replace(_split_ops(view)[1], draw=0) for view in views]
    augmenters = {last: augment(last) for last in lasts}

    def last_steps(group: Example) -> Batch:
        parts = zip(lasts, group['views'], group['seeds'], strict=True)
        made = tuple(augmenters[last](images, seeds) for last, images, seeds in parts)
        others = {key: value for key, value in group.items() if key != 'seeds'}
        return {**others, 'views': made}

    return last_steps


def eval_batches(
    source: Source,
    config: DataConfig,
    *,
    split: str,
    batch_size: int,
    views: Sequence[View] = EVALUATION,
    worker: Worker = Worker(),
    seed: int | None = None,
) -> tf.data.Dataset:
    """Every example of a split once, in a fixed order; the last batch is padded.

    With several workers, their rows, concatenated, are the batches of a single process.

    Args:
        source: where the examples come from.
        config: settings; `image_size` is the view's size in pixels.
        split: split or slice of `source`.
        batch_size: examples per batch, of all workers together.
        views: the views of each example; deterministic ones, unless there is a `seed`.
        worker: which of several processes this is.
        seed: draws the views as in the first epoch of a run with this seed.

    Returns:
        Finite dataset of {'views': tuple of [b, size, size, 3] float32 in [0, 1], 'label': [b]
        int32, -1 = none, 'index': [b] int64, position in the split, 'mask': [b] bool, False where
        the batch is padded with black images}, and any other features of the source's examples
        except strings; b is batch_size / worker.count. Every worker has as many batches.

    Raises:
        UserError: if there is no such split, it is empty, or the batch cannot be divided evenly.
    """
    count = _count(source, split)
    if count == 0:
        raise UserError(
            f'Split {split!r} of data set {source.name} must have examples, but is empty; '
            'choose another --eval_split.'
        )
    rows = _rows(worker, batch_size, '--eval_batch_size')
    dataset = source.examples(split).enumerate()
    if worker.count > 1:
        is_own = _is_row_of(worker, batch_size)
        dataset = dataset.filter(lambda index, _: is_own(index))
    dataset = _map_files(
        dataset, source, config, split, _all_steps(source, views, config, seed), masks=True
    )
    last_start = (count - 1) // batch_size * batch_size
    missing = sum(last_start + row >= count for row in rows)
    if missing:
        dataset = dataset.concatenate(_blank(dataset.element_spec).repeat(missing))
    return dataset.batch(len(rows), drop_remainder=True).prefetch(_PREFETCHED_BATCHES)


def _all_steps(
    source: Source, views: Sequence[View], config: DataConfig, seed: int | None
) -> Callable[..., Example]:
    """(position, example) → example with complete 'views' and a 'mask'.

    Args:
        source: where the examples come from.
        views: the views of each example.
        config: settings.
        seed: draws the views as in the first epoch of a run with this seed; None for
            deterministic views.
    """

    def seed_of(index: tf.Tensor, view: View) -> tf.Tensor:
        if seed is None:
            return tf.zeros([2], tf.int32)  # the operations of deterministic views ignore it
        return view_seed(epoch_key(seed, 0), index, view.draw)

    def all_steps(index: tf.Tensor, example: Example) -> Example:
        seeds = tuple(seed_of(index, view) for view in views)
        opened = _open_views(source, example, seeds, views, config)
        return {'index': index, **_others(example), 'views': opened, 'mask': tf.constant(True)}

    return all_steps


def sample_views(
    source: Source,
    config: DataConfig,
    *,
    split: str,
    views: Sequence[View],
    count: int,
    seed: int,
) -> tuple[tf.Tensor, ...]:
    """Training views of the first examples of a split, for display.

    Args:
        source: where the examples come from.
        config: settings of the augmentations.
        split: split or slice of `source`.
        views: the views of each example.
        count: number of examples.
        seed: the run's seed.

    Returns:
        A tensor [n, size, size, 3] float32 in [0, 1] for every view, n <= count.
    """
    first = source.examples(split).take(count).enumerate()
    with tf.device('/cpu:0'):
        key = epoch_key(seed, 0)
        keyed = _map(first, lambda index, example: (key, index, example))
        begun = _map_files(keyed, source, config, split, _first_steps(source, views, config))
        # Whole batches, one operation after another: no graph is traced for a few images.
        return finisher(config, views=views)(begun.batch(count).get_single_element())['views']


def decode_for_evaluation(encoded: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """The evaluation view of a PNG, JPEG, GIF or BMP file.

    Args:
        encoded: scalar string, the file's bytes.
        config: settings; `image_size` is the view's size in pixels.

    Returns:
        [image_size, image_size, 3] float32 in [0, 1].
    """
    encoded = check_size(encoded, config.max_pixels, 'one')
    return _evaluation_view(decode_anywhere(encoded), config)


def view_of_file(path: str, config: DataConfig) -> tf.Tensor:
    """The evaluation view of an image file of any format.

    Args:
        path: of the file.
        config: settings; `image_size` is the view's size in pixels.

    Returns:
        [image_size, image_size, 3] float32 in [0, 1].

    Raises:
        UserError: if the file can't be read or decoded.
    """

    @tf.function(autograph=False)
    def view(encoded: tf.Tensor) -> tf.Tensor:
        encoded = check_size(encoded, config.max_pixels, os.fsencode(path))
        return _evaluation_view(decode_file(encoded, config.max_pixels), config)

    content = None
    try:
        content = tf.io.read_file(os.fsencode(path))
        return view(content)
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        reason = None if content is None else why_undecodable(content.numpy())
        raise UserError(
            line_within(error)
            or f'{printable(path)} must be an image file; found otherwise '
            f'({reason or printable(one_line(text_of(error)))}). Choose another one.'
        ) from error


def _evaluation_view(image: tf.Tensor, config: DataConfig) -> tf.Tensor:
    return _augment(image, tf.zeros([2], tf.int32), EVALUATION[0], config)


def _count(source: Source, split: str) -> int:
    return int(source.num_examples(split))


def _is_small(config: DataConfig) -> bool:
    return config.image_size <= SMALL_IMAGE


def _rows(worker: Worker, batch_size: int, flag: str) -> range:
    """The worker's rows of a batch; every worker has the same number."""
    if batch_size % worker.count:
        raise UserError(
            f'{flag} must be a multiple of the number of workers, {worker.count}; '
            f'found {batch_size}.'
        )
    return worker.part(batch_size)


def _is_row_of(worker: Worker, batch_size: int, start: int = 0) -> Callable[[tf.Tensor], tf.Tensor]:
    """Position in a single process's stream, int64 scalar → whether it is the worker's.

    The first batch starts at position `start`.
    """
    rows = worker.part(batch_size)

    def is_own(place: tf.Tensor) -> tf.Tensor:
        row = (place - start) % batch_size
        return (row >= rows.start) & (row < rows.stop)

    return is_own


def _keep(places: tf.data.Dataset, is_own: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
    """The elements of (position, element) pairs whose position is the worker's."""
    return places.filter(lambda place, _: is_own(place)).map(lambda _, element: element)


def _epochs(
    examples: tf.data.Dataset,
    count: int,
    buffer: int,
    seed: int,
    *,
    skip: int,
    is_own: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """(epoch key, index, example), one epoch after another, without the first `skip`.

    Args:
        examples: finite dataset of (index, example).
        count: examples per epoch.
        buffer: size of the shuffle buffer.
        seed: the run's seed.
        skip: number of examples to skip, over all epochs.
        is_own: position in the whole stream → whether to keep it; None keeps all.
    """
    first_epoch, offset = divmod(skip, count)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = epoch_key(seed, epoch)
        # Without a graph-level seed of its own, this function's graph would take the program's
        # global seed; if that is 0, `shuffle` fails on a seed that is a tensor.
        tf.compat.v1.set_random_seed(1)
        order = examples.shuffle(
            buffer, seed=tf.cast(key, tf.int64), reshuffle_each_iteration=False
        )
        seen = tf.where(epoch == first_epoch, tf.constant(offset, tf.int64), 0)
        order = order.skip(seen)
        if is_own is not None:
            order = _keep(order.enumerate(epoch * count + seen), is_own)
        return order.map(lambda index, example: (key, index, example))

    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    return epochs.flat_map(one_epoch)


def _others(example: Example) -> Example:
    """What batches hold of an example besides its image; no strings, which accelerators can't."""
    return {key: value for key, value in example.items() if key != 'image' and not _has_text(value)}


def _has_text(value: Any) -> bool:
    return any(part.dtype == tf.string for part in tf.nest.flatten(value))


def _split_ops(view: View) -> tuple[View, View]:
    """Splits a view after its last operation that takes only single images."""
    cut = 0
    for position, op in enumerate(view.ops):
        if not entry_of(op).takes_batches:
            cut = position + 1
    return tuple(dataclasses.replace(view, ops=ops) for ops in (view.ops[:cut], view.ops[cut:]))


def _open_views(
    source: Source,
    example: Example,
    seeds: Sequence[tf.Tensor],
    views: Sequence[View],
    config: DataConfig,
) -> tuple[tf.Tensor, ...]:
    """Decodes one example once and makes each of its `views`, with its seed."""
    name = example.get('path', f'one of {source.name}')
    image = decode_stored(source, example['image'], config, name)
    return tuple(_augment(image, seed, view, config) for seed, view in zip(seeds, views))


def decode_stored(
    source: Source, stored: tf.Tensor, config: DataConfig, name: str | tf.Tensor
) -> tf.Tensor:
    """Decodes an image of `source`.

    Args:
        source: where it comes from.
        stored: the image as `source` holds it; the contents of a file, not its path.
        config: `max_pixels` is read.
        name: of the image, for messages.

    Returns:
        [h, w, 3], integers or float32 in [0, 1]; see `to_rgb`.
    """
    if stored.dtype == tf.string:
        stored = check_size(stored, config.max_pixels, name)
    return to_rgb(source.decode(stored), source.image_range or '0..1', name)


def _augment(image: tf.Tensor, seed: tf.Tensor, view: View, config: DataConfig) -> tf.Tensor:
    for op in view.ops:
        image = apply_op(op, image, seed, config=config, size=view.size or config.image_size)
    return image


@functools.lru_cache(maxsize=16)  # runs in one process share what is compiled
def _compile(view: View, config: DataConfig) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """(images, seeds) → images: applies all operations to one image of a group after another.

    So an image stays in the processor's cache, and a group has the overhead of a single call.
    """
    _compile_silently()

    @tf.function(jit_compile=True, autograph=False)
    def each(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda pair: _augment(*pair, view, config),
            (images, seeds),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32),
        )

    return each if view.ops else lambda images, seeds: images


@functools.cache
def _compile_silently() -> None:
    """Makes a first compilation, at which XLA logs two lines at any log level."""
    kept = os.dup(2)
    try:
        with open(os.devnull, 'w') as nowhere, tf.device('CPU:0'):
            os.dup2(nowhere.fileno(), 2)
            tf.function(lambda: tf.constant(0), jit_compile=True, autograph=False)()
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _group_size(batch_size: int, limit: int) -> int:
    """The largest divisor of `batch_size` up to `limit`, or `limit` if all of them are small.

    If the group size divides the batch, groups don't straddle batches and a resumed run forms the
    same ones. Otherwise its groups hold other images, each of which is still computed separately.
    """
    largest = min(batch_size, limit)
    divisors = (size for size in range(largest, 0, -1) if batch_size % size == 0)
    divisor = next(divisors)
    return divisor if _SMALLEST_GROUP * divisor >= largest else largest


def _blank(spec: Example) -> tf.data.Dataset:
    """One example for padding: black, without a label, masked."""
    blank = tf.nest.map_structure(lambda part: tf.zeros(part.shape, part.dtype), spec)
    unknown = {'label': tf.constant(NO_LABEL), 'index': tf.constant(-1, tf.int64)}
    return tf.data.Dataset.from_tensors({**blank, **unknown})


def _map_files(
    dataset: tf.data.Dataset,
    source: Source,
    config: DataConfig,
    split: str,
    function: Callable[..., Example],
    *,
    masks: bool = False,
) -> tf.data.Dataset:
    """Maps `function` over (..., example): files are read, damaged images replaced or masked."""
    # The workers of a tf.data service have no Python to find replacements.
    if source.skipped is None or config.tf_data_service:
        return _map(source.with_contents(dataset), function)
    replace = functools.partial(source.skipped.blank if masks else source.skipped.replace, split)
    group = _READ_SMALL_IMAGES if _is_small(config) else _READ_LARGE_IMAGES
    return tolerant_map(dataset, function, source.read_into, replace, group=group)


def _cached(
    dataset: tf.data.Dataset, source: Source, config: DataConfig, split: str
) -> tf.data.Dataset:
    """(index, example), with files read and kept in memory."""

    def joined(index: tf.Tensor, example: Example) -> Example:
        return {**example, _PLACE: index}

    def parted(example: Example) -> tuple[tf.Tensor, Example]:
        return example[_PLACE], {key: example[key] for key in example if key != _PLACE}

    return _map_files(dataset, source, config, split, joined).map(parted).cache()


def _map(dataset: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    # No function here has control flow to convert, and a conversion would bury the message of a
    # UserError in a trace.
    plain = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(plain, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
