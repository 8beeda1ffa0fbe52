"""Small pictures of images that a file of embeddings names."""

from __future__ import annotations

import io
import os
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from app.config.schema import Config
from common.errors import UserError
from data.config import OWN_IMAGES
from data.image_files import NotAnImageError, decode_by_pillow
from data.images import to_rgb
from data.names import folders_of
from data.sources import is_here, open_source
from data.sources.source import Source

_SLICE = re.compile(r'[\w.-]+\[\d+:\d+\]')  # a name of an example that is not a file
LARGEST = 256  # height and width, in pixels


class Pictures:
    """Finds images by the names that --mode=embed gave them.

    Args:
        config: `data` says where they are.
        trusted: whether the command line names the data set; one that only the embeddings name is
            not downloaded.
    """

    def __init__(self, config: Config, *, trusted: bool) -> None:
        self._config, self._trusted = config.data, trusted
        self._source: Source | None = None

    def of_file(self, path: str) -> bytes | None:
        """The image file `path` as a small JPEG file; None if there is no image."""
        try:
            # TensorFlow's reader takes no name that is not UTF-8.
            is_remote = '://' in path
            with tf.io.gfile.GFile(path, 'rb') if is_remote else open(path, 'rb') as file:
                content = file.read()
            return _encoded(decode_by_pillow(content, self._config.max_pixels))
        except (OSError, tf.errors.OpError, NotAnImageError):
            return None

    def of(self, name: str) -> bytes | None:
        """The image called `name` as a small JPEG file; None if it is no longer there."""
        if self._config.dataset in OWN_IMAGES:
            for path in self._paths(name):
                picture = self.of_file(path)
                if picture is not None:
                    return picture
        return self._from_source(name) if _SLICE.fullmatch(name) else None

    def _paths(self, name: str) -> list[str]:
        """Where the file may be: below a folder of the data set, or beside a list of files."""
        places = folders_of(self._config.data_dir)
        folders = [os.path.dirname(place) if os.path.isfile(place) else place for place in places]
        spelled = dict.fromkeys([name, os.fsdecode(_with_bytes(name))])
        return [os.path.join(folder, text) for folder in folders or [''] for text in spelled]

    def _from_source(self, split: str) -> bytes | None:
        """The only example of `split`, a slice."""
        try:
            if self._source is None:
                if not self._trusted and not is_here(self._config):
                    return None
                self._source = open_source(self._config)
            source = self._source
            example = next(iter(source.examples(split)), None)
            if example is None:
                return None
            image = to_rgb(source.decode(example['image']), source.image_range or '0..1', split)
        except (UserError, tf.errors.OpError):
            return None
        return _encoded(image.numpy())


def _with_bytes(name: str) -> bytes:
    r"""The bytes of a name in which those that are not UTF-8 are escaped, as \xNN."""
    text = name.encode('utf-8')
    return re.sub(rb'\\x([0-9a-f]{2})', lambda match: bytes.fromhex(match[1].decode()), text)


def _encoded(image: np.ndarray) -> bytes:
    """[h, w, 3] uint8, uint16 or float in [0, 1], as a JPEG file of at most `LARGEST` pixels."""
    if image.dtype == np.uint16:
        image = image // 257
    elif image.dtype != np.uint8:
        image = np.rint(255 * image)
    picture = Image.fromarray(np.asarray(image, np.uint8))
    picture.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=85)
    return file.getvalue()
