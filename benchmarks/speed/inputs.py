"""Times the input pipeline: training batches from encoded images in memory.

    python -m benchmarks.speed.inputs

The streams are measured in turns, so that slow spells of the machine affect all of them; a rate is
the median of the turns. It counts source images, each of which becomes two views.

  ours, plain    the program's own pipeline, and a simple one in this file, which processes one
                 image at a time with tf.image and the same distributions
  224            JPEGs of 375 x 500 pixels and about 90 kB, smooth random fields with grain; views
                 of 224 pixels with all augmentations except blur, or with `blur`; `cropped` is the
                 host's part if an accelerator finishes the views
  28             gray PNGs of 28 x 28 pixels, views of the same size
  decode         only full decoding of those JPEGs, on one thread or, `peak`, on all cores

Images per second of processor time are listed too, since they vary less while other programs run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from benchmarks.speed.spread import spread
from common.views import CONTRAST
from data.batches import train_batches
from data.config import DataConfig
from data.sources.source import NO_LABEL, Source

LARGE, SMALL = (375, 500), (28, 28)  # height and width of the images
VIEW = 224  # pixels of the large images' views
QUALITY = 95  # of the JPEGs
WARM_UP = 2  # batches before each measurement
_SIGMA = (0.1, 2.0)  # range, for the plain blur
_WALL, _PROCESSOR = '_images_per_second', '_images_per_processor_second'


# --- images


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A picture with large and small structure and some grain: [height, width, 3] uint8."""
    rng = np.random.RandomState(seed)
    layers = [
        0.7**level * tf.image.resize(rng.rand(2**level, 2**level, 3), [height, width], 'bicubic')
        for level in range(1, 9)
    ]
    smooth = np.sum(layers, axis=0)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    grain = 0.02 * rng.randn(height, width, 1)
    return (255 * (0.05 + 0.9 * smooth + grain)).clip(0, 255).astype(np.uint8)


def large_images(count: int) -> tf.Tensor:
    """[count] strings, JPEG."""
    pictures = (picture(seed, *LARGE) for seed in range(count))
    return tf.stack([tf.io.encode_jpeg(image, quality=QUALITY) for image in pictures])


def small_images(count: int) -> tf.Tensor:
    """[count] strings, gray PNG."""
    pictures = (picture(seed, *SMALL)[..., :1] for seed in range(count))
    return tf.stack([tf.io.encode_png(image) for image in pictures])


def memory_source(encoded: tf.Tensor, examples: int, channels: int) -> Source:
    """A source of `examples` images, which repeats `encoded`."""
    count = len(encoded)
    dataset = tf.data.Dataset.range(examples).map(
        lambda index: {'image': encoded[index % count], 'label': tf.constant(NO_LABEL)}
    )

    def decode(image: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(_decode(image, channels), [None, None, channels])

    return Source(
        name='memory',
        num_classes=None,
        class_names=None,
        num_examples=lambda split: examples,
        examples=lambda split: dataset,
        decode=decode,
    )


def _decode(image: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.io.decode_image(image, channels=channels, expand_animations=False)


# --- streams


def ours(
    source: Source, size: int, batch_size: int, *, blur: bool, finished: bool = True
) -> tf.data.Dataset:
    """The program's own batches."""
    return train_batches(
        source,
        DataConfig(image_size=size, use_blur=blur),
        split='train',
        views=CONTRAST,
        batch_size=batch_size,
        seed=1,
        finished=finished,
    )


def plain(
    encoded: tf.Tensor, channels: int, size: int, batch_size: int, *, blur: bool
) -> tf.data.Dataset:
    """Batches of two views, made with tf.image."""

    def views(encoded_image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.convert_image_dtype(_decode(encoded_image, channels), tf.float32)
        if channels == 1:
            image = tf.image.grayscale_to_rgb(image)
        return _plain_view(image, size, blur), _plain_view(image, size, blur)

    dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat()
    dataset = dataset.map(views, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2)


def _plain_view(image: tf.Tensor, size: int, blur: bool) -> tf.Tensor:
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    view = tf.image.resize(tf.slice(image, begin, extent), [size, size], 'bicubic')
    view = tf.image.random_flip_left_right(tf.ensure_shape(view, [size, size, 3]))
    view = _with_probability(0.8, _plain_jitter, view)
    view = _with_probability(0.2, _plain_gray, view)
    if blur:
        view = _with_probability(0.5, _plain_blur, view)
    return tf.clip_by_value(view, 0.0, 1.0)


def _with_probability(
    probability: float, change: Callable[[tf.Tensor], tf.Tensor], view: tf.Tensor
) -> tf.Tensor:
    return tf.cond(tf.random.uniform([]) < probability, lambda: change(view), lambda: view)


def _plain_jitter(view: tf.Tensor) -> tf.Tensor:
    order = tf.random.shuffle(tf.range(4))
    operations = (
        lambda image: image * tf.random.uniform([], 0.2, 1.8),
        lambda image: tf.image.random_contrast(image, 0.2, 1.8),
        lambda image: tf.image.random_saturation(image, 0.2, 1.8),
        lambda image: tf.image.random_hue(image, 0.2),
    )
    for turn in range(4):
        branches = [lambda image=view, apply=apply: apply(image) for apply in operations]
        view = tf.clip_by_value(tf.switch_case(order[turn], branches), 0.0, 1.0)
    return view


def _plain_gray(view: tf.Tensor) -> tf.Tensor:
    return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(view))


def _plain_blur(view: tf.Tensor) -> tf.Tensor:
    radius = view.shape[0] // 20
    place = tf.range(-radius, radius + 1, dtype=tf.float32)
    taps = tf.exp(-(place**2) / (2 * tf.random.uniform([], *_SIGMA) ** 2))
    taps = tf.tile((taps / tf.reduce_sum(taps))[:, tf.newaxis, tf.newaxis], [1, 3, 1])
    for axis in (0, 1):
        kernel = tf.expand_dims(taps, 1 - axis)
        view = tf.nn.depthwise_conv2d(view[tf.newaxis], kernel, [1, 1, 1, 1], 'SAME')[0]
    return view


def decoding(encoded: tf.Tensor, batch_size: int, threads: int | None) -> tf.data.Dataset:
    """Only full decoding; keeps one pixel of each image."""
    dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat()
    dataset = dataset.map(
        lambda image: _decode(image, 3)[0, 0],
        num_parallel_calls=threads or tf.data.AUTOTUNE,
    )
    options = tf.data.Options()
    if threads:
        options.threading.private_threadpool_size = threads
    return dataset.batch(batch_size).prefetch(2).with_options(options)


def streams(images: int, batch_size: int, view: int = VIEW) -> dict[str, tf.data.Dataset]:
    """Everything that is measured, by name.

    Args:
        images: number of different images of each kind.
        batch_size: images per batch.
        view: pixels of the large images' views.
    """
    large, small = large_images(images), small_images(images)
    examples = max(images, 8 * batch_size)
    source, small_source = (
        memory_source(encoded, examples, channels) for encoded, channels in ((large, 3), (small, 1))
    )
    size = SMALL[0]
    return {
        'decode_1_thread': decoding(large, batch_size, 1),
        'decode_peak': decoding(large, batch_size, None),
        f'ours_{view}_cropped': ours(source, view, batch_size, blur=False, finished=False),
        f'ours_{view}': ours(source, view, batch_size, blur=False),
        f'plain_{view}': plain(large, 3, view, batch_size, blur=False),
        f'ours_{view}_blur': ours(source, view, batch_size, blur=True),
        f'plain_{view}_blur': plain(large, 3, view, batch_size, blur=True),
        f'ours_{size}': ours(small_source, size, batch_size, blur=False),
        f'plain_{size}': plain(small, 1, size, batch_size, blur=False),
    }


# --- measurement


def rates(dataset: tf.data.Dataset, batch_size: int, seconds: float) -> tuple[float, float]:
    """Images per second of wall-clock and of processor time, over at least `seconds`."""
    iterator = iter(dataset)
    for _ in range(WARM_UP):
        next(iterator)
    started, worked, images = time.perf_counter(), time.process_time(), 0
    while not images or time.perf_counter() - started < seconds:
        next(iterator)
        images += batch_size
    return images / (time.perf_counter() - started), images / (time.process_time() - worked)


def measure(
    datasets: Mapping[str, tf.data.Dataset], batch_size: int, seconds: float, turns: int
) -> dict[str, float]:
    """Measures the median rates of all streams, in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in datasets}
    for _ in range(turns):
        for name, dataset in datasets.items():
            found[name].append(rates(dataset, batch_size, seconds))
    result = {}
    for name, pairs in found.items():
        wall, processor = zip(*pairs, strict=True)
        result[name + _WALL] = statistics.median(wall)
        result[name + _PROCESSOR] = statistics.median(processor)
    return result


def rows(runs: Sequence[Mapping[str, float]]) -> str:
    """Markdown tables of several runs: medians and ranges, ratios to plain and to the peak."""
    lines = [
        '| | images/s | × plain | share of decode peak | images per processor second | × plain '
        '| share of decode peak |',
        f'|{" --- |" * 7}',
    ]
    for name in (key.removesuffix(_WALL) for key in runs[0] if key.endswith(_WALL)):
        cells = [name.replace('_', ' ')]
        # Small images are not JPEGs.
        peak = '' if str(SMALL[0]) in name.split('_') else 'decode_peak'
        for unit in (_WALL, _PROCESSOR):
            cells.append(spread([run[name + unit] for run in runs]))
            cells += [_ratio(runs, name, other, unit) for other in (_plain_of(name), peak)]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, '', *_profile(runs)])


def _profile(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """Lines of a Markdown table: processor time of a large image by stage."""
    view = next(key for key in runs[0] if key.endswith('_cropped' + _WALL)).split('_')[1]
    whole = f'ours_{view}'
    stages = {
        'decoding': ('decode_peak', None),
        'reading in random order, two boxes, two bicubic crops': (
            f'{whole}_cropped',
            'decode_peak',
        ),
        'flip and color of both views': (whole, f'{whole}_cropped'),
        'blur of half of the views': (f'{whole}_blur', whole),
    }
    lines = [
        f'| of one image to two views of {view} px | processor milliseconds |',
        '| --- | --- |',
    ]
    for what, (until, before) in stages.items():
        times = [_milliseconds(run, until) - _milliseconds(run, before) for run in runs]
        lines.append(f'| {what} | {spread(times)} |')
    return lines


def _milliseconds(run: Mapping[str, float], name: str | None) -> float:
    """Processor time per image of stream `name`; 0 for None."""
    return 1000 / run[name + _PROCESSOR] if name else 0.0


def _plain_of(name: str) -> str:
    """The plain stream that does the same as `name`; '' if there is none."""
    finished = name.startswith('ours') and not name.endswith('cropped')
    return name.replace('ours', 'plain') if finished else ''


def _ratio(runs: Sequence[Mapping[str, float]], name: str, other: str, unit: str) -> str:
    """The ratios of two streams, run by run; '' if there is no other stream."""
    if not other or name == other:
        return ''
    return spread([run[name + unit] / run[other + unit] for run in runs])


def main(arguments: Sequence[str]) -> int:
    """Measures and prints one JSON object; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.speed.inputs',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--images', type=int, default=64, help='different images of each kind')
    parser.add_argument('--batch_size', type=int, default=64)
    parser.add_argument('--view', type=int, default=VIEW, help="pixels of large images' views")
    parser.add_argument('--seconds', type=float, default=5.0, help='of each measurement')
    parser.add_argument('--turns', type=int, default=5, help='measurements of each stream')
    given = parser.parse_args(arguments)
    datasets = streams(given.images, given.batch_size, given.view)
    print(json.dumps(measure(datasets, given.batch_size, given.seconds, given.turns)))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
