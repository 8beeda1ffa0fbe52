"""Files that appear whole or not at all, on any file system TensorFlow knows."""

from __future__ import annotations

import uuid

import tensorflow as tf


def write_text(path: str, text: str) -> None:
    """Writes `text` to `path`; whoever reads meanwhile sees the old file or the new one."""
    partial = f'{path}.{uuid.uuid4().hex}.partial'
    with tf.io.gfile.GFile(partial, 'w') as file:
        file.write(text)
    tf.io.gfile.rename(partial, path, overwrite=True)
