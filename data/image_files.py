"""Image files of any format → RGB.

TensorFlow decodes JPEG and PNG files, which is fast; Pillow decodes the other formats. Contents
decide, not the file's extension.
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, TiffImagePlugin, TiffTags, UnidentifiedImageError

from common.errors import one_line

_PNG = b'\x89PNG\r\n\x1a\n'
_HEADER_BYTES = 4096  # Exif data with the orientation lie within
BEGINNING = 32  # bytes that tell a file's format
_MARK_WITHIN = 32  # bytes from the beginning of a file, in which their mark begins
NOT_AN_IMAGE = 'Not an image: '
UNREADABLE = 'it cannot be read'  # how a reason begins, if not even the bytes can be had
_EXIF, _ORIENTATION = b'Exif\0\0', 0x0112
# Values of it: rows, or columns after transposing those from 5 on, are stored in reverse.
_ROWS_TURNED, _COLUMNS_TURNED = (3, 4, 7, 8), (2, 3, 6, 7)
_WHITE = 65535.0
_DEEP = ('I;16', 'I;16B', 'I;16L', 'I')
_TIFF = (b'II*\0', b'MM\0*')
# Tags of a TIFF file, and values of the last two.
_BITS, _SAMPLES, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 277, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_NOT_IMAGES = (  # how a file begins → what it is
    (b'', 'it is empty'),
    (b'version https://git-lfs', 'it is a Git LFS pointer, not the file itself'),
    (b'<svg', 'it is an SVG drawing, which has no pixels'),
    (b'<', 'it is a web page or other markup'),
    (b'{', 'it is JSON or other text'),
)

_FORMATS = (  # how a file begins → its format
    (b'\xff\xd8\xff', 'JPEG'),
    (_PNG, 'PNG'),
    (b'GIF8', 'GIF'),
    (b'BM', 'BMP'),
    *((magic, 'TIFF') for magic in _TIFF),
    (b'P4', 'PBM'),
    (b'P1', 'PBM'),
    (b'P5', 'PGM'),
    (b'P2', 'PGM'),
    (b'P6', 'PPM'),
    (b'P3', 'PPM'),
)
_EXTENSIONS = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'PNG': ('.png',),
    'GIF': ('.gif',),
    'BMP': ('.bmp',),
    'WebP': ('.webp',),
    'TIFF': ('.tif', '.tiff'),
    'AVIF': ('.avif',),
    'HEIF': ('.heic', '.heif'),
}

# `max_pixels` is the limit here; a second one of Pillow's would speak of attacks.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings('ignore', module='PIL')  # odd metadata, of which nothing is used
logging.getLogger('PIL').setLevel(logging.CRITICAL)  # a reason is given for each file


# A graph takes a tenth of a second to decode files of all formats, and each data set has several.
_traced_once = tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


class NotAnImageError(Exception):
    """A file that can't be decoded; the message is the reason, part of a line."""


def format_of(beginning: bytes) -> str:
    """The format of an image file by its first `BEGINNING` bytes, 'other' if it is a rarer one."""
    if beginning[:4] == b'RIFF' and beginning[8:12] == b'WEBP':
        return 'WebP'
    if beginning[4:8] == b'ftyp':
        return 'AVIF' if b'avif' in beginning[8:] else 'HEIF'
    return next((name for begin, name in _FORMATS if beginning.startswith(begin)), 'other')


def extensions_of(name: str) -> tuple[str, ...]:
    """How names of files of a format end; nothing for a format whose files are called many ways."""
    return _EXTENSIONS.get(name, ())


def decode_file(content: tf.Tensor, max_pixels: int = 0) -> tf.Tensor:
    """Decodes a file within a graph.

    The image is turned as its Exif orientation says; transparent parts are laid over white.

    Args:
        content: scalar string, the file's bytes.
        max_pixels: most pixels it may have, where Pillow decodes it; 0 for no limit. See
            `images.check_size` for the other formats.

    Returns:
        [h, w, 3] uint16, of 65,535: 257 times the values of 8-bit images. The graph fails if the
        file can't be decoded, with `NOT_AN_IMAGE` and the reason where Pillow finds out.
    """
    decode = functools.partial(_decode_for_graph, max_pixels=max_pixels)
    return _decode(content, lambda: tf.numpy_function(decode, [content], tf.uint16, stateful=False))


def decode_anywhere(content: tf.Tensor) -> tf.Tensor:
    """As `decode_file`, for graphs that are run without Python: JPEG, PNG, GIF and BMP files."""

    def by_tensorflow() -> tf.Tensor:
        image = tf.io.decode_image(content, channels=3, expand_animations=False)
        return tf.cast(image, tf.uint16) * 257

    return _decode(content, by_tensorflow)


def _decode(content: tf.Tensor, others: Callable[[], tf.Tensor]) -> tf.Tensor:
    """A JPEG or PNG file is decoded here, one of another format by `others`."""

    def not_jpeg() -> tf.Tensor:
        is_png = tf.strings.substr(content, 0, len(_PNG)) == _PNG
        return tf.cond(is_png, lambda: _decode_png(content), others)

    image = tf.cond(tf.io.is_jpeg(content), lambda: _decode_jpeg(content), not_jpeg)
    return tf.ensure_shape(image, [None, None, 3])


def _decode_for_graph(content: bytes, max_pixels: int) -> np.ndarray:
    try:
        return decode_by_pillow(content, max_pixels)
    except NotAnImageError as error:
        raise ValueError(f'{NOT_AN_IMAGE}{error}.') from error


def decode_by_pillow(content: bytes, max_pixels: int = 0) -> np.ndarray:
    """Decodes the first image of a file, as `decode_file` does.

    Args:
        content: the file's bytes, of any format that Pillow reads.
        max_pixels: most pixels it may have, by its header; 0 for no limit.

    Returns:
        [h, w, 3] uint16.

    Raises:
        NotAnImageError: if it can't be decoded.
    """
    try:
        if format_of(content[:BEGINNING]) == 'HEIF':
            _teach_pillow_heif()
        with Image.open(io.BytesIO(content)) as image:
            pixels = image.width * image.height
            if max_pixels and pixels > max_pixels:
                raise NotAnImageError(
                    f'it has {pixels:,} pixels, more than --max_pixels={max_pixels:,}'
                )
            return _to_uint16(image)
    except UnidentifiedImageError as error:
        raise NotAnImageError(_what_it_is(content)) from error
    except (NotAnImageError, MemoryError):
        raise
    except Exception as error:  # what Pillow's many readers raise for damaged files has no type
        raise NotAnImageError(f'it is damaged ({one_line(error, 100)})') from error


@functools.cache
def _teach_pillow_heif() -> None:
    import pillow_heif  # only here: few data sets hold such files

    pillow_heif.register_heif_opener(thumbnails=False)


def why_undecodable(content: bytes, max_pixels: int = 0) -> str | None:
    """Why a file with this `content` can't be decoded, part of a line; None if Pillow can."""
    try:
        decode_by_pillow(content, max_pixels)
    except NotAnImageError as error:
        return str(error)
    return None


def _to_uint16(stored: Image.Image) -> np.ndarray:
    if stored.mode == 'F':
        raise NotAnImageError('its pixels are floating-point numbers of no known range')
    tags = getattr(stored, 'tag_v2', {})
    is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    if is_signed or (stored.mode == 'I' and stored.format != 'PPM'):  # Pillow scales those
        raise NotAnImageError('its pixels are signed or 32-bit integers of no known range')
    image = ImageOps.exif_transpose(stored)
    if image.mode in _DEEP:
        gray = _deep_gray(np.asarray(image, np.int64), tags)
        return np.repeat(gray[..., np.newaxis], 3, axis=-1)
    if image.mode == 'La':  # color times alpha, which Pillow converts to nothing else
        gray, alpha = np.moveaxis(np.asarray(image, np.uint16), -1, 0)
        return np.repeat(np.minimum(gray + 255 - alpha, 255)[..., np.newaxis] * 257, 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return np.asarray(image.convert('RGB'), np.uint16) * 257


def _deep_gray(gray: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """Gray values [h, w] int64 of more than 8 bits, as Pillow has them → uint16, of 65,535.

    `tags` are those of a TIFF file. Pillow regards them only in images of 8 bits.
    """
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    gray = np.clip(gray, 0, white)
    gray = white - gray if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else gray
    return (gray * 65535 // white).astype(np.uint16)


def _what_it_is(content: bytes) -> str:
    """Why nothing reads a file with this `content`."""
    begins = content[:64].lstrip().lower()
    for magic, reason in _NOT_IMAGES:
        if begins.startswith(magic) if magic else not begins:
            return reason
    if content.startswith(_TIFF):
        return _what_tiff_it_is(content)
    return 'it is no image of a known format'


def _what_tiff_it_is(content: bytes) -> str:
    """Why Pillow opens no TIFF file with this `content`."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        channels, bits, colors = tags.get(_SAMPLES, 1), tags[_BITS][0], tags[_PHOTOMETRIC]
    except Exception:  # nothing says what it raises for a damaged directory
        return 'it is damaged (its directory of tags is not complete)'
    names = {value: name for name, value in TiffTags.lookup(_PHOTOMETRIC).enum.items()}
    return (
        f'it is a TIFF file of {channels} {"channel" if channels == 1 else "channels"} of {bits} '
        f'bits and photometric interpretation {names.get(colors, colors)}, which is not supported'
    )


@_traced_once
def _decode_jpeg(content: tf.Tensor) -> tf.Tensor:
    channels = tf.image.extract_jpeg_shape(content)[2]
    # The fast transform is off by up to two steps where four inks are mixed.
    image = tf.cond(
        channels == 4,
        lambda: tf.io.decode_jpeg(content, channels=3, dct_method='INTEGER_ACCURATE'),
        lambda: tf.io.decode_jpeg(content, channels=3),
    )
    orientation = _exif_orientation(content)
    image = tf.cond(orientation > 1, lambda: _upright(image, orientation), lambda: image)
    return tf.cast(image, tf.uint16) * 257


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """`image` as it is to be seen; `orientation` from 2 to 8 says where row 0 and column 0 lie."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    turned = [tf.reduce_any(orientation == those) for those in (_ROWS_TURNED, _COLUMNS_TURNED)]
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([*turned, False]))


@_traced_once
def _decode_png(content: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_png(content, dtype=tf.uint16)
    return tf.cond(tf.shape(image)[-1] == 3, lambda: image, lambda: _over_white(image))


def _over_white(image: tf.Tensor) -> tf.Tensor:
    """Three channels of any number of them, transparent parts laid over white.

    Args:
        image: [h, w, c] uint16, c from 1 to 4: gray, gray and alpha, RGB, RGBA.

    Returns:
        [h, w, 3] uint16.
    """
    channels = tf.shape(image)[-1]
    color = tf.gather(image, tf.where(channels >= 3, [0, 1, 2], [0, 0, 0]), axis=-1)

    def blended() -> tf.Tensor:
        alpha = tf.cast(image[..., -1:], tf.float32) / _WHITE
        mixed = _WHITE - alpha * (_WHITE - tf.cast(color, tf.float32))
        return tf.cast(tf.round(mixed), tf.uint16)

    return tf.cond(channels % 2 == 0, blended, lambda: color)


def _exif_orientation(content: tf.Tensor) -> tf.Tensor:
    """The orientation tag of a JPEG file, scalar int32; 1, upright, without one.

    Exif data are an "Exif" mark, a byte order, the offset of a directory, and its entries of 12
    bytes (JEITA CP-3451, section 4.6.2). They come first in a file, or after the JFIF header.
    """
    begins = _bytes_of(content, _MARK_WITHIN + len(_EXIF))
    mark = tf.reduce_all(
        [begins[i : i + _MARK_WITHIN] == byte for i, byte in enumerate(_EXIF)], axis=0
    )

    def read() -> tf.Tensor:
        head = _bytes_of(content, _HEADER_BYTES)
        begin = tf.cast(tf.argmax(mark), tf.int32) + len(_EXIF)
        step = tf.where(head[begin] == ord('I'), -1, 1)  # little-endian numbers are turned round

        def number(at: tf.Tensor, length: int) -> tf.Tensor:
            places = tf.clip_by_value(at + tf.range(length), 0, _HEADER_BYTES - 1)
            digits = tf.gather(head, places)[::step]
            return tf.reduce_sum(digits * 256 ** tf.range(length - 1, -1, -1))

        # A directory that is cut off or elsewhere has fewer entries here, or none: no tag is found.
        first = tf.clip_by_value(begin + number(begin + 4, 4), 0, _HEADER_BYTES)
        found = head[first + 2 : first + 2 + 12 * number(first, 2)]
        entries = tf.reshape(found[: tf.size(found) // 12 * 12], [-1, 12])
        tags = 256 * entries[:, 0] + entries[:, 1]
        turned = 256 * entries[:, 1] + entries[:, 0]
        is_orientation = tf.where(step > 0, tags, turned) == _ORIENTATION
        values = tf.boolean_mask(entries[:, 8] + entries[:, 9], is_orientation)  # one is 0
        value = tf.reduce_max(tf.concat([values, [1]], 0))
        return tf.where(value <= 8, value, 1)  # there are no others

    return tf.cond(tf.reduce_any(mark), read, lambda: 1)


def _bytes_of(content: tf.Tensor, count: int) -> tf.Tensor:
    """The first `count` bytes, [count] int32; zeros where there are no more."""
    return tf.cast(tf.io.decode_raw(content, tf.uint8, fixed_length=count), tf.int32)
