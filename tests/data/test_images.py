from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError, line_within
from data.images import resize, to_rgb, to_unit_range


def test_gray_is_repeated_and_alpha_dropped():
    gray = np.array([[[10], [20]]], np.uint8)
    assert to_rgb(tf.constant(gray)).shape == [1, 2, 3]
    np.testing.assert_array_equal(to_rgb(gray[..., 0])[0, :, 2], [10, 20])
    gray_alpha = np.concatenate([gray, np.full_like(gray, 99)], axis=-1)
    np.testing.assert_array_equal(to_rgb(gray_alpha), to_rgb(gray))
    rgb = np.array([[[10, 20, 30]]], np.uint8)
    rgba = np.array([[[10, 20, 30, 0]]], np.uint8)
    np.testing.assert_array_equal(to_rgb(rgb), rgb)
    np.testing.assert_array_equal(to_rgb(rgba), to_rgb(rgb))


@pytest.mark.parametrize(
    ('dtype', 'stored', 'expected'),
    [
        (np.uint8, [0, 51, 255], [0, 0.2, 1]),
        (np.uint16, [0, 13107, 65535], [0, 0.2, 1]),
        (np.int32, [0, 51, 255], [0, 0.2, 1]),
        (np.float32, [0, 0.2, 1], [0, 0.2, 1]),
        (np.float64, [0, 0.2, 1], [0, 0.2, 1]),
        (np.bool_, [False, True, True], [0, 1, 1]),
    ],
)
def test_every_dtype_is_scaled_to_the_unit_range(dtype, stored, expected):
    image = to_unit_range(to_rgb(tf.constant(np.array([[stored]], dtype))))
    assert image.dtype == tf.float32
    np.testing.assert_allclose(image[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_channels_may_be_unknown_until_the_file_is_read(channels):
    image = np.random.RandomState(1).randint(0, 256, (3, 5, channels)).astype(np.uint8)
    unknown = tf.TensorSpec([None, None, None], tf.uint8)
    in_graph = tf.function(to_rgb, input_signature=[unknown])(image)
    np.testing.assert_array_equal(in_graph, to_rgb(image))
    assert in_graph.shape == [3, 5, 3]


def test_more_channels_are_refused_as_soon_as_they_are_known():
    unknown = tf.TensorSpec([None, None, None], tf.uint8)
    in_graph = tf.function(to_rgb, input_signature=[unknown])
    with pytest.raises(tf.errors.InvalidArgumentError) as failure:
        in_graph(np.zeros([2, 2, 5], np.uint8))
    assert 'must have 1 to 4 channels; one has 5.' in line_within(failure.value)


@pytest.mark.parametrize('shape', [(2, 2, 13), (4, 2, 2, 3), (2,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match='1 to 4 channels'):
        to_rgb(tf.zeros(shape))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_any_size_is_resized_to_any_size(height, width, size, seed):
    image = np.random.RandomState(seed).randint(0, 2, (height, width, 3)).astype(np.float32)
    resized = resize(tf.constant(image), size)
    assert resized.shape == [size, size, 3]
    assert resized.numpy().min() >= 0
    assert resized.numpy().max() <= 1
    np.testing.assert_allclose(resize(tf.ones([height, width, 3]), size), 1, atol=1e-5)
