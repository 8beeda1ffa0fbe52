"""Opens data sets: those in `SOURCES`, and any in TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
import re

from common.errors import UserError
from common.registry import load
from data.config import DataConfig
from data.names import SOURCES, check_is_utf8, find_builder, source_for
from data.sources.source import NO_LABEL, Source
from data.sources.tfds import open_tfds

__all__ = ['DEFAULT_SOURCE', 'NO_LABEL', 'Source', 'open_source']

DEFAULT_SOURCE = 'bundled'


def open_source(config: DataConfig) -> Source:
    """Opens the data set that `config` names; `bundled` if it names none.

    Args:
        config: `dataset` and `data_dir` are read.

    Returns:
        The source.

    Raises:
        UserError: if there is no such data set or it cannot be read.
    """
    name = DEFAULT_SOURCE if config.dataset is None else config.dataset
    if not name:
        raise UserError(f'--dataset must be a name; found {name!r}. See python run.py --help.')
    config = dataclasses.replace(config, dataset=name)
    if name in SOURCES:
        return load(SOURCES[source_for(name, config.data_dir)])(config)
    check_is_utf8(config.data_dir)
    return open_tfds(config)


def is_here(config: DataConfig) -> bool:
    """Whether `open_source` only reads: it neither downloads nor prepares a data set, nor its code.

    Args:
        config: `dataset` and `data_dir` are read.

    Raises:
        UserError: if there is no such data set.
    """
    name = config.dataset or DEFAULT_SOURCE
    if name in SOURCES:
        return True
    # A name with a namespace refers to code that TFDS downloads.
    fetched = re.match(r'[^/:]+:\D', name) is not None
    return not fetched and find_builder(name, config.data_dir).is_prepared()
