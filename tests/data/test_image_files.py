from __future__ import annotations

import contextlib
import functools
import io
import os
import re

import numpy as np
import pillow_heif
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from data.batches import eval_batches
from data.config import DataConfig
from data.image_files import NotAnImageError, decode_anywhere, decode_by_pillow, decode_file
from data.sources import open_source

SIZE = (40, 24)  # width, height
STEP = 257.0 * 1.01  # one of 255, as 16-bit values say it


@functools.cache
def picture() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def heic(image: Image.Image, **options) -> bytes:
    """A HEIC file, without loss; without making Pillow know the format."""
    file = io.BytesIO()
    exact = {'quality': -1, 'chroma': 444, 'matrix_coefficients': 0}
    pillow_heif.from_pillow(image).save(file, **exact, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert('RGB'), np.float64) * 257


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def in_graph(content: tf.Tensor) -> tf.Tensor:
    return decode_file(content, max_pixels=10_000)


def transparent(mode: str) -> Image.Image:
    image = picture().convert(mode[:-1])
    image.putalpha(Image.fromarray(np.arange(960, dtype=np.uint32).reshape(24, 40).astype('u1')))
    return image


def laid_over_white(image: Image.Image | np.ndarray) -> np.ndarray:
    rgba = np.asarray(image.convert('RGBA') if isinstance(image, Image.Image) else image, float)
    share = rgba[..., 3:] / 255
    return 257 * (share * rgba[..., :3] + (1 - share) * 255)


def turned(orientation: int, byte_order: str = '<') -> Image.Exif:
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = 'A maker'  # so that the tag isn't the first one
    exif[0x0112] = orientation
    return exif


def with_exif(orientation: int, byte_order: str) -> bytes:
    return saved(picture(), 'JPEG', quality=95, exif=turned(orientation, byte_order))


BLACK_IS_ZERO, WHITE_IS_ZERO, IN_RGB = 1, 0, 2


def tiff(
    pixels: bytes, channels: int, photometric: int, *, bits: int = 8, extra=(), sample_format=1
) -> bytes:
    """An uncompressed TIFF file (TIFF 6.0) of SIZE.

    `extra` tells what channels beyond the colors are: 1 is associated alpha, 2 unassociated alpha,
    0 unspecified. `sample_format` is 1 for unsigned, 2 for signed, 3 for floating-point numbers.
    """
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    values = {256: SIZE[0], 257: SIZE[1], 258: (bits,) * channels, 259: 1, 262: photometric}
    values |= {273: 0, 277: channels, 278: SIZE[1], 279: len(pixels)}
    values |= {339: (sample_format,) * channels} | ({338: extra} if extra else {})
    for tag, value in values.items():
        tags[tag] = value
    return b'II*\0\x08\0\0\0' + tags.tobytes(8) + pixels  # `tobytes` adds to 273, the offset


def bands(channels: int, dtype: str = 'u1') -> np.ndarray:
    most = np.iinfo(dtype).max
    return np.random.RandomState(1).randint(0, most, (24, 40, channels)).astype(dtype)


def banded(channels: int, photometric: int, *extra: int) -> bytes:
    return tiff(bands(channels).tobytes(), channels, photometric, extra=extra)


def with_colors_times_alpha(channels: int) -> tuple[bytes, np.ndarray]:
    """A file whose last channel is associated alpha, and what it looks like over white."""
    image = bands(channels).astype(np.float64)
    colors, alpha = image[..., :-1], image[..., -1:]
    stored = np.concatenate([colors * alpha / 255, alpha], axis=-1).round().astype(np.uint8)
    seen = (stored[..., :-1] + 255.0 - alpha) * 257
    photometric = IN_RGB if channels == 4 else BLACK_IS_ZERO
    content = tiff(stored.tobytes(), channels, photometric, extra=(1,))
    return content, np.broadcast_to(seen, (24, 40, 3))


def of_twelve_bits() -> tuple[bytes, np.ndarray]:
    values = bands(1, 'u2') >> 4  # [24, 40, 1]
    first, second = values[:, ::2], values[:, 1::2]
    three = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    packed = np.concatenate(three, axis=-1).astype(np.uint8)  # [24, 20, 3]
    return tiff(packed.tobytes(), 1, BLACK_IS_ZERO, bits=12), values.repeat(3, -1) * (65535 / 4095)


def deep() -> np.ndarray:
    return np.arange(960, dtype=np.uint16).reshape(24, 40) * 68


SOUND = {
    'bits.png': (saved(picture().convert('1'), 'PNG'), pixels(picture().convert('1'))),
    'gray.png': (saved(picture().convert('L'), 'PNG'), pixels(picture().convert('L'))),
    'palette.png': (saved(picture().convert('P'), 'PNG'), pixels(picture().convert('P'))),
    'rgb.png': (saved(picture(), 'PNG'), pixels(picture())),
    'deep.png': (saved(Image.fromarray(deep()), 'PNG'), np.repeat(deep()[..., None], 3, -1)),
    'rgba.png': (saved(transparent('RGBA'), 'PNG'), laid_over_white(transparent('RGBA'))),
    'la.png': (saved(transparent('LA'), 'PNG'), laid_over_white(transparent('LA'))),
    'bits.tif': (saved(picture().convert('1'), 'TIFF'), pixels(picture().convert('1'))),
    'rgb.tif': (saved(picture(), 'TIFF'), pixels(picture())),
    'deep.tif': (saved(Image.fromarray(deep()), 'TIFF'), np.repeat(deep()[..., None], 3, -1)),
    'deep, white is zero.tif': (
        tiff(deep().tobytes(), 1, WHITE_IS_ZERO, bits=16),
        65535.0 - deep()[..., None].repeat(3, -1),
    ),
    'twelve bits.tif': of_twelve_bits(),
    'three of five.tif': (banded(5, IN_RGB, 0, 0), 257.0 * bands(5)[..., :3]),
    'alpha and more.tif': (banded(5, IN_RGB, 2, 0), laid_over_white(bands(5)[..., :4])),
    'gray and alpha.tif': (
        banded(2, BLACK_IS_ZERO, 2),
        laid_over_white(bands(2)[..., [0, 0, 0, 1]]),
    ),
    'gray and other.tif': (banded(2, BLACK_IS_ZERO, 0), 257.0 * bands(2)[..., [0, 0, 0]]),
    'gray times alpha.tif': with_colors_times_alpha(2),
    'rgb times alpha.tif': with_colors_times_alpha(4),
    'rgb.bmp': (saved(picture(), 'BMP'), pixels(picture())),
    'rgb.ppm': (saved(picture(), 'PPM'), pixels(picture())),
    'gray.pgm': (saved(picture().convert('L'), 'PPM'), pixels(picture().convert('L'))),
    'rgb.heic': (heic(picture()), pixels(picture())),
    'rgba.heic': (heic(transparent('RGBA')), laid_over_white(transparent('RGBA'))),
    'turned.heic': (
        heic(picture(), exif=turned(6).tobytes()),
        pixels(picture().transpose(Image.Transpose.ROTATE_270)),
    ),
    'rgb.webp': (saved(picture(), 'WEBP', lossless=True), pixels(picture())),
    'rgba.webp': (
        saved(transparent('RGBA'), 'WEBP', lossless=True, exact=True),
        laid_over_white(transparent('RGBA')),
    ),
}
JPEG_LIKE = {
    'rgb.jpg': saved(picture(), 'JPEG', quality=95),
    'gray.jpg': saved(picture().convert('L'), 'JPEG', quality=95),
    'cmyk.jpg': saved(picture().convert('CMYK'), 'JPEG', quality=95),
    'progressive.jpg': saved(picture(), 'JPEG', quality=95, progressive=True),
    'two.gif': saved(picture(), 'GIF', save_all=True, append_images=[picture().rotate(180)]),
    'rgb.avif': saved(picture(), 'AVIF', quality=95),
}


@pytest.mark.parametrize('name', SOUND)
def test_every_format_has_its_colors(name):
    content, expected = SOUND[name]
    np.testing.assert_allclose(decode_by_pillow(content), expected, atol=STEP)
    np.testing.assert_allclose(in_graph(content), expected, atol=STEP)


@pytest.mark.parametrize('name', JPEG_LIKE)
def test_compressed_formats_have_the_colors_of_pillow(name):
    content = JPEG_LIKE[name]
    with Image.open(io.BytesIO(content)) as opened:
        expected = pixels(opened)
    np.testing.assert_array_equal(decode_by_pillow(content), expected)
    # TensorFlow's own transform is a fast one; what four inks make is exact.
    is_fast = name.endswith('.jpg') and name != 'cmyk.jpg'
    np.testing.assert_allclose(in_graph(content), expected, atol=(5 if is_fast else 1) * STEP)


@pytest.mark.parametrize('jfif', [True, False])
@pytest.mark.parametrize('byte_order', ['<', '>'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_turned_upright(orientation, byte_order, jfif):
    content = with_exif(orientation, byte_order)
    if not jfif:  # Exif comes first, as cameras write it
        content = content[:2] + content[content.index(b'\xff\xe1') :]
    upright = decode_by_pillow(content)
    image = in_graph(content)
    assert image.shape == upright.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    np.testing.assert_allclose(image, upright, atol=5 * STEP)


@pytest.mark.parametrize('name', ['rgba.png', 'deep.png', 'rgb.bmp', 'rgb.jpg', 'two.gif'])
def test_a_graph_without_python_decodes_what_tensorflow_can(name):
    content = SOUND[name][0] if name in SOUND else JPEG_LIKE[name]
    np.testing.assert_allclose(decode_anywhere(tf.constant(content)), in_graph(content), atol=STEP)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 255)), min_size=1, max_size=4))
def test_exif_data_that_are_damaged_cost_no_image(changes):
    content = bytearray(with_exif(6, '<'))
    begin = content.index(b'Exif') + 6
    for place, value in changes:
        content[begin + place] = value
    found = in_graph(bytes(content)).numpy()
    assert sorted(found.shape) == [3, 24, 40]


@pytest.mark.parametrize('offset', [0, 4000, 2**31 - 1, 2**31, 2**32 - 1])
def test_an_exif_directory_out_of_reach_is_none(offset):
    content = bytearray(with_exif(6, '<'))
    begin = content.index(b'Exif') + 6
    content[begin + 4 : begin + 8] = offset.to_bytes(4, 'little')
    np.testing.assert_array_equal(in_graph(bytes(content)), in_graph(with_exif(1, '<')))


def test_a_palette_may_be_transparent():
    image = picture().convert('P')
    content = saved(image, 'PNG', transparency=int(np.asarray(image)[0, 0]))
    expected = decode_by_pillow(content)
    assert (expected[0, 0] == 65535).all()
    np.testing.assert_allclose(in_graph(content), expected, atol=STEP)


DAMAGED = {
    'it is empty': b'',
    'it is a web page': b'\n<!DOCTYPE html><p>404',
    'it is a Git LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
    'it is an SVG drawing': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'it is no image of a known format': bytes(range(200)),
    r'it is damaged \(image file is truncated': saved(picture(), 'BMP')[:-100],
    r'it is damaged \(.*[Tt]runcated': saved(picture(), 'JPEG')[:-100],
    r'it is damaged \(image file is trunc': saved(picture(), 'PNG')[:100],
    'it is damaged': saved(picture(), 'WEBP')[:-100],
    'it is damaged .': heic(picture())[:-100],
    'it has 10,201 pixels, more than --max_pixels=10,000': saved(Image.new('L', (101, 101)), 'PNG'),
    'it has 10,404 pixels': heic(Image.new('RGB', (102, 102))),
    'more than --max_pixels': saved(Image.new('L', (1, 10_001)), 'JPEG'),
    'floating-point': saved(Image.fromarray(np.zeros([3, 3], np.float32)), 'TIFF'),
    'signed or 32-bit integers': saved(Image.fromarray(np.zeros([3, 3], np.int32)), 'TIFF'),
    'signed or': tiff(bands(1).tobytes(), 1, BLACK_IS_ZERO, sample_format=2),
    'TIFF file of 5 channels of 8 bits .*BlackIsZero': banded(5, BLACK_IS_ZERO, 0, 0, 0, 0),
    'TIFF file of 2 channels of 8 bits': banded(2, BLACK_IS_ZERO),
    'TIFF file of 7 channels of 8 bits .*RGB': banded(7, IN_RGB, 0, 0, 0, 0),
    'its directory of tags is not complete': banded(7, IN_RGB, 0, 0, 0, 0)[:60],
    'of tags is not complete': b'II*\0\0\0\0\x99',
    'tags is not complete': b'II*\0',
}


@pytest.mark.parametrize('reason', DAMAGED)
def test_what_is_no_image_is_told(reason):
    with pytest.raises(NotAnImageError, match=reason):
        decode_by_pillow(DAMAGED[reason], max_pixels=10_000)
    if 'max_pixels' not in reason:  # of PNG and JPEG files, `check_size` reads it
        with pytest.raises(tf.errors.InvalidArgumentError):
            in_graph(DAMAGED[reason])


def test_a_changed_byte_never_ends_the_program():
    whole = [*(content for content, _ in SOUND.values()), *JPEG_LIKE.values()]
    random = np.random.RandomState(1)
    for content in whole:
        for _ in range(8):
            changed = bytearray(content)
            changed[random.randint(len(changed))] ^= 1 << random.randint(8)
            with contextlib.suppress(NotAnImageError):
                assert decode_by_pillow(bytes(changed), 10_000).shape[-1] == 3
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                assert in_graph(bytes(changed)).shape[-1] == 3


@pytest.mark.parametrize('size', [(1, 1), (9_999, 1), (1, 9_999)])
def test_extreme_shapes_are_decoded(size):
    content = saved(Image.new('RGB', size, 'red'), 'PNG')
    image = decode_by_pillow(content)
    assert image.shape == (size[1], size[0], 3)
    np.testing.assert_array_equal(in_graph(content), image)


def test_a_folder_may_hold_every_format(tmp_path):
    (tmp_path / 'test' / 'class 0').mkdir(parents=True)
    (tmp_path / 'test' / 'class 0' / 'one.png').write_bytes(SOUND['rgb.png'][0])
    for number, (name, (content, _)) in enumerate(SOUND.items()):
        place = tmp_path / 'train' / f'class {number % 2}' / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (place.parent / 'really a webp.jpg').write_bytes(SOUND['rgb.webp'][0])
    config = DataConfig(dataset='image_folder', data_dir=str(tmp_path), image_size=8)
    source = open_source(config)
    batches = eval_batches(source, config, split='train', batch_size=4)
    found = {int(i): image for b in batches for i, image in zip(b['index'], b['views'][0].numpy())}
    names = source.identify('train', sorted(set(found) - {-1}))
    assert {os.path.basename(name) for name in names} == {*SOUND, 'really a webp.jpg'}
    for number, name in enumerate(names):
        expected = SOUND['rgb.webp' if 'really' in name else os.path.basename(name)][1].mean()
        assert found[number].mean() == pytest.approx(expected / 65535, abs=0.05)


def test_a_damaged_file_that_pillow_reads_is_told(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'cut off.webp').write_bytes(SOUND['rgb.webp'][0][:-100])
    config = DataConfig(dataset='image_folder', data_dir=str(tmp_path), image_size=8)
    source = open_source(config)
    list(eval_batches(source, config, split='train', batch_size=1))
    assert re.search(r'cut off\.webp\tit is damaged \(.*\)', source.skipped.listing())
