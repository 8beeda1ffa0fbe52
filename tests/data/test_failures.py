"""A bad image gives a one-line error that says what to do."""

from __future__ import annotations

import os
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.views import SUPERVISED
from data.batches import decode_for_evaluation, eval_batches, sample_views, train_batches
from data.config import DataConfig
from data.failures import as_user_errors, explain
from data.sources import open_source

SIDE = 10_000


def png(height: int, width: int) -> bytes:
    """All black, one bit a pixel: 12 kB for 10,000 x 10,000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    )


def jpeg(height: int, width: int) -> bytes:
    small = tf.io.encode_jpeg(np.zeros([8, 8, 3], np.uint8)).numpy()
    place = small.index(b'\xff\xc0') + 5
    return small[:place] + struct.pack('>HH', height, width) + small[place + 4 :]


def gif(height: int, width: int) -> bytes:
    size = struct.pack('<HH', width, height)
    picture = b',\0\0\0\0' + size + b'\0\x02\x02D\x01\0;'
    return b'GIF89a' + size + b'\x80\0\0\0\0\0\xff\xff\xff' + picture


def bmp(height: int, width: int) -> bytes:
    return struct.pack('<2sIIIIiiHHIIIIII', b'BM', 58, 0, 54, 40, width, -height, 1, 24, *[0] * 6)


def in_folder(folder: pathlib.Path, content: bytes) -> DataConfig:
    """Settings of a data set with four images, one of them `content`."""
    (folder / 'train').mkdir(parents=True)
    for number in range(4):
        good = tf.io.encode_png(np.full([9, 9, 3], number, np.uint8)).numpy()
        (folder / 'train' / f'{number}.png').write_bytes(good if number else content)
    return DataConfig(
        dataset='image_folder',
        data_dir=str(folder),
        image_size=8,
        holdout_fraction=0.0,
        max_bad_fraction=0.0,
    )


def read_all(config: DataConfig, how: str) -> None:
    source = open_source(config)
    with as_user_errors(source):
        if how == 'train':
            batches = train_batches(
                source, config, split='train', views=SUPERVISED, batch_size=4, seed=0
            )
            next(iter(batches))
        elif how == 'eval':
            list(eval_batches(source, config, split='train', batch_size=2))
        else:
            sample_views(source, config, split='train', views=SUPERVISED, count=4, seed=0)


@pytest.mark.parametrize(
    ('write', 'how'),
    [(png, 'eval'), (jpeg, 'eval'), (gif, 'samples'), (bmp, 'samples'), (jpeg, 'train')],
)
def test_a_huge_image_is_refused_by_its_header(tmp_path, write, how):
    """Small files that claim many pixels, in every format, wherever images are decoded."""
    content = write(SIDE, SIDE + 1)
    assert len(content) < 20_000
    with pytest.raises(UserError, match='of the 4 images') as error:
        read_all(in_folder(tmp_path, content), how)
    message = str(error.value)
    assert '\n' not in message
    assert f'{tmp_path}/train/0.png (it has 100,010,000 pixels' in message


@pytest.mark.parametrize(('most', 'passes'), [(80, False), (81, True), (0, True)])
def test_the_limit_is_a_number_of_pixels(most, passes):
    """9 x 9 of them, in the signature of an exported module too."""
    content = tf.io.encode_png(np.zeros([9, 9, 3], np.uint8))
    config = DataConfig(image_size=8, max_pixels=most)
    if passes:
        assert decode_for_evaluation(content, config).shape == [8, 8, 3]
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match='max_pixels'):
        decode_for_evaluation(content, config)


def test_every_format_that_can_be_decoded_passes():
    config = DataConfig(image_size=8)
    files = [png(9, 7), gif(1, 1), tf.io.encode_jpeg(np.zeros([9, 7, 3], np.uint8)).numpy()]
    for content in files:
        assert decode_for_evaluation(tf.constant(content), config).shape == [8, 8, 3]


@pytest.mark.parametrize('content', [b'', b'text', png(9, 9)[:40], b'\xff\xd8\xff\xe0'])
def test_a_file_that_is_not_an_image_is_one_line(tmp_path, content):
    """Empty, of another kind, cut off, damaged."""
    with pytest.raises(UserError, match=r'train/0.png \(it') as error:
        read_all(in_folder(tmp_path, content), 'eval' if content else 'train')
    assert '\n' not in str(error.value)
    assert '{{' not in str(error.value)


def test_an_image_is_named_whatever_its_name_is(tmp_path):
    config = in_folder(tmp_path, png(SIDE, SIDE))
    name = b'] [caf\xe9\n"\'.png'
    os.rename(tmp_path / 'train' / '0.png', os.path.join(os.fsencode(tmp_path / 'train'), name))
    with pytest.raises(UserError, match=re.escape('caf\\xe9\\n"\'.png (it has')) as error:
        read_all(config, 'eval')
    assert '\n' not in str(error.value)


def test_a_file_that_is_gone_is_named_whatever_its_name_is(tmp_path):
    config = in_folder(tmp_path, png(9, 9))
    name = os.path.join(os.fsencode(tmp_path / 'train'), b'caf\xe9.png')
    os.rename(tmp_path / 'train' / '0.png', name)
    source = open_source(config)
    os.remove(name)
    with (
        pytest.raises(UserError, match=r'caf\\xe9.png \(it cannot be read'),
        as_user_errors(source),
    ):
        list(eval_batches(source, config, split='train', batch_size=2))


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (tf.errors.NotFoundError(None, None, 'a.jpg; No such\nfile'), 'one can no longer be read'),
        (tf.errors.PermissionDeniedError(None, None, 'a.jpg'), 'one can no longer be read'),
        (tf.errors.InvalidArgumentError(None, None, 'shapes [2] and [3] of a.jpg'), None),
        (tf.errors.InternalError(None, None, 'a.jpg'), None),
    ],
)
def test_only_what_a_user_can_fix_is_explained(memory_source, error, words):
    line = explain(error, memory_source(1))
    assert (line is None) == (words is None)
    if words:
        assert words in line and 'a.jpg' in line and '\n' not in line
