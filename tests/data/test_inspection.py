"""What is said of a file is what becomes of it in training."""

from __future__ import annotations

import io
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common.errors import UserError
from data.batches import eval_batches
from data.config import DataConfig
from data.inspection import LOOK, Inspection, inspect, thumbnails
from data.sources import Source, open_source


def picture(width: int = 40, height: int = 24) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(), 'JPEG', exif=exif)


def chunk_broken() -> bytes:
    """A PNG file with a wrong checksum of its data."""
    content = bytearray(saved(picture(), 'PNG'))
    content[-20] ^= 255
    return bytes(content)


def transparent() -> Image.Image:
    image = picture()
    image.putalpha(128)
    return image


# Name of a file → contents, width, height, format.
SOUND = {
    'plain.jpg': (saved(picture(), 'JPEG'), 40, 24, 'JPEG'),
    'turned.jpg': (turned(), 24, 40, 'JPEG'),
    'inks.jpg': (saved(picture().convert('CMYK'), 'JPEG'), 40, 24, 'JPEG'),
    'plain.png': (saved(picture(), 'PNG'), 40, 24, 'PNG'),
    'alpha.png': (saved(transparent(), 'PNG'), 40, 24, 'PNG'),
    'one.png': (saved(picture(1, 1), 'PNG'), 1, 1, 'PNG'),
    'strip.png': (saved(picture(900, 3), 'PNG'), 900, 3, 'PNG'),
    'deep.png': (saved(Image.fromarray(np.eye(9, dtype=np.uint16)), 'PNG'), 9, 9, 'PNG'),
    'plain.webp': (saved(picture(), 'WEBP'), 40, 24, 'WebP'),
    'really.jpg': (saved(picture(), 'WEBP'), 40, 24, 'WebP'),
    'plain.tif': (saved(picture(), 'TIFF'), 40, 24, 'TIFF'),
    'plain.bmp': (saved(picture(), 'BMP'), 40, 24, 'BMP'),
    'plain.gif': (saved(picture(), 'GIF'), 40, 24, 'GIF'),
    'plain.ppm': (saved(picture(), 'PPM'), 40, 24, 'PPM'),
    'grey.pgm': (saved(picture().convert('L'), 'PPM'), 40, 24, 'PGM'),
    'plain.avif': (saved(picture(), 'AVIF'), 40, 24, 'AVIF'),
}
# Name of a file → contents, what its reason has.
DAMAGED = {
    'half.jpg': (saved(picture(), 'JPEG')[:-300], 'it is damaged ('),
    'half.png': (saved(picture(), 'PNG')[:100], 'it is damaged (image file is truncated'),
    'broken.png': (chunk_broken(), ''),
    'half.webp': (saved(picture(), 'WEBP')[:-100], 'it is damaged ('),
    'empty.jpg': (b'', 'it is empty'),
    'page.png': (b'<html>404</html>', 'it is a web page or other markup'),
    'large.png': (saved(Image.new('L', (200, 101)), 'PNG'), 'it has 20,200 pixels, more than'),
    'large.webp': (saved(Image.new('L', (200, 101)), 'WEBP'), 'it has 20,200 pixels, more than'),
}
FILES = {name: row[0] for name, row in {**SOUND, **DAMAGED}.items()}


def write(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def opened(folder: pathlib.Path) -> tuple[Source, DataConfig]:
    config = DataConfig(
        dataset='image_folder',
        data_dir=str(folder),
        holdout_fraction=0,
        max_pixels=20_000,
        max_bad_fraction=1.0,
    )
    return open_source(config), config


def inspected(folder: pathlib.Path) -> tuple[dict[str, int], Inspection, list[int]]:
    """Name → position, what was found, and what `advance` was called with."""
    steps: list[int] = []
    source, config = opened(folder)
    found = inspect(source, config, 'train', steps.append)
    names = source.identify('train', range(len(found)))
    return {os.path.basename(name): place for place, name in enumerate(names)}, found, steps


def test_every_file_is_counted_as_what_it_is(tmp_path: pathlib.Path) -> None:
    write(tmp_path / 'x', FILES)
    places, found, steps = inspected(tmp_path)
    assert places.keys() == FILES.keys() and sum(steps) == len(FILES) == len(found)
    for name, (content, width, height, kind) in SOUND.items():
        at = places[name]
        assert (found.widths[at], found.heights[at], found.formats[at]) == (width, height, kind)
        assert found.sizes[at] == len(content) and at not in found.reasons
    for name, (_, reason) in DAMAGED.items():
        assert found.reasons[places[name]].startswith(reason), name
        assert not found.usable[places[name]] and found.formats[places[name]] == ''
    assert found.usable.sum() == len(SOUND) and len(found.reasons) == len(DAMAGED)


def test_training_agrees_on_every_file(tmp_path: pathlib.Path) -> None:
    """What cannot be used is skipped where batches are made, and nothing else is."""
    write(tmp_path / 'x', FILES)
    places, found, _ = inspected(tmp_path)
    source, config = opened(tmp_path)
    (batch,) = eval_batches(source, config, split='train', batch_size=len(FILES))
    for name, at in places.items():
        assert batch['mask'][at].numpy() == found.usable[at] == (name in SOUND), name


def test_changed_bytes_are_judged_as_in_training(tmp_path: pathlib.Path) -> None:
    """Where TensorFlow and Pillow do not agree, training's decoder decides."""
    rng, files = np.random.default_rng(0), {}
    for name in ('plain.jpg', 'plain.png', 'plain.webp', 'plain.gif', 'plain.tif'):
        for number in range(12):
            content = bytearray(SOUND[name][0])
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            files[f'{number}{name}'] = bytes(content)
    write(tmp_path / 'x', files)
    places, found, _ = inspected(tmp_path)
    source, _ = opened(tmp_path)
    decode = tf.function(source.decode, input_signature=[tf.TensorSpec([], tf.string)])
    for name, content in files.items():
        try:
            shape = decode(content).shape[:2].as_list()
        except tf.errors.OpError:
            shape = [0, 0]
        at = places[name]
        assert shape == [found.heights[at], found.widths[at]]
        assert (at in found.reasons) == (shape == [0, 0])


def test_looks_and_contents(tmp_path: pathlib.Path) -> None:
    names = ('plain.png', 'plain.bmp', 'deep.png', 'plain.jpg')
    write(tmp_path / 'x', {**{n: FILES[n] for n in names}, 'again.png': FILES['plain.png']})
    places, found, _ = inspected(tmp_path)
    at = {name: found.looks[place].astype(int) for name, place in places.items()}
    reduced = np.asarray(picture(), np.float64).reshape(8, 3, 8, 5, 3).mean(axis=(1, 3))
    for name in ('plain.png', 'plain.bmp'):
        np.testing.assert_allclose(at[name].reshape(LOOK, LOOK, 3), reduced, atol=0.51)
    np.testing.assert_allclose(at['plain.jpg'], at['plain.png'], atol=8)
    hashes = {name: tuple(found.contents[place]) for name, place in places.items()}
    assert hashes['again.png'] == hashes['plain.png'] and len(set(hashes.values())) == 4


def test_a_file_that_cannot_be_opened_is_damaged(tmp_path: pathlib.Path) -> None:
    """It was there when the folder was listed."""
    write(tmp_path / 'x', {'a.png': FILES['plain.png'], 'b.png': FILES['plain.png']})
    source, config = opened(tmp_path)
    (tmp_path / 'x' / 'b.png').unlink()
    found = inspect(source, config, 'train', lambda count: None)
    gone = source.identify('train', range(2)).index('x/b.png')
    assert list(found.reasons) == [gone] and found.usable.sum() == 1
    assert 'it cannot be read (' in found.reasons[gone] and 'No such file' in found.reasons[gone]


def test_thumbnails_are_small_and_upright(tmp_path: pathlib.Path) -> None:
    write(
        tmp_path / 'x', {n: FILES[n] for n in ('turned.jpg', 'one.png', 'strip.png', 'alpha.png')}
    )
    source, config = opened(tmp_path)
    names = [os.path.basename(name) for name in source.identify('train', range(4))]
    found = {names[at]: small for at, small in thumbnails(source, config, 'train', range(4), 20)}
    shapes = {name: small.shape for name, small in found.items()}
    assert shapes == {
        'turned.jpg': (20, 12, 3),
        'one.png': (1, 1, 3),
        'strip.png': (1, 20, 3),
        'alpha.png': (12, 20, 3),
    }
    assert found['alpha.png'].min() >= 127 and found['alpha.png'].dtype == np.uint8
    assert [at for at, _ in thumbnails(source, config, 'train', [2], 20)] == [2]
    assert not list(thumbnails(source, config, 'train', [], 20))


def test_a_corrupt_record_is_told_as_in_training(tmp_path: pathlib.Path) -> None:
    """No image of the file can be trusted."""
    path = tmp_path / 'train.tfrecord'
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(3):
            content = tf.train.BytesList(value=[FILES['plain.png']])
            features = {'image': tf.train.Feature(bytes_list=content)}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    config = DataConfig(dataset='tfrecords', data_dir=str(path), holdout_fraction=0)
    assert inspect(open_source(config), config, 'train', lambda count: None).usable.all()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match='must hold whole records'):
        inspect(open_source(config), config, 'train', lambda count: None)
