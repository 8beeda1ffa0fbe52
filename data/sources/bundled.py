"""The small data set that ships with the project, in TFDS's on-disk format."""

from __future__ import annotations

import pathlib

from common.errors import UserError, one_line
from data.config import DataConfig
from data.names import unreadable
from data.sources.source import Source
from data.sources.tfds import source_of_builder

FOLDER = pathlib.Path(__file__).parents[1] / 'bundled' / 'fashion_mnist_small' / '1.0.0'


def open_bundled(config: DataConfig) -> Source:
    """Opens 6,000 training and 1,000 test images of Fashion-MNIST (28 x 28, gray, 10 classes).

    Args:
        config: `data_dir` must be unset.

    Returns:
        The source.

    Raises:
        UserError: if a `data_dir` is given, or the files are not there.
    """
    import tensorflow_datasets as tfds

    if config.data_dir:
        raise UserError(
            '--data_dir cannot be used with the bundled data set, which comes with the project; '
            f'found {config.data_dir!r}. Give --dataset=image_folder too, or leave --data_dir out.'
        )
    try:
        builder = tfds.builder_from_directory(str(FOLDER))
    except unreadable() as error:
        raise UserError(
            f'The bundled data set must be in {FOLDER}, but cannot be read there; '
            f'restore the folder from the repository. Cause: {one_line(error)}'
        ) from error
    return source_of_builder('bundled', builder, config)
