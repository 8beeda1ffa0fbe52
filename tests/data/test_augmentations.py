from __future__ import annotations

import colorsys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.views import op
from data.augmentations import AUGMENTATIONS, apply_op, blur, color
from data.augmentations.eval_crop import eval_crop
from data.augmentations.flip import random_flip
from data.augmentations.gray import random_gray
from data.augmentations.random_crop import random_crop
from data.augmentations.solarize import random_solarize
from data.config import DataConfig
from data.randomness import uniform

DRAWS = 20_000


def seeds_of(count: int, run: int = 5) -> tf.Tensor:
    return tf.stack([tf.fill([count], run), tf.range(count)], axis=-1)


def photo(*shape: int, seed: int = 3) -> tf.Tensor:
    return tf.constant(np.random.RandomState(seed).rand(*shape).astype(np.float32))


def assert_same_distribution(draws: np.ndarray, levels: np.ndarray, quantiles: np.ndarray) -> None:
    """Both samples have 20,000 draws. At level p their shares differ by a standard deviation of
    sqrt(2 p (1 - p) / n); five of them are allowed, and ten draws at the extremes."""
    tolerance = 5 * np.sqrt(2 * levels * (1 - levels) / DRAWS) + 10 / DRAWS
    # A value can be taken by many draws: the level has to lie between below and not above.
    below = np.array([(draws < quantile - 1e-5).mean() for quantile in quantiles])
    not_above = np.array([(draws <= quantile + 1e-5).mean() for quantile in quantiles])
    assert (below - tolerance <= levels).all(), (levels, below)
    assert (levels <= not_above + tolerance).all(), (levels, not_above)


# --- evaluation view


@pytest.mark.parametrize('case', range(5))
def test_eval_crop_meets_the_published_program(golden, case):
    image = tf.cast(golden[f'eval{case}_image'], tf.float32) / 255
    view = eval_crop(image, size=int(golden[f'eval{case}_size']))
    stride = int(golden[f'eval{case}_stride'])
    np.testing.assert_allclose(
        view[::stride, ::stride], golden[f'eval{case}_output_strided'], atol=2e-6
    )


def test_small_views_show_the_whole_image():
    image = tf.concat([tf.ones([40, 4, 3]), tf.zeros([40, 36, 3])], axis=1)
    assert eval_crop(image, size=20)[10, 0, 0] > 0.9  # 10% of the width
    # The larger view leaves out 6.25% on each side: of the white stripe 1.5 pixels are left.
    large = eval_crop(image, size=35)
    assert large[10, 0, 0] > 0.9
    assert large[10, 3, 0] < 0.1


# --- random crop


def crops(image: tf.Tensor, count: int, size: int, min_area: float) -> np.ndarray:
    def crop(seed: tf.Tensor) -> tf.Tensor:
        return random_crop(image, seed, size=size, area=(min_area, 1.0))

    dataset = tf.data.Dataset.from_tensor_slices(seeds_of(count))
    batches = dataset.map(crop, num_parallel_calls=2).batch(1000)
    return np.concatenate([batch.numpy() for batch in batches])


def test_crop_meets_the_published_distribution(golden):
    height, width = (int(length) for length in golden['crop_source_size'])
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([rows / height, columns / width, 0 * rows], axis=-1)
    size = int(golden['crop_output_size'])
    views = crops(tf.constant(image), DRAWS, size, 0.08)
    top, left = views[:, 0, 0, 0], views[:, 0, 0, 1]
    spans = {
        'height_fraction': views[:, -1, 0, 0] - top,
        'width_fraction': views[:, 0, -1, 1] - left,
    }
    spans['area_fraction'] = spans['height_fraction'] * spans['width_fraction']
    spans['aspect'] = spans['width_fraction'] * width / (spans['height_fraction'] * height)
    for name, draws in {**spans, 'top': top, 'left': left}.items():
        levels, quantiles = golden['quantile_levels'], golden[f'crop_quantiles_{name}']
        # The coordinates of box corners are whole pixels, blurred by up to 1e-3 at the borders.
        assert_same_distribution(draws, levels, quantiles)


@pytest.mark.parametrize('min_area', [0.02, 0.5, 1.0])
def test_crop_heeds_the_smallest_area(min_area):
    columns = np.tile(np.arange(60, dtype=np.float32) / 60, (60, 1))
    image = np.stack([columns.T, columns, columns], axis=-1)
    views = crops(tf.constant(image), 300, 30, min_area)
    spans = (views[:, -1, -1, :2] - views[:, 0, 0, :2]) * 30 / 29
    areas = spans.prod(axis=-1)
    assert areas.min() > min_area * 0.9
    assert areas.min() < min_area + 0.1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1000))
def test_crop_takes_the_smallest_images(height, width, size, seed):
    view = random_crop(photo(height, width, 3), tf.constant([seed, 1]), size=size, area=(0.08, 1.0))
    assert view.shape == [size, size, 3]
    assert 0 <= view.numpy().min() <= view.numpy().max() <= 1


# --- flip


def test_flip_mirrors_half_of_the_images():
    images = tf.tile(photo(1, 2, 3, 3), [4000, 1, 1, 1])
    views = random_flip(images, seeds_of(4000)).numpy()
    mirrored = (views == images[:, :, ::-1].numpy()).all(axis=(1, 2, 3))
    same = (views == images.numpy()).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


# --- color


@pytest.mark.parametrize('strength', [0.5, 1.0])
@pytest.mark.parametrize(('brightness', 'version'), [('multiply', 'v2'), ('add', 'v1')])
def test_color_meets_the_published_distribution(golden, strength, brightness, version):
    case = f'{strength}_simclr{version}'
    images = tf.tile(golden['jitter_image'][np.newaxis], [DRAWS, 1, 1, 1])
    views = color.distort_color(
        images, seeds_of(DRAWS), strength=strength, brightness=brightness
    ).numpy()
    quantiles = golden[f'jitter_quantiles_{case}']
    for place in np.ndindex(2, 2, 3):
        draws = views[(slice(None), *place)]
        assert_same_distribution(draws, golden['quantile_levels'], quantiles[(slice(None), *place)])
    error = 5 * golden[f'jitter_std_{case}'] * np.sqrt(2 / DRAWS)
    assert (np.abs(views.mean(axis=0) - golden[f'jitter_mean_{case}']) < error).all()
    np.testing.assert_allclose(views.std(axis=0), golden[f'jitter_std_{case}'], rtol=0.04)
    gray = np.ptp(views, axis=-1).max(axis=(1, 2)) < 1e-6
    assert abs(gray.mean() - golden[f'jitter_gray_fraction_{case}']) < 5 * np.sqrt(0.32 / DRAWS)


def test_gray_meets_the_published_program(golden):
    planes = tf.transpose(golden['blur0_image'], [2, 0, 1])
    np.testing.assert_allclose(
        tf.transpose(color.gray(planes), [1, 2, 0]), golden['gray_output'], atol=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 2), st.floats(-0.5, 0.5), st.integers(0, 1000))
def test_adjustments_equal_those_of_tf_image(factor, delta, seed):
    image = photo(4, 5, 3, seed=seed)
    planes = tf.transpose(image, [2, 0, 1])

    def ours(operation, amount):
        return tf.transpose(color._apply(operation, planes, tf.constant(amount)), [1, 2, 0])

    expected = tf.clip_by_value(tf.image.adjust_contrast(image, factor), 0, 1)
    np.testing.assert_allclose(ours(color._contrast, factor), expected, atol=2e-6)
    expected = tf.image.adjust_saturation(image, factor)
    np.testing.assert_allclose(ours(color._saturate, factor), expected, atol=1e-5)
    expected = tf.image.adjust_hue(image, delta)
    np.testing.assert_allclose(ours(color._turn_hue, delta), expected, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(0, 1, width=32)] * 3), st.floats(-0.5, 0.5))
def test_hue_turns_as_colorsys_says(pixel, delta):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    turned = color._turn_hue(tf.reshape(tf.constant(pixel), [3, 1, 1]), tf.constant(delta))
    expected = colorsys.hsv_to_rgb((hue + delta) % 1, saturation, value)
    np.testing.assert_allclose(turned[:, 0, 0], expected, atol=2e-6)


def test_saturation_leaves_black_white_and_gray_alone():
    planes = tf.constant([[[0.0, 0.4, 1.0]]] * 3)
    np.testing.assert_allclose(color._saturate(planes, tf.constant(1.8)), planes, atol=1e-7)


def test_every_order_of_the_jitter_comes_up():
    orders = tf.argsort(color.uniform(seeds_of(4800), 4, 'jitter order'), axis=-1).numpy()
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    # Chi-squared with 23 degrees of freedom exceeds 53 once in 2,000 times.
    assert ((counts - 200) ** 2 / 200).sum() < 53


def test_strength_0_is_off():
    config = DataConfig(image_size=8, color_jitter_strength=0)
    images = photo(50, 8, 8, 3)
    views = apply_op(op('color'), images, seeds_of(50), config=config, size=8)
    np.testing.assert_array_equal(views, images)


# --- blur


@pytest.mark.parametrize('case', range(3))
def test_blur_meets_the_published_program(golden, case):
    blurred = blur.gaussian_blur(
        tf.constant(golden[f'blur{case}_image'])[tf.newaxis],
        tf.constant([golden[f'blur{case}_sigma']]),
        kernel_size=int(golden[f'blur{case}_kernel_size']),
    )
    np.testing.assert_allclose(blurred[0], golden[f'blur{case}_output'], atol=2e-6)


def test_blur_equals_a_plain_loop_on_oblong_images():
    image, sigma, radius = photo(5, 9, 3).numpy(), 1.3, 3
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)))
    expected = np.zeros_like(image)
    for row, column in np.ndindex(5, 9):
        window = padded[row : row + 2 * radius + 1, column : column + 2 * radius + 1]
        expected[row, column] = (kernel[..., np.newaxis] * window).sum(axis=(0, 1))
    blurred = blur.gaussian_blur(
        tf.constant(image[np.newaxis]), tf.constant([sigma]), kernel_size=7
    )
    np.testing.assert_allclose(blurred[0], expected, atol=1e-6)


def test_blur_takes_half_of_the_images_each_with_its_own_sigma():
    count = 4000
    images = np.zeros((count, 15, 15, 3), np.float32)
    images[:, 7, 7] = 1
    views = blur.random_blur(tf.constant(images), seeds_of(count), kernel_size=10).numpy()
    changed = (views != images).any(axis=(1, 2, 3))
    sigmas = 0.1 + 1.9 * blur.uniform(seeds_of(count), 2, 'blur').numpy()[:, 1]
    # A sigma near 0.1 blurs by less than a float32 shows; those are some 2% of the blurred.
    assert abs(changed.mean() - 0.5) < 5 * 0.5 / np.sqrt(count) + 0.02
    center = views[changed, 7, 7, 0]
    assert (np.diff(center[np.argsort(sigmas[changed])]) <= 1e-6).all()
    assert len(np.unique(center)) > 0.9 * changed.sum()


def test_views_below_20_pixels_are_not_blurred():
    images = photo(30, 19, 19, 3)
    views = apply_op(op('blur'), images, seeds_of(30), config=DataConfig(), size=19)
    np.testing.assert_array_equal(views, images)


# --- solarization


@pytest.mark.parametrize('probability', [0.0, 0.3, 1.0])
def test_solarization_inverts_bright_values_of_some_images(probability):
    images = photo(2000, 3, 3, 3)
    found = random_solarize(images, seeds_of(2000), threshold=0.6, probability=probability)
    chosen = uniform(seeds_of(2000), 1, 'solarize')[:, 0].numpy() < probability
    expected = images.numpy()
    for number in np.flatnonzero(chosen):  # slowly, value by value
        for place in np.ndindex(3, 3, 3):
            value = expected[number][place]
            expected[number][place] = 1 - value if value >= np.float32(0.6) else value
    np.testing.assert_array_equal(found, expected)
    assert abs(chosen.mean() - probability) < 5 * np.sqrt(0.25 / 2000)


# --- gray


def test_gray_alone_is_the_gray_of_the_color_distortion():
    images, seeds = photo(200, 3, 4, 3), seeds_of(200)
    found = random_gray(images, seeds, probability=0.3)
    expected = color.distort_color(
        images, seeds, strength=1.0, probability=0.0, gray_probability=0.3
    )
    np.testing.assert_array_equal(found, expected)
    changed = (found.numpy() != images.numpy()).any((1, 2, 3))
    assert 0.15 < changed.mean() < 0.45
    off = apply_op(
        op('gray', probability=1.0),
        images,
        seeds,
        config=DataConfig(color_jitter_strength=0.0),
        size=4,
    )
    np.testing.assert_array_equal(off, images)


# --- all of them: eagerly, in a graph, in tf.data and batched


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_op_is_the_same_eagerly_in_a_graph_and_in_tf_data(name):
    config = DataConfig(image_size=24)
    images, seeds = photo(12, 24, 24, 3), seeds_of(12)

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return apply_op(op(name), image, seed, config=config, size=config.image_size)

    eager = [apply(image, seed) for image, seed in zip(images, seeds, strict=True)]
    in_graph = tf.function(apply)
    graph = [in_graph(image, seed) for image, seed in zip(images, seeds, strict=True)]
    dataset = tf.data.Dataset.from_tensor_slices((images, seeds)).map(apply)
    assert dataset.element_spec == tf.TensorSpec([24, 24, 3], tf.float32)
    # The graph may fuse or reorder sums: the last bits differ.
    np.testing.assert_allclose(graph, eager, atol=1e-5)
    np.testing.assert_allclose(list(dataset), eager, atol=1e-5)
    assert 0 <= np.min(eager) <= np.max(eager) <= 1
    again = [apply(image, seed) for image, seed in zip(images[:4], seeds[:4], strict=True)]
    np.testing.assert_array_equal(again, eager[:4])
    if name != 'eval_crop':
        others = [apply(image, seed) for image, seed in zip(images, seeds_of(12, 6), strict=True)]
        assert not np.array_equal(others, eager)


@pytest.mark.parametrize(
    'name', [name for name, entry in AUGMENTATIONS.items() if entry.takes_batches]
)
def test_a_batch_is_the_stack_of_its_images(name):
    config = DataConfig(image_size=24)
    images, seeds = photo(8, 24, 24, 3), seeds_of(8)

    def apply(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return apply_op(op(name), images, seeds, config=config, size=24)

    batch = apply(images, seeds)
    single = [apply(image, seed) for image, seed in zip(images, seeds, strict=True)]
    # Compiled, one by one for the processor and at once for a device.
    each = tf.function(
        lambda: tf.map_fn(
            lambda pair: apply(*pair), (images, seeds), fn_output_signature=tf.float32
        ),
        jit_compile=True,
    )()
    at_once = tf.function(lambda: apply(images, seeds), jit_compile=True)()
    assert batch.shape == at_once.shape == [8, 24, 24, 3]
    for other in (single, each, at_once):
        np.testing.assert_allclose(batch, other, atol=2e-6)
    assert not np.array_equal(batch, images)
