"""Source + recipe → batches, without end for training and exactly once for evaluation.

A training batch depends on nothing but the settings and its number: epoch e is a permutation
seeded by (seed, e), and every view is drawn from (seed, e, example, view). So a run that starts
at step k sees what a run from the beginning sees from step k on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from data.augmentations import AUGMENTATIONS
from data.config import DataConfig
from data.images import to_rgb
from data.randomness import epoch_key, view_seed
from data.recipes import RECIPES, Recipe, View
from data.sources.source import NO_LABEL, Source
from settings import UserError

Example = dict[str, tf.Tensor | tuple[tf.Tensor, ...]]
Batch = dict[str, tf.Tensor | tuple[tf.Tensor, ...]]

_SMALL_IMAGE = 32  # pixels
# Encoded examples in the shuffle buffer. Data sets of small images fit as a whole; of large ones
# (about 110 kB each in ImageNet) as many are held as 2 GB take.
_BUFFER_SMALL_IMAGES = 65_536
_BUFFER_LARGE_IMAGES = 16_384
# Most images augmented at once: many, so that small ones don't spend their time in overhead; few
# where images are large, so that they stay in the processor's cache.
_GROUP_SMALL_IMAGES = 256
_GROUP_LARGE_IMAGES = 16
_PREFETCHED_BATCHES = 2


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    split: str,
    recipe: str,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    extra: View | None = None,
) -> tf.data.Dataset:
    """An endless stream of training batches; batches run across the ends of epochs.

    Args:
        source: where the examples come from.
        config: settings of the augmentations; `image_size` is the views' size in pixels.
        split: split or slice of `source`.
        recipe: name in RECIPES.
        batch_size: examples per batch.
        seed: the run's seed.
        start_step: how many batches to leave out at the beginning. What is left out is neither
            decoded nor augmented.
        extra: one more view than the recipe's, the last one, of its own size; a teacher's.

    Returns:
        Dataset of {'views': tuple of [batch_size, image_size, image_size, 3] float32 in [0, 1],
        'label': [batch_size] int32, -1 = none}.

    Raises:
        UserError: if there is no such split, or it has fewer examples than a batch.
    """
    count = _count(source, split)
    if count < batch_size:
        raise UserError(
            f'Split {split!r} of data set {source.name} has {count} examples, fewer than one '
            f'batch of {batch_size}; lower --train_batch_size or choose a larger split.'
        )
    wanted = _with_extra(RECIPES[recipe], extra)
    is_small = config.image_size <= _SMALL_IMAGE
    examples = source.examples(split).enumerate()
    if config.cache_dataset:
        examples = examples.cache()
    buffer = min(count, _BUFFER_SMALL_IMAGES if is_small else _BUFFER_LARGE_IMAGES)
    dataset = _epochs(examples, count, buffer, seed, skip=start_step * batch_size)

    group_size = _group_size(batch_size, _GROUP_SMALL_IMAGES if is_small else _GROUP_LARGE_IMAGES)
    first, last = _training_steps(source, wanted, config)
    dataset = _map(dataset, first).batch(group_size, drop_remainder=True)
    dataset = _map(dataset, last).rebatch(batch_size, drop_remainder=True)
    return dataset.prefetch(_PREFETCHED_BATCHES)


def _training_steps(
    source: Source, recipe: Recipe, config: DataConfig
) -> tuple[Callable[..., Example], Callable[[Example], Batch]]:
    """What is done to one example at a time, and then to a group of them."""
    halves = [_split_steps(view) for view in recipe]

    def first_steps(key: tf.Tensor, index: tf.Tensor, example: Example) -> Example:
        seeds = tuple(view_seed(key, index, view.seed) for view in recipe)
        views = _open_views(source, example, seeds, [first for first, _ in halves], config)
        return {'views': views, 'seeds': seeds, 'label': example['label']}

    def last_steps(group: Example) -> Batch:
        parts = zip(group['views'], group['seeds'], halves, strict=True)
        views = tuple(_augment(images, seeds, last, config) for images, seeds, (_, last) in parts)
        return {'views': views, 'label': group['label']}

    return first_steps, last_steps


def eval_batches(
    source: Source, config: DataConfig, *, split: str, batch_size: int, extra: View | None = None
) -> tf.data.Dataset:
    """Every example of a split once, in a fixed order; the last batch is filled up.

    Args:
        source: where the examples come from.
        config: settings; `image_size` is the view's size in pixels.
        split: split or slice of `source`.
        batch_size: examples per batch.
        extra: a second view of each example, of its own size; a teacher's.

    Returns:
        Finite dataset of {'views': tuple of one [batch_size, image_size, image_size, 3] float32
        in [0, 1], 'label': [batch_size] int32, -1 = none, 'mask': [batch_size] bool, False where
        the batch was filled up with black images}.

    Raises:
        UserError: if there is no such split, or it is empty.
    """
    count = _count(source, split)
    if count == 0:
        raise UserError(
            f'Split {split!r} of data set {source.name} must have examples, but is empty; '
            'choose another --eval_split.'
        )
    missing = -count % batch_size
    wanted = _with_extra(RECIPES['eval'], extra)

    def view(example: Example) -> Example:
        # The evaluation view leaves nothing to chance; its steps ignore the seed.
        seeds = (tf.zeros([2], tf.int32),) * len(wanted)
        views = _open_views(source, example, seeds, wanted, config)
        return {'views': views, 'label': example['label'], 'mask': tf.constant(True)}

    dataset = _map(source.examples(split), view)
    if missing:
        dataset = dataset.concatenate(_blank(dataset.element_spec).repeat(missing))
    return dataset.batch(batch_size, drop_remainder=True).prefetch(_PREFETCHED_BATCHES)


def sample_views(
    source: Source, config: DataConfig, *, split: str, recipe: str, count: int, seed: int
) -> tuple[tf.Tensor, ...]:
    """Training views of the first examples of a split, to look at.

    Args:
        source: where the examples come from.
        config: settings of the augmentations.
        split: split or slice of `source`.
        recipe: name in RECIPES.
        count: how many examples.
        seed: the run's seed.

    Returns:
        A tensor [n, image_size, image_size, 3] float32 in [0, 1] for every view, n <= count.
    """
    key = epoch_key(seed, 0)

    def views(index: tf.Tensor, example: Example) -> tuple[tf.Tensor, ...]:
        seeds = tuple(view_seed(key, index, view.seed) for view in RECIPES[recipe])
        return _open_views(source, example, seeds, RECIPES[recipe], config)

    first = source.examples(split).take(count).enumerate()
    return first.map(views).batch(count).get_single_element()


def decode_for_evaluation(encoded: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """The evaluation view of a PNG, JPEG, GIF or BMP file.

    Args:
        encoded: scalar string, the file's bytes.
        config: settings; `image_size` is the view's size in pixels.

    Returns:
        [image_size, image_size, 3] float32 in [0, 1].
    """
    image = to_rgb(tf.io.decode_image(encoded, expand_animations=False))
    return _augment(image, tf.zeros([2], tf.int32), RECIPES['eval'][0], config)


def _count(source: Source, split: str) -> int:
    return int(source.num_examples(split))


def _epochs(
    examples: tf.data.Dataset, count: int, buffer: int, seed: int, *, skip: int
) -> tf.data.Dataset:
    """(epoch key, index, example), one epoch after the other, from the skip-th on.

    Args:
        examples: finite dataset of (index, example).
        count: examples per epoch.
        buffer: size of the shuffle buffer.
        seed: the run's seed.
        skip: how many examples to leave out, over all epochs.
    """
    first_epoch, offset = divmod(skip, count)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = epoch_key(seed, epoch)
        # Without a seed of its own this function's graph would take the program's global seed,
        # and with 0 for that, `shuffle` fails on a seed that is a tensor.
        tf.compat.v1.set_random_seed(1)
        order = examples.shuffle(
            buffer, seed=tf.cast(key, tf.int64), reshuffle_each_iteration=False
        )
        seen = tf.where(epoch == first_epoch, tf.constant(offset, tf.int64), 0)
        return order.skip(seen).map(lambda index, example: (key, index, example))

    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    return epochs.flat_map(one_epoch)


def _with_extra(recipe: Recipe, extra: View | None) -> Recipe:
    return recipe if extra is None else (*recipe, extra)


def _split_steps(view: View) -> tuple[View, View]:
    """Cuts a view's steps into those that take single images only and those after them."""
    cut = 0
    for position, name in enumerate(view.steps):
        if not AUGMENTATIONS[name].takes_batches:
            cut = position + 1
    return tuple(dataclasses.replace(view, steps=s) for s in (view.steps[:cut], view.steps[cut:]))


def _open_views(
    source: Source,
    example: Example,
    seeds: Sequence[tf.Tensor],
    views: Sequence[View],
    config: DataConfig,
) -> tuple[tf.Tensor, ...]:
    """Decodes one example once and makes each of `views` of it, with its seed."""
    image = to_rgb(source.decode(example['image']))  # [h, w, 3]
    return tuple(_augment(image, seed, view, config) for seed, view in zip(seeds, views))


def _augment(image: tf.Tensor, seed: tf.Tensor, view: View, config: DataConfig) -> tf.Tensor:
    sized = dataclasses.replace(config, image_size=view.size or config.image_size)
    for name in view.steps:
        image = AUGMENTATIONS[name].apply(image, seed, sized)
    return image


def _group_size(batch_size: int, limit: int) -> int:
    """The largest divisor of `batch_size` up to `limit`: groups don't straddle batches.

    So a resumed run forms the same groups, and gets the same floating-point results.
    """
    sizes = range(min(batch_size, limit), 0, -1)
    return next(size for size in sizes if batch_size % size == 0)


def _blank(spec: Example) -> tf.data.Dataset:
    """One example that fills up a batch: black, without a label, masked."""
    blank = tf.nest.map_structure(lambda part: tf.zeros(part.shape, part.dtype), spec)
    return tf.data.Dataset.from_tensors({**blank, 'label': tf.constant(NO_LABEL)})


def _map(dataset: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    # No function here has control flow to convert, and a converted one buries the message of a
    # UserError in a trace.
    plain = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(plain, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
