"""--mode=embed: vectors of every image, as a plain loop computes them, whatever interrupts it."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from PIL import Image

from app.config.resolution import resolve
from app.inference import application, parts, projector, tables
from app.presets import PRESETS
from common.errors import UserError
from data.batches import decode_for_evaluation
from data.config import DataConfig
from data.image_files import decode_by_pillow
from tests.app.inference import conftest
from tests.app.inference.conftest import CHECKPOINT, CLASSES, COUNTS, Main
from tests.support import mirrored
from tf2.weights import open_weights

pytestmark = pytest.mark.usefixtures('plain')

# As `plain`, in a process of its own.
PROGRAM = """
import sys
from tests.support import plain_networks
import run
with plain_networks():
    sys.exit(run.main(sys.argv))
"""
FLAGS = {'checkpoint': CHECKPOINT, **conftest.FLAGS}


def model_outputs(images: np.ndarray) -> dict[str, np.ndarray]:
    weights = open_weights(CHECKPOINT)
    model = weights.build()
    weights.load_into(model, head_layers=-1)
    return {name: rows.numpy() for name, rows in model(images, training=False).items()}


def embedded(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored}


def test_every_file_has_the_vector_that_the_model_computes(
    made: pathlib.Path, images: pathlib.Path
) -> None:
    found = embedded(made / 'v.npz')
    expected = [(s, c, n) for s in ('train', 'test') for c in CLASSES for n in range(COUNTS[s])]
    extensions = ('png', 'jpg', 'webp')
    files = [f'{s}/{c}/{n}.{extensions[n % 3]}' for s, c, n in expected]
    order = np.argsort(found['files'])
    assert found['files'][order].tolist() == sorted(files)
    assert found['splits'].tolist() == [name.split('/')[0] for name in found['files']]
    assert found['class_names'].tolist() == list(CLASSES)
    named = [CLASSES[label] for label in found['labels']]
    assert named == [name.split('/')[1] for name in found['files']]
    # Files of a class are together and in order.
    assert found['files'][:9].tolist() == sorted(f for f in files if f.startswith('train/cat/'))
    views = np.stack([_evaluation_view(images / name) for name in found['files']])
    expected = model_outputs(views)['final_avg_pool']
    assert found['embeddings'].dtype == np.float32
    np.testing.assert_allclose(found['embeddings'], expected, rtol=1e-4, atol=1e-5)
    record = json.loads(str(found['record']))
    assert record['checkpoint'] == CHECKPOINT and record['data_dir'] == str(images)


def _evaluation_view(path: pathlib.Path) -> np.ndarray:
    content = path.read_bytes()
    if path.suffix == '.webp':  # which this reference does not decode
        content = tf.io.encode_png(decode_by_pillow(content))
    return decode_for_evaluation(tf.constant(content), DataConfig(image_size=8)).numpy()


@pytest.mark.parametrize('layer', ['block_group2', 'proj_head_output', 'logits_sup'])
def test_a_layer_is_pooled(
    layer: str, tmp_path: pathlib.Path, main: Main, images: pathlib.Path
) -> None:
    status, _, said = main('embed', data_dir=images, model_dir=tmp_path, layer=layer, **FLAGS)
    assert status == 0, said
    found = embedded(tmp_path / 'embeddings.npz')
    views = np.stack([_evaluation_view(images / name) for name in found['files']])
    expected = model_outputs(views)[layer]
    expected = expected.mean((1, 2)) if expected.ndim == 4 else expected
    np.testing.assert_allclose(found['embeddings'], expected, rtol=1e-4, atol=1e-5)


def test_formats_hold_the_same(made: pathlib.Path) -> None:
    found = embedded(made / 'v.npz')
    table = pyarrow.parquet.read_table(made / 'v.parquet')
    assert table['file'].to_pylist() == found['files'].tolist()
    assert table['class'].to_pylist() == [CLASSES[label] for label in found['labels']]
    np.testing.assert_array_equal(np.stack(table['embedding'].to_pylist()), found['embeddings'])
    with open(made / 'v.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['file'] for row in rows] == found['files'].tolist()
    assert [int(row['label']) for row in rows] == found['labels'].tolist()
    width = found['embeddings'].shape[1]
    vectors = [[np.float32(row[f'e{i}']) for i in range(width)] for row in rows]
    np.testing.assert_array_equal(vectors, found['embeddings'])


def test_the_projector_gets_vectors_names_and_one_image(
    made: pathlib.Path, images: pathlib.Path
) -> None:
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig
    from tensorboard.plugins.projector.projector_plugin import _read_tensor_tsv_file

    config = text_format.Parse((made / 'projector_config.pbtxt').read_text(), ProjectorConfig())
    (entry,) = config.embeddings
    found = embedded(made / 'v.npz')
    vectors = _read_tensor_tsv_file(str(made / entry.tensor_path))
    np.testing.assert_allclose(vectors, found['embeddings'], rtol=1e-5)
    heading, *lines = (made / entry.metadata_path).read_text().splitlines()
    assert heading == 'class\tsplit\tfile'
    assert [line.split('\t')[2] for line in lines] == found['files'].tolist()
    (height, width) = entry.sprite.single_image_dim
    with Image.open(made / entry.sprite.image_path) as sprite:
        pixels = np.asarray(sprite, np.float32) / 255
    assert pixels.shape == (6 * height, 6 * width, 3)  # 33 images
    shown = pixels[:height, 2 * width : 3 * width]
    expected = _evaluation_view(images / found['files'][2])
    assert abs(shown.mean() - expected.mean()) < 0.03


def test_few_of_many_images_are_shown() -> None:
    few = projector.Shown(examples=1_000_000, width=512)
    places = np.flatnonzero(few.chosen(np.arange(1_000_000)))
    assert len(places) * 512 <= projector.MOST_NUMBERS and len(places) > 9000
    assert len(set(np.diff(places).tolist())) == 1
    wide = projector.Shown(examples=20_000, width=2048)
    assert wide.chosen(np.arange(20_000)).sum() * 2048 <= projector.MOST_NUMBERS
    side = np.ceil(np.sqrt(projector.MOST_IMAGES)) * projector.THUMBNAIL
    assert side <= projector.LARGEST_SPRITE
    for size in (8, 64, 65, 224, 600):
        shown = projector.thumbnails(tf.zeros([1, size, size, 3]))
        assert projector.THUMBNAIL / 2 < max(shown.shape[1], 33) <= projector.THUMBNAIL


class Killed(BaseException):
    pass


@pytest.mark.parametrize('how', ['signal', 'killed'])
def test_an_interrupted_run_goes_on_to_the_same_file(
    how: str,
    made: pathlib.Path,
    tmp_path: pathlib.Path,
    main: Main,
    images: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / 'interrupted'
    seconds = 1e9 if how == 'signal' else 0.0  # after a kill, only what was written is there
    monkeypatch.setattr(parts, 'SECONDS_BETWEEN_PARTS', seconds)
    add, rows = parts.Parts.add, application._rows
    computed = []

    def interrupted(self: parts.Parts, *arguments: object) -> None:
        add(self, *arguments)
        if self.examples == 12 and how == 'signal':
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.examples == 12:
            raise Killed

    def counted(*arguments: object) -> Iterator:
        for examples, found in rows(*arguments):
            computed.append(examples)
            yield examples, found

    command = {'data_dir': images, 'model_dir': folder, **FLAGS}
    monkeypatch.setattr(application, '_rows', counted)
    monkeypatch.setattr(parts.Parts, 'add', interrupted)
    if how == 'signal':
        status, _, said = main('embed', **command)
        assert status == 128 + signal.SIGTERM and 'To resume: ' in said
    else:
        with pytest.raises(Killed):
            main('embed', **command)
    assert not (folder / 'embeddings.npz').exists()
    monkeypatch.setattr(parts.Parts, 'add', add)
    # The rows belong to a run with these settings.
    status, _, said = main('embed', **command, layer='block_group1')
    assert status == 2 and 'layer final_avg_pool; this one has layer block_group1' in said
    computed.clear()
    assert main('embed', **command)[0] == 0
    assert sum(computed) == 33 - 12
    assert (folder / 'embeddings.npz').read_bytes() == (made / 'v.npz').read_bytes()
    for name in ('projector/vectors.tsv', 'projector/sprite.jpg'):
        assert (folder / name).read_bytes() == (made / name).read_bytes(), name
    assert not list(folder.glob('*.unfinished'))


def test_several_replicas_compute_what_one_does(
    made: pathlib.Path,
    tmp_path: pathlib.Path,
    main: Main,
    images: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(application.distribution, 'build_strategy', lambda config: mirrored(2))
    status, _, said = main('embed', data_dir=images, model_dir=tmp_path, **FLAGS)
    assert status == 0, said
    check_same(tmp_path, made)


def test_two_workers_write_what_one_does(
    made: pathlib.Path, tmp_path: pathlib.Path, images: pathlib.Path
) -> None:
    folder = tmp_path / 'two'
    from benchmarks.runs import _free_port

    hosts = [f'127.0.0.1:{_free_port()}' for _ in range(2)]
    flags = {'data_dir': images, 'model_dir': folder, **FLAGS}
    started = []
    for index in range(2):
        task = {'cluster': {'worker': hosts}, 'task': {'type': 'worker', 'index': index}}
        started.append(start_program(flags, TF_CONFIG=json.dumps(task)))
    shown = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], shown
    assert [text.count('33 embeddings') for text in shown] == [1, 0]
    check_same(folder, made)


def start_program(flags: dict[str, object], **environment: str) -> subprocess.Popen:
    arguments = [f'--{name}={value}' for name, value in flags.items()]
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, '--mode=embed', *arguments],
        cwd=pathlib.Path(__file__).parents[3],
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_same(folder: pathlib.Path, made: pathlib.Path) -> None:
    """The same rows, up to the rounding of batches of another size."""
    found, wanted = embedded(folder / 'embeddings.npz'), embedded(made / 'v.npz')
    for name in ('files', 'splits', 'labels', 'class_names', 'record'):
        assert found[name].tolist() == wanted[name].tolist(), name
    np.testing.assert_allclose(found['embeddings'], wanted['embeddings'], rtol=1e-4, atol=1e-6)
    for name in ('metadata.tsv', 'sprite.jpg'):
        paths = [place / 'projector' / name for place in (folder, made)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_split_that_is_asked_for_is_embedded_alone(
    tmp_path: pathlib.Path, main: Main, images: pathlib.Path
) -> None:
    flags = {'data_dir': images, 'model_dir': tmp_path, **FLAGS}
    assert main('embed', eval_split='validation', **flags)[0] == 0
    found = embedded(tmp_path / 'embeddings.npz')
    assert {name.split('/')[0] for name in found['files']} == {'test'}
    assert set(found['splits'].tolist()) == {'validation'} and len(found['labels']) == 6


@pytest.mark.parametrize(
    ('recorded', 'given', 'held_out'),
    [({'holdout_fraction': 0.3}, {}, 9), ({'holdout_fraction': 0.3}, {'holdout_fraction': 0.1}, 3)],
)
def test_the_images_that_the_run_held_out_are_those_of_the_split(
    tmp_path: pathlib.Path,
    images: pathlib.Path,
    recorded: dict[str, float],
    given: dict[str, float],
    held_out: int,
) -> None:
    run_folder = run_that_recorded(tmp_path / 'run', recorded)
    flags = {'data_dir': str(images / 'train'), 'checkpoint': run_folder, **given}
    flags |= {'mode': 'embed', 'eval_split': 'validation', 'model_dir': str(tmp_path / 'out')}
    app = application.prepare(resolve(flags, PRESETS), flags, head_layers=lambda _: 0)
    assert dict(app.splits) == {'validation': held_out}


def test_without_held_out_images_no_split_has_them(
    tmp_path: pathlib.Path, main: Main, images: pathlib.Path
) -> None:
    """Images that were trained on would be taken for new ones."""
    run_folder = run_that_recorded(tmp_path / 'run', {'holdout_fraction': 0.0})
    flags = {'data_dir': images / 'train', 'model_dir': tmp_path / 'out', 'checkpoint': run_folder}
    status, _, said = main('embed', eval_split='validation', **flags)
    assert status == 2 and "no split 'validation'; its splits are: train" in said


def run_that_recorded(folder: pathlib.Path, settings: dict[str, float]) -> str:
    """A copy of the checkpoint with more settings in its record."""
    shutil.copytree(CHECKPOINT, folder)
    flags = json.loads((folder / 'flags.json').read_text())
    (folder / 'flags.json').write_text(json.dumps({**flags, **settings}))
    return str(folder)


def test_a_data_set_without_files_is_named_by_slices(tmp_path: pathlib.Path, main: Main) -> None:
    status, _, said = main(
        'embed', dataset='bundled', eval_split='test[:6]', model_dir=tmp_path, **FLAGS
    )
    assert status == 0, said
    found = embedded(tmp_path / 'embeddings.npz')
    assert found['files'].tolist() == [f'test[{i}:{i + 1}]' for i in range(6)]


def test_images_without_classes_and_with_odd_names(tmp_path: pathlib.Path, main: Main) -> None:
    """Names that are not UTF-8, that end lines, that hold quotes and commas."""
    names = [b'caf\xe9.png', b'two\nlines.png', b'a "quote", a comma.png', b'tab\tbed.png']
    (tmp_path / 'images').mkdir()
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(tmp_path / 'images'), name)
        with open(path, 'wb') as file:
            Image.new('RGB', (8, 8), (60 * number, 0, 0)).save(file, 'PNG')
    expected = sorted(['caf\\xe9.png', *(name.decode() for name in names[1:])])
    flags = {'data_dir': tmp_path / 'images', 'model_dir': tmp_path / 'out', **FLAGS}
    for output in ('v.npz', 'v.csv', 'v.parquet'):
        status, _, said = main('embed', **flags, output=output)
        assert status == 0, said
    found = embedded(tmp_path / 'out' / 'v.npz')
    assert sorted(found['files'].tolist()) == expected
    assert set(found['labels'].tolist()) == {-1} and found['class_names'].size == 0
    with open(tmp_path / 'out' / 'v.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['file'] for row in rows] == found['files'].tolist()
    assert {(row['label'], row['class']) for row in rows} == {('', '')}
    table = pyarrow.parquet.read_table(tmp_path / 'out' / 'v.parquet')
    assert table['file'].to_pylist() == found['files'].tolist()
    assert table['label'].to_pylist() == [None] * 4
    lines = (tmp_path / 'out' / 'projector' / 'metadata.tsv').read_text().splitlines()
    assert len(lines) == 5 and all(line.count('\t') == 2 for line in lines)


def test_files_of_several_folders_have_their_paths(
    tmp_path: pathlib.Path, main: Main, images: pathlib.Path
) -> None:
    places = [images / 'train' / 'cat', images / 'test' / 'cat']
    flags = {'data_dir': ','.join(map(str, places)), 'model_dir': tmp_path, **FLAGS}
    assert main('embed', **flags)[0] == 0
    found = embedded(tmp_path / 'embeddings.npz')
    assert len(set(found['files'].tolist())) == 11
    assert all(os.path.isfile(name) for name in found['files'])


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'checkpoint': ''}, '--checkpoint must have a value'),
        ({'model_dir': None}, 'needs --checkpoint and --model_dir; found '),
        ({'checkpoint': None}, 'needs --checkpoint and --model_dir; found None and '),
        ({'checkpoint': '/no/such/run'}, '--checkpoint=/no/such/run should be a --model_dir, a ch'),
        ({'layer': 'pool5'}, '--layer must be one of initial_conv, .*logits_sup; found .pool5'),
        ({'output': 'v.txt'}, r'ends in \.npz, \.parquet, \.csv; found .v\.txt'),
        ({'data_dir': '/no/images'}, '--data_dir=/no/images must be a folder of images, a list'),
        ({'eval_split': 'night'}, "no split 'night'; its splits are: test, train"),
        ({'eval_split': 'test[:0]'}, "needs images; found none in 'test\\[:0\\]'"),
        ({'image_size': 64}, 'has the input stem for images of 32 pixels or less'),
        ({'train_batch_size': 8}, '--train_batch_size is for training; found --mode=embed'),
        ({'resnet_depth': 18}, '--resnet_depth is for training; found --mode=embed'),
        ({'preset': 'demo'}, '--preset is for training; found --mode=embed'),
        ({'mode': 'train', 'layer': 'x'}, '--layer is for --mode=embed.*; found --mode=train'),
    ],
    ids=str,
)
def test_what_cannot_be_embedded_costs_one_line(
    flags: dict[str, object],
    words: str,
    tmp_path: pathlib.Path,
    main: Main,
    images: pathlib.Path,
) -> None:
    given = {'data_dir': images, 'model_dir': tmp_path / 'out', **FLAGS, **flags}
    given = {name: value for name, value in given.items() if value is not None}
    status, _, said = main(str(given.pop('mode', 'embed')), **given)
    assert status == 2
    assert said.count('\n') == 1
    import re

    assert re.search(words, said), said
    assert not (tmp_path / 'out').exists()


def test_rows_that_cannot_be_read_are_told(tmp_path: pathlib.Path) -> None:
    kept = parts.Parts(str(tmp_path / 'rows'), {'layer': 'x'})
    kept.add({'a': np.arange(3)}, 4)
    kept.flush()
    kept.add({'a': np.arange(2)}, 2)
    kept.flush()
    again = parts.Parts(str(tmp_path / 'rows'), {'layer': 'x'})
    assert again.examples == 6
    assert [rows['a'].tolist() for rows in again.read(['a'])] == [[0, 1, 2], [0, 1]]
    (tmp_path / 'rows' / '000000000004-000000000006.npz').write_bytes(b'PK nothing')
    with pytest.raises(UserError, match='must hold rows as they were written'):
        list(again.read(['a']))
    (tmp_path / 'rows' / '000000000000-000000000004.npz').unlink()
    assert parts.Parts(str(tmp_path / 'rows'), {'layer': 'x'}).examples == 0


def test_rows_come_in_chunks_of_one_size() -> None:
    sizes = (3, 1, 9, 2)
    starts = np.cumsum((0, *sizes))
    files = [{'a': np.arange(i, i + n), 'b': -np.arange(i, i + n)} for i, n in zip(starts, sizes)]
    chunks = list(parts.rebatched(iter(files), 4))
    assert [len(chunk['a']) for chunk in chunks] == [4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([chunk['b'] for chunk in chunks]), -np.arange(15))


def test_the_table_is_written_in_chunks(tmp_path: pathlib.Path) -> None:
    vectors = [np.full([n, 2], n, np.float32) for n in (3, 2)]
    names = [tables.Names([f'{n}/{i}' for i in range(n)], ['s'] * n, np.zeros(n)) for n in (3, 2)]
    table = tables.Table(5, 2, lambda: iter(vectors), lambda: iter(names), None, {})
    tables.write_table(str(tmp_path / 'v'), '.npz', table)
    found = embedded(tmp_path / 'v')
    np.testing.assert_array_equal(found['embeddings'], np.concatenate(vectors))
    assert found['files'].tolist() == ['3/0', '3/1', '3/2', '2/0', '2/1']
