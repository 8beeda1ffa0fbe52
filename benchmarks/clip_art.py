"""Makes a folder of images as users have them, from Debian's package openclipart-png.

    apt-get install openclipart-png
    python -m benchmarks.clip_art DIR

`DIR/<category>/…` holds up to 400 drawings of each category that has at least 100, in six formats.
One file of each category is damaged. Every run makes the same files, byte for byte if Pillow has
the same version.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pathlib
import tempfile

import numpy as np
from PIL import Image

from data.duplicates import find_duplicates

PACKAGE = 'openclipart-png'
INSTALLED = pathlib.Path('/usr/share/openclipart/png')
MOST, LEAST = 400, 100  # images of a class
LONGEST = 256  # pixels of a side: larger drawings are scaled down
PIXELS = 16_000_000  # larger drawings, 16 of them, are left out: each takes seconds to decode
UNSORTED = 'unsorted'  # this folder is no category
SEED = 0

# Extension → probability, and the modes that the format can store; others become RGB over white.
FORMATS = {
    'png': (0.5, ('RGBA', 'RGB', 'LA', 'L')),
    'jpg': (0.2, ('RGB', 'L')),
    'webp': (0.1, ('RGBA', 'RGB')),
    'tif': (0.1, ('RGBA', 'RGB', 'LA', 'L')),
    'bmp': (0.05, ('RGB', 'L')),
    'gif': (0.05, ('RGB', 'L')),
}


def drawings(package: pathlib.Path) -> list[pathlib.Path]:
    """The files in the categories of a package, each drawing once.

    Links, huge drawings and those that are of no category are left out, as are copies, which would
    be both trained and evaluated on.
    """
    paths = [
        path
        for path in sorted(package.rglob('*.png'))
        if path.relative_to(package).parts[0] != UNSORTED
        and not path.is_symlink()
        and pixels(path) <= PIXELS
    ]
    looks = np.array([look(path) for path in paths], np.uint8).reshape(len(paths), -1)
    alike = find_duplicates(
        contents=np.array([content(path) for path in paths], np.int64).reshape(len(paths), 1),
        looks=looks,
        splits=np.zeros([len(paths)], np.int64),
        labels=np.zeros([len(paths)], np.int64),
        count=1,
    )
    _, first = np.unique(alike.group, return_index=True)
    return [paths[index] for index in sorted(first)]


def pixels(path: pathlib.Path) -> int:
    """The number of pixels in a PNG file, from its header: Pillow refuses the largest."""
    with path.open('rb') as file:
        header = file.read(24)
    return int.from_bytes(header[16:20], 'big') * int.from_bytes(header[20:24], 'big')


def look(path: pathlib.Path) -> np.ndarray:
    """A drawing over white, reduced to 8 x 8 pixels: [192] uint8."""
    return np.asarray(over_white(read(path)).resize((8, 8), Image.Resampling.BOX)).reshape(-1)


def content(path: pathlib.Path) -> int:
    """A hash of a file, 63 bits."""
    return int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], 'big') >> 1


def choose(package: pathlib.Path, least: int, most: int) -> dict[str, list[pathlib.Path]]:
    """Category → at most `most` of its drawings, for categories that have at least `least`.

    Args:
        package: the folder of categories.
        least: number of drawings that a category must have.
        most: number that is picked at random from a larger one.

    Raises:
        FileNotFoundError: if the package is not installed.
        ValueError: if no category has enough drawings.
    """
    if not package.is_dir():
        raise FileNotFoundError(
            f"{package} must hold the drawings of Debian's package {PACKAGE}; found no such "
            f'folder. Install it: apt-get install {PACKAGE}'
        )
    categories: dict[str, list[pathlib.Path]] = {}
    for path in drawings(package):
        categories.setdefault(path.relative_to(package).parts[0], []).append(path)
    # RandomState rather than default_rng, because NumPy guarantees its stream.
    rng = np.random.RandomState(SEED)
    chosen = {
        name: [paths[index] for index in sorted(rng.permutation(len(paths))[:most])]
        for name, paths in categories.items()
        if len(paths) >= least
    }
    if not chosen:
        raise ValueError(f'{package} must hold folders of at least {least} drawings; found none.')
    return chosen


def read(path: pathlib.Path) -> Image.Image:
    """A drawing. A palette's transparent entries become an alpha channel."""
    with Image.open(path) as image:
        return image.convert('RGBA') if image.mode == 'P' else image.copy()


def over_white(image: Image.Image) -> Image.Image:
    """An image as RGB, its transparent parts over white."""
    background = Image.new('RGBA', image.size, 'white')
    background.alpha_composite(image.convert('RGBA'))
    return background.convert('RGB')


def encode(path: pathlib.Path, extension: str) -> bytes:
    """A drawing as a file of another format, scaled down to `LONGEST`."""
    image = read(path)
    image.thumbnail((LONGEST, LONGEST))
    if image.mode not in FORMATS[extension][1]:
        image = over_white(image)
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[f'.{extension}'])
    return buffer.getvalue()


def damaged(encoded: bytes, kind: int) -> bytes:
    """A file that can't be decoded: cut off, empty or text."""
    return (encoded[: len(encoded) // 3], b'', b'<html>404 Not Found</html>\n')[kind % 3]


def write_category(paths: list[pathlib.Path], out: pathlib.Path, kind: int) -> None:
    """Writes a category, the last file of it damaged."""
    out.mkdir()
    rng = np.random.RandomState([SEED, kind])
    drawn = rng.choice(list(FORMATS), len(paths), p=[share for share, _ in FORMATS.values()])
    for number, (path, extension) in enumerate(zip(paths, drawn.tolist())):
        encoded = encode(path, extension)
        if number == len(paths) - 1:
            encoded = damaged(encoded, kind)
        # Drawings in different folders of a category may have the same name.
        (out / f'{number:03}_{path.stem}.{extension}').write_bytes(encoded)


def write(package: pathlib.Path, out: pathlib.Path, least: int = LEAST, most: int = MOST) -> None:
    """Writes the data set; see `choose`. The folder appears whole or not at all.

    Args:
        package: the folder of categories.
        out: a new folder, or an empty one.
        least: number of drawings that a category must have.
        most: number that is picked at random from a larger one.

    Raises:
        FileExistsError: if there is something in `out`.
        FileNotFoundError: if the package is not installed.
        ValueError: if no category has enough drawings.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f'{out} is there already: remove it to write it anew.')
    chosen = choose(package, least, most)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'{out.name}.', dir=out.parent) as folder:
        made = pathlib.Path(folder) / 'images'
        made.mkdir()
        for kind, (name, paths) in enumerate(chosen.items()):
            write_category(paths, made / name, kind)
            print(f'{name}: {len(paths)} images')
        made.replace(out)


def main() -> None:
    """Reads the command line and writes the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=pathlib.Path, help='folder to make')
    args = parser.parse_args()
    try:
        write(INSTALLED, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
