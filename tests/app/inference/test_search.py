"""--mode=search: the nearest rows, as scikit-learn finds them, and a page that runs nothing."""

from __future__ import annotations

import html.parser
import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from app.inference import search, stored, tables
from common.errors import UserError
from tests.app.inference.conftest import CHECKPOINT, CLASSES, FLAGS, Main

pytestmark = pytest.mark.usefixtures('plain')

OF_CSV = {'embeddings': 'made/v.csv', 'checkpoint': CHECKPOINT}  # no record is in it


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ''
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize('format', ['npz', 'parquet', 'csv'])
def test_matches_are_those_of_scikit_learn(
    format: str, made: pathlib.Path, tmp_path: pathlib.Path, main: Main, images: pathlib.Path
) -> None:
    with np.load(made / 'v.npz') as file:
        vectors, files, labels = file['embeddings'], file['files'], file['labels']
    row = 11
    query = images / files[row]
    more = {'checkpoint': CHECKPOINT, 'data_dir': images} if format == 'csv' else {}
    flags = {'query': query, 'embeddings': made / f'v.{format}', 'model_dir': tmp_path, **more}
    status, shown, said = main('search', top_k=7, **flags)
    assert status == 0, said
    finder = NearestNeighbors(metric='cosine', algorithm='brute').fit(vectors)
    distances, found = finder.kneighbors(vectors[row : row + 1], len(files))
    expected = {files[i]: (CLASSES[labels[i]], 1 - d) for d, i in zip(distances[0], found[0])}
    lines = [line for line in shown.splitlines() if re.match(r'\d\.\d{4}  ', line)]
    assert len(lines) == 7 and lines[0].startswith('1.0000')
    # The network has hardly been trained: many images are equally similar but for rounding.
    for line, distance in zip(lines, distances[0]):
        similarity, name = line[:6], line[8:].split('  (')[0]
        assert line == f'{similarity}  {name}  ({expected[name][0]})'
        assert float(similarity) == pytest.approx(expected[name][1], abs=2e-4)
        assert float(similarity) == pytest.approx(1 - distance, abs=2e-4)
    page = Page(tmp_path / 'search.html')
    assert len(page.of('img')) == 8 and 'not found' not in page.text
    assert all(image['alt'] and image['src'].startswith('data:') for image in page.of('img'))


def test_the_nearest_rows_do_not_depend_on_chunks() -> None:
    random = np.random.RandomState(0)
    rows = random.randn(200, 6).astype(np.float32)
    rows[50] = rows[20]  # of equal ones the first counts
    rows[60] = 0
    rows[61] = np.nan
    names = [str(i) for i in range(200)]
    expected = [str(i) for i in np.argsort(-cosines(rows, rows[20]), kind='stable')]
    for size in (1, 7, 64, 200):
        parts = [slice(i, i + size) for i in range(0, 200, size)]
        chunks = ((rows[p], names[p], names[p], names[p]) for p in parts)
        found = search.nearest(chunks, rows[20], 200)
        assert [match.file for match in found[:2]] == ['20', '50']
        assert [match.file for match in found] == expected
        chunks = ((rows[p], names[p], names[p], names[p]) for p in parts)
        assert [m.file for m in search.nearest(chunks, rows[20], 9)] == expected[:9]


def cosines(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """A plain loop; -1 where there is none, 0 for zeros."""
    found = []
    for row in rows.astype(np.float64):
        length = np.linalg.norm(row) * np.linalg.norm(query.astype(np.float64))
        found.append(-1.0 if np.isnan(length) else row @ query / length if length else 0.0)
    return np.array(found)


def test_no_name_becomes_part_of_the_page(tmp_path: pathlib.Path, main: Main) -> None:
    bad = '"><script>alert(1)</script><img src=x onerror=alert(2)>'.replace('/', '\u2044')
    names = [b'caf\xe9 <b>.png', b'two\nlines.png', bad.encode() + b'.png', b'gone.png']
    place = os.fsencode(tmp_path / 'images' / bad)
    os.makedirs(place)
    for number, name in enumerate(names):
        with open(os.path.join(place, name), 'wb') as file:
            Image.new('RGB', (9, 8), (70 * number, 90, 0)).save(file, 'PNG')
    (tmp_path / 'images' / 'other').mkdir()
    Image.new('RGB', (700, 300), 'red').save(tmp_path / 'images' / 'other' / 'red.png')
    flags = {'checkpoint': CHECKPOINT, 'data_dir': tmp_path / 'images', 'model_dir': tmp_path}
    flags['model_dir'] = tmp_path / 'out'
    assert main('embed', **flags, **FLAGS)[0] == 0
    os.remove(os.path.join(place, b'gone.png'))
    query = os.fsdecode(os.path.join(place, names[2]))
    embeddings = tmp_path / 'out' / 'embeddings.npz'
    status, shown, said = main('search', query=query, embeddings=embeddings)
    assert status == 0, said
    assert shown.count('\n') == 6  # a line for each of five images
    page = Page(tmp_path / 'out' / 'search.html')
    assert {tag for tag, _ in page.tags} <= {
        *('html', 'head', 'meta', 'title', 'style', 'body', 'main', 'div', 'h1', 'p'),
        *('ol', 'li', 'img', 'b', 'span'),
    }
    assert all(not name.startswith('on') for _, values in page.tags for name in values)
    assert len(page.of('img')) == 1 + 4  # one file is gone
    assert page.text.count('not found') == 1
    assert bad in page.text and 'caf\\xe9 <b>.png' in page.text
    assert "default-src 'none'" in page.of('meta')[1]['content']


def test_examples_that_are_not_files_are_shown_too(tmp_path: pathlib.Path, main: Main) -> None:
    flags = {'checkpoint': CHECKPOINT, 'model_dir': tmp_path, 'eval_split': 'test[:5]', **FLAGS}
    assert main('embed', dataset='bundled', **flags)[0] == 0
    query = tmp_path / 'query.png'
    Image.new('L', (28, 28), 99).save(query)
    status, shown, said = main('search', query=query, embeddings=tmp_path / 'embeddings.npz')
    assert status == 0, said
    assert sorted(re.findall(r'test\[\d:\d\]', shown)) == [f'test[{i}:{i + 1}]' for i in range(5)]
    assert len(Page(tmp_path / 'search.html').of('img')) == 6


def test_workers_do_not_matter(
    made: pathlib.Path,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('TF_CONFIG', '{"cluster": {"worker": ["a:1", "b:1"]}}')
    flags = {'query': images / 'test' / 'cat' / '0.png', 'embeddings': made / 'v.npz'}
    assert main('search', model_dir=tmp_path, **flags)[0] == 0


def changed(path: pathlib.Path, target: pathlib.Path, **record: object) -> pathlib.Path:
    """A copy of an .npz file with another record."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    text = json.dumps({**json.loads(str(arrays['record'])), **record})
    table = tables.Table(
        *arrays['embeddings'].shape,
        lambda: iter([arrays['embeddings']]),
        lambda: iter([tables.Names(arrays['files'], arrays['splits'], arrays['labels'])]),
        arrays['class_names'].tolist(),
        json.loads(text),
    )
    tables.write_table(str(target), '.npz', table)
    return target


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'query': None}, 'needs --query and --embeddings; found None and '),
        ({'query': '/no/image.png'}, '--query=/no/image.png must be a file; found none there'),
        ({'embeddings': '/no/v.npz'}, '--embeddings=/no/v.npz must be a file; found none there'),
        ({'query': 'text.png'}, 'text.png must be an image file; found otherwise .it is no image'),
        ({'query': 'empty.png'}, 'empty.png must be an image file; found otherwise .it is empty'),
        ({'embeddings': 'text.png'}, '--embeddings must be a file that ends in .npz, .parquet, .c'),
        ({'embeddings': 'bad.npz'}, 'bad.npz must be a file that --mode=embed wrote; it cannot'),
        ({'embeddings': 'bad.parquet'}, 'bad.parquet must be a file that --mode=embed wrote'),
        ({'embeddings': 'bad.csv'}, 'that --mode=embed wrote; .*its columns are no embeddings'),
        ({'embeddings': 'plain.npz'}, 'plain.npz must be a file that --mode=embed wrote'),
        ({'embeddings': 'step.npz'}, 'made with, at step 7; found other weights, of step 8. Name'),
        ({'embeddings': 'type.npz'}, 'step of its record must be of type int'),
        ({'embeddings': 'remote.npz'}, 'needs --checkpoint, the network that .*remote.npz'),
        ({'embeddings': 'made/v.csv'}, 'needs --checkpoint, the network that .* does not tell'),
        ({'layer': 'proj_head_input'}, '--layer must be final_avg_pool, from which made/v.npz was'),
        ({**OF_CSV, 'layer': 'block_group1'}, 'must give embeddings of 16 numbers, as .*; found 2'),
        ({**OF_CSV, 'layer': 'nothing'}, "--layer must be one of .*; found 'nothing'"),
        ({'output': 'page.pdf'}, "--output must be a file that ends in .html; found 'page.pdf'"),
        ({'eval_batch_size': 8}, '--eval_batch_size is for training; found --mode=search'),
    ],
    ids=str,
)
def test_what_cannot_be_searched_costs_one_line(
    flags: dict[str, object],
    words: str,
    made: pathlib.Path,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'made').symlink_to(made)
    for name in ('text.png', 'bad.npz', 'bad.parquet', 'bad.csv'):
        (tmp_path / name).write_text('no embeddings')
    (tmp_path / 'empty.png').write_bytes(b'')
    np.savez(tmp_path / 'plain.npz', embeddings=np.zeros([2, 2], object))
    changed(made / 'v.npz', tmp_path / 'step.npz', step=7, weights='0')
    changed(made / 'v.npz', tmp_path / 'type.npz', step='8')
    changed(made / 'v.npz', tmp_path / 'remote.npz', checkpoint='https://host/module')
    before = sorted(tmp_path.iterdir())
    given = {'query': images / 'test' / 'cat' / '0.png', 'embeddings': 'made/v.npz', **flags}
    given = {'model_dir': 'out', **{n: value for n, value in given.items() if value is not None}}
    status, _, said = main('search', **given)
    assert status == 2, said
    assert said.count('\n') == 1
    assert re.search(words, said), said
    assert sorted(tmp_path.iterdir()) == before


def test_the_same_weights_may_be_in_another_file(
    made: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path, main: Main
) -> None:
    flags = {'query': images / 'test' / 'cat' / '0.png', 'embeddings': made / 'v.parquet'}
    module = f'{CHECKPOINT}/module'
    status, shown, said = main('search', checkpoint=module, model_dir=tmp_path, **flags)
    assert status == 0, said
    assert shown == main('search', model_dir=tmp_path, **flags)[1]


def test_an_array_that_is_cut_off_is_told(tmp_path: pathlib.Path, made: pathlib.Path) -> None:
    content = (made / 'v.npz').read_bytes()
    (tmp_path / 'v.npz').write_bytes(content.replace(b'(33, 16)', b'(34, 16)'))
    with (
        pytest.raises(UserError, match='must be a file that --mode=embed wrote'),
        stored.open_table(str(tmp_path / 'v.npz')) as opened,
    ):
        list(opened.rows())
