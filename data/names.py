"""Names of data sets, looked up without TensorFlow, whose import takes seconds."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING

from settings import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

OWN = ('bundled', 'image_folder')  # of `data.sources.SOURCES`


def check_name(name: str, data_dir: str | None) -> None:
    """Raises UserError if there is no data set `name`, here or in TensorFlow Datasets."""
    if name in OWN:
        return
    import tensorflow_datasets as tfds

    if name.split('/')[0].split(':')[0] not in tfds.list_builders(with_community_datasets=False):
        find_builder(name, data_dir)


def find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The TFDS builder of `name`, 'name', 'name/config' or 'name/config:version'.

    Raises:
        UserError: if there is none, neither in the catalogue nor prepared in `data_dir`.
    """
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(data_dir) if data_dir else None
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UserError(_unknown_name(name, data_dir)) from None
    # TFDS reports unknown configurations and versions in several ways.
    except (ValueError, AssertionError, KeyError, TypeError, ImportError, OSError) as error:
        raise UserError(f'Cannot open data set {name!r}: {one_line(error)}') from error


def _unknown_name(name: str, data_dir: str | None) -> str:
    import tensorflow_datasets as tfds

    known = [*OWN, *tfds.list_builders(with_community_datasets=False)]
    close = difflib.get_close_matches(name.split('/')[0].split(':')[0].lower(), known, n=3)
    found = f'nor a prepared data set in {data_dir or "the default data_dir of TFDS"}'
    advice = f'Did you mean {", ".join(close)}?' if close else 'See the catalogue of TFDS.'
    own = ', '.join(OWN)
    return f'There is no data set {name!r}: neither {own}, nor a name in TFDS, {found}. {advice}'


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's message without line breaks, cut to `limit` characters."""
    words = ' '.join(str(error).split()) or type(error).__name__
    return words if len(words) <= limit else words[: limit - 3] + '...'
