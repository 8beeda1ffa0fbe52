"""Small data sets, in memory and on disk."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data.sources.source import Source


@pytest.fixture(scope='session')
def golden() -> dict[str, np.ndarray]:
    path = pathlib.Path(__file__).parents[1] / 'golden' / 'augmentation.npz'
    with np.load(path) as figures:
        return dict(figures)


@pytest.fixture(scope='session')
def memory_source() -> Callable[..., Source]:
    """Makes a source of random PNG images; image i has the label i."""

    def make(count: int, height: int = 12, width: int = 10, images: Any = None) -> Source:
        if images is None:
            rng = np.random.RandomState(0)
            images = rng.randint(0, 256, (count, height, width, 3)).astype(np.uint8)
        encoded = [tf.io.encode_png(image).numpy() for image in images]

        def examples(split: str) -> tf.data.Dataset:
            del split
            return tf.data.Dataset.from_tensor_slices(
                {'image': tf.constant(encoded), 'label': tf.range(count)}
            )

        return Source(
            name='memory',
            num_classes=count,
            class_names=None,
            num_examples=lambda split: count,
            examples=examples,
            decode=lambda image: tf.io.decode_png(image, channels=3),
        )

    return make


@pytest.fixture(scope='session')
def write_builder(tmp_path_factory) -> Callable[..., pathlib.Path]:
    """Writes arrays as a TFDS data set with an unregistered name; returns its data_dir."""

    def write(
        name: str,
        features: dict,
        splits: dict[str, list[dict]],
        *,
        disable_shuffling: bool = True,
        **info,
    ) -> pathlib.Path:
        data_dir = tmp_path_factory.mktemp('tfds')
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version='1.0.0',
            data_dir=data_dir,
            features=tfds.features.FeaturesDict(features),
            split_datasets={split: _stack(examples) for split, examples in splits.items()},
            disable_shuffling=disable_shuffling,
            **info,
        )
        return data_dir

    def _stack(examples: list[dict]) -> tf.data.Dataset:
        stacked = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        return tf.data.Dataset.from_tensor_slices(stacked)

    return write
