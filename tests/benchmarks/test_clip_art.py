"""The folder of mixed images that is made from Debian's clip art."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from benchmarks import clip_art


def draw(path: pathlib.Path, seed: int, size: tuple[int, int] = (300, 20)) -> None:
    """Writes four random colors, some half transparent, scaled up to `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, [2, 2, 4], np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


@pytest.fixture(scope='module')
def package(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """24 distinct drawings of birds, 5 of fish and 30 unsorted."""
    folder = tmp_path_factory.mktemp('package')
    for seed in range(24):
        draw(folder / 'birds' / ('owls' if seed % 2 else 'ducks') / f'{seed // 2}.png', seed)
    for seed in range(30, 35):
        draw(folder / 'fish' / f'{seed}.png', seed)
    for seed in range(40, 70):
        draw(folder / 'unsorted' / f'{seed}.png', seed)
    draw(folder / 'fish' / 'scaled_copy.png', 30, (150, 10))
    (folder / 'fish' / 'file_copy.png').write_bytes((folder / 'fish' / '31.png').read_bytes())
    (folder / 'fish' / 'link.png').symlink_to('32.png')
    huge = bytearray((folder / 'fish' / '33.png').read_bytes())
    huge[16:24] = (20_000).to_bytes(4, 'big') * 2
    (folder / 'fish' / 'huge.png').write_bytes(huge)
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Path below `folder` → content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def can_be_decoded(content: bytes) -> bool:
    try:
        Image.open(io.BytesIO(content)).load()
    except (UnidentifiedImageError, OSError, SyntaxError):
        return False
    return True


def test_each_drawing_is_there_once(package):
    found = clip_art.choose(package, least=1, most=100)
    assert {name: len(paths) for name, paths in found.items()} == {'birds': 24, 'fish': 5}


def test_categories_have_a_least_and_a_largest_size(package):
    found = clip_art.choose(package, least=6, most=10)
    assert list(found) == ['birds']
    assert len(set(found['birds'])) == 10
    with pytest.raises(ValueError, match='at least 25 drawings; found none'):
        clip_art.choose(package, least=25, most=30)


def test_every_run_makes_the_same_files_of_which_one_per_category_is_damaged(package, tmp_path):
    for name in ('one', 'two'):
        clip_art.write(package, tmp_path / name, least=5, most=20)
    files = contents(tmp_path / 'one')
    assert files == contents(tmp_path / 'two')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['one', 'two']
    bad = sorted(name.split('/')[0] for name, data in files.items() if not can_be_decoded(data))
    assert bad == ['birds', 'fish']
    assert len(files) == 20 + 5
    assert len({pathlib.PurePath(name).suffix for name in files}) > 3


def test_all_formats_hold_the_drawing(package):
    path = package / 'birds' / 'ducks' / '0.png'
    with Image.open(path) as image:
        background = Image.new('RGBA', (256, 17), 'white')
        background.alpha_composite(image.resize((256, 17)))
    for extension in clip_art.FORMATS:
        with Image.open(io.BytesIO(clip_art.encode(path, extension))) as image:
            assert image.format == Image.registered_extensions()[f'.{extension}']
            found = clip_art.over_white(image)
        apart = np.asarray(found, int) - np.asarray(background.convert('RGB'), int)
        assert abs(apart).mean() < 8, extension


@pytest.mark.parametrize('kind', range(3))
def test_three_kinds_of_damage(package, kind):
    encoded = clip_art.encode(package / 'birds' / 'ducks' / '0.png', 'png')
    assert can_be_decoded(encoded)
    assert not can_be_decoded(clip_art.damaged(encoded, kind))


def test_what_is_missing_or_in_the_way_is_named(package, tmp_path):
    with pytest.raises(FileNotFoundError, match='apt-get install openclipart-png'):
        clip_art.write(tmp_path / 'missing', tmp_path / 'out')
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(FileExistsError, match='remove it'):
        clip_art.write(package, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['file']
