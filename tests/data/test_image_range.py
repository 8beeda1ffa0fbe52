"""The range of floating-point images is that of the whole data set, not of each image."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from common.errors import UserError
from data.batches import eval_batches
from data.config import DataConfig
from data.failures import as_user_errors
from data.image_range import IMAGES_SAMPLED, find_range
from data.sources import open_source


def images_in(least: float, most: float, count: int = 4) -> np.ndarray:
    images = (
        np.random.RandomState(0)
        .uniform(least, np.nan_to_num(most), (count, 8, 8, 3))
        .astype(np.float32)
    )
    images[0, 0, 0] = least
    images[0, 0, 1] = most
    return images


@pytest.fixture
def opened(write_builder):
    """Writes float images as a data set and opens it."""

    def write(images: np.ndarray, **settings):
        features = {'image': tfds.features.Tensor(shape=(8, 8, 3), dtype=np.float32)}
        data_dir = write_builder('floats', features, {'train': [{'image': i} for i in images]})
        config = DataConfig(dataset='floats', data_dir=str(data_dir), image_size=8, **settings)
        return open_source(config), config

    return write


def views(source, config) -> np.ndarray:
    with as_user_errors(source):
        batches = list(eval_batches(source, config, split='train', batch_size=2))
    return np.concatenate([batch['views'][0] for batch in batches])


@pytest.mark.parametrize(
    ('name', 'least', 'most'), [('0..1', 0, 1), ('-1..1', -1, 1), ('0..255', 0, 255)]
)
def test_the_range_is_that_of_the_first_images(opened, name, least, most):
    images = images_in(least, most)
    images[1] = (least + most) / 2 if least < 0 else 0.5  # alone it looks like one of 0..1
    source, config = opened(images)
    assert source.image_range == name
    expected = (images - least) / (most - least)
    np.testing.assert_allclose(views(source, config), expected, atol=1e-5)
    source, config = opened(images[1:2], image_range=name)  # as a run that goes on has it
    np.testing.assert_allclose(views(source, config)[:1], expected[1:2], atol=1e-5)


@pytest.mark.parametrize(('least', 'most'), [(-2.1, 2.6), (0, 65_535), (-1, 255), (0, np.nan)])
def test_images_that_fit_no_range_are_refused(opened, least, most):
    """Normalized, 16-bit, mixed, not numbers."""
    with pytest.raises(UserError, match=r'must be in 0..1, -1..1, 0..255; found values') as error:
        opened(images_in(least, most))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('later', [-0.5, 3.0, np.nan])
def test_a_later_image_outside_of_the_range_is_an_error(opened, later):
    images = images_in(0, 1)
    images[3, 4, 4] = later
    source, config = opened(images, image_range='0..1')
    with pytest.raises(UserError, match='--image_range') as error:
        views(source, config)
    message = str(error.value)
    assert '\n' not in message
    assert 'must be in 0..1' in message and 'of floats has values from' in message


def test_rounding_is_clipped(opened):
    images = images_in(0, 1)
    images[3, 4, 4] = 1.0005
    source, config = opened(images)
    assert views(source, config).max() == 1


def test_a_bounded_number_of_images_is_looked_at():
    seen = []

    def image(number: tf.Tensor) -> tf.Tensor:
        return tf.py_function(
            lambda n: seen.append(int(n)) or tf.zeros([2, 2, 3]), [number], tf.float32
        )

    assert find_range('many', 'train', tf.data.Dataset.range(10_000).map(image)) == '0..1'
    assert len(seen) <= IMAGES_SAMPLED + 1


@pytest.mark.parametrize('dataset', ['bundled', 'image_folder'])
def test_integers_need_no_range(dataset, tmp_path):
    with pytest.raises(UserError, match='for floating-point images'):
        open_source(DataConfig(dataset=dataset, image_range='0..1'))
