"""Parts of a run's report: the map, settings, hostile names, next commands, failures."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import shlex
import types

import numpy as np
import pytest
from PIL import Image

import run
from app import report, train
from app.config.resolution import from_values, resolve
from app.config.schema import to_values
from app.planned_run import PlannedRun
from app.presets import PRESETS
from app.report import data_part, embedding_map, figures, images_part, next_steps, settings
from app.report.events import Events
from app.report.predictions import ClassResult, Confusion, Neighborhood, Picture, Sample, Study
from app.report.runs import Run
from common.errors import UserError
from data.sources import NO_LABEL
from tests.support import with_reports

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\n'


def a_run(folder: pathlib.Path, *, data: dict | None = None, **flags: object) -> Run:
    """A run with these flags, as if it had been trained in `folder`."""
    given = {'mode': 'train_then_eval', **flags, 'model_dir': str(folder)}
    config = resolve(given, PRESETS)
    values = {**to_values(config), 'num_classes': 3, 'train_examples': 64}
    planned = PlannedRun(config.learning.stage.title, given)
    return Run(planned, values, config, {}, {}, data, Events({}, [], 0.0, []))


# --- the map


def sample(labels: list[int], seed: int = 0) -> Sample:
    """Images whose embeddings are near one of three directions, by label."""
    rng = np.random.default_rng(seed)
    centers = np.eye(3, 8)[np.array(labels) % 3]
    embeddings = (centers + rng.normal(scale=0.05, size=[len(labels), 8])).astype(np.float32)
    pixels = np.full([28, 28, 3], 128, np.uint8)
    return Sample([Picture(pixels, label) for label in labels], embeddings)


def test_the_map_is_the_same_each_time_and_groups_what_is_similar() -> None:
    shown = sample([0, 1, 2] * 12)
    points = embedding_map.positions(shown.embeddings)
    np.testing.assert_array_equal(points, embedding_map.positions(shown.embeddings))
    places = embedding_map.cells(points)
    labels = np.arange(36) % 3
    distances = np.square(places[:, None] - places).sum(axis=-1) + 1000 * np.eye(36)
    # Rounding, which depends on the processor, may lead a point astray.
    assert np.mean(labels[distances.argmin(axis=1)] == labels) > 0.9


@pytest.mark.parametrize(
    'embeddings',
    [
        np.random.default_rng(0).normal(size=[9, 4]),
        np.outer(np.arange(1, 21), [1.0, 2, 3]),
        np.zeros([20, 3]),
        np.full([20, 3], np.nan),
    ],
    ids=['too few', 'one direction', 'zeros', 'not finite'],
)
def test_where_nothing_differs_there_is_no_map(embeddings: np.ndarray) -> None:
    assert embedding_map.positions(embeddings) is None


def test_every_image_has_a_cell_of_its_own() -> None:
    points = np.random.default_rng(0).normal(size=[40, 2])
    points[5] = points[6]
    places = embedding_map.cells(points)
    assert len({tuple(place) for place in places.tolist()}) == 40
    assert places.min() == 0 and places.max() <= 8  # 8² < 1.7 · 40 <= 9²
    corners = np.array([[0.0, 0], [0, 3], [3, 0], [3, 3]])
    np.testing.assert_array_equal(embedding_map.cells(corners), corners / 3 * 2)


def test_the_most_similar_other_image_counts() -> None:
    labels = [0, 1, 2, 0, NO_LABEL, 1]
    shown = sample(labels)
    rows = shown.embeddings / np.linalg.norm(shown.embeddings, axis=1, keepdims=True)
    known = [i for i, label in enumerate(labels) if label != NO_LABEL]
    right = 0
    for i in known:
        other = max((j for j in known if j != i), key=lambda j: float(rows[i] @ rows[j]))
        right += labels[i] == labels[other]
    assert embedding_map.same_class_nearest(shown) == right / len(known)
    assert embedding_map.same_class_nearest(sample([NO_LABEL] * 5)) is None


def test_borders_mark_the_classes() -> None:
    shown = sample([0, 1, NO_LABEL])
    places = np.array([[0, 0], [1, 0], [0, 1]])
    drawn = np.asarray(Image.open(io.BytesIO(embedding_map.draw(shown, places))).convert('RGBA'))
    assert drawn.shape == (192, 192, 4) and drawn[150, 150, 3] == 0  # two cells of 96 pixels
    marks = embedding_map.marks_of([0, 1])
    for corner, color in zip(
        ((3, 3), (3, 99), (99, 3)), (marks[0].color, marks[1].color, embedding_map.OTHER)
    ):
        expected = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        # WebP halves the resolution of colors; brightness is what the eye compares.
        assert abs(drawn[corner][:3].mean() - np.mean(expected)) < 30, color
    assert (
        len({(mark.color, mark.style) for mark in embedding_map.marks_of(range(30)).values()}) == 18
    )


# --- settings, data, classes


def test_settings_say_who_chose_them(tmp_path: pathlib.Path) -> None:
    demo = a_run(tmp_path, preset='demo', train_epochs=3, temperature=0.5)
    origins = {name: origin for name, *_, origin in settings.differing(demo)}
    assert origins['train_epochs'] == origins['temperature'] == 'flag'
    assert origins['resnet_depth'] == 'preset demo'
    assert {'mode', 'model_dir', 'preset', 'top_k'} & origins.keys() == set()
    adapted = {**demo.values, 'mixed_precision': 'bfloat16'}
    found = settings.differing(Run(**{**vars(demo), 'values': adapted}))
    assert ('mixed_precision', 'bfloat16', 'auto', 'the program') in found


def test_names_are_no_markup_and_long_lists_are_cut(tmp_path: pathlib.Path) -> None:
    names = [HOSTILE, *(f'class {i}' for i in range(299))]
    described = {'lines': [HOSTILE], 'class_names': names, 'train': [2] * 300, 'eval': [1] * 300}
    (tmp_path / 'skipped_files.txt').write_text(
        ''.join(f'{i:03}<script>\tit is <b>empty</b>\n' for i in range(50))
    )
    (tmp_path / 'skipped_files_worker1.txt').write_text('050.png\tit is gone\n')
    shown = data_part.data_part(a_run(tmp_path, data=described), types.SimpleNamespace())
    classes = images_part._best_and_worst([ClassResult(HOSTILE, 4, 1, HOSTILE)])
    for text in (shown, classes):
        assert '<script' not in text and '<img' not in text and '<b>' not in text
        assert '&quot;&gt;&lt;script&gt;alert(1)' in text
    assert '100 more classes are not shown' in shown and shown.count('<td class="fill">') == 200
    assert '51 skipped files' in shown and '31 more are in skipped_files.txt' in shown


def test_names_beside_pictures_are_no_markup(tmp_path: pathlib.Path) -> None:
    shown = sample([0, 1, 2] * 4)
    query, *others = shown.pictures[:4]
    # Of a folder's name that is not UTF-8, as `os` returns it.
    names = [HOSTILE, f'{HOSTILE}\udcff', 'c']
    counts = Confusion(np.eye(3, dtype=int), names, read=12)
    study = Study(counts, [Neighborhood(query, others, [0.5] * 3)], shown)
    source = types.SimpleNamespace(class_names=names, num_classes=3, num_examples=lambda split: 12)
    made = a_run(tmp_path)
    for part in (images_part.confusion, images_part.neighbors, images_part.image_map):
        text = part(made, study, source)
        assert '<script' not in text and '<img src=x' not in text
        assert HOSTILE[:10] not in text and '&lt;script&gt;' in text
        text.encode()  # as a file, it has to be UTF-8


def test_classes_are_ranked() -> None:
    counts = np.array([[1, 3, 0], [0, 4, 0], [0, 0, 0]])
    found = Confusion(counts, ['cat', 'dog', 'owl']).by_class()
    assert found == [ClassResult('dog', 4, 4, None), ClassResult('cat', 4, 1, 'dog')]
    many = [ClassResult(f'{i:02}', 100, 100 - i, None) for i in range(40)]
    text = images_part._best_and_worst(many)
    assert 'The 5 best and the 5 worst of 40 classes' in text and text.count('<tr>') == 1 + 10
    assert '>00<' in text and '>39<' in text and '>20<' not in text


def test_a_run_without_labels_has_no_legend(tmp_path: pathlib.Path) -> None:
    study = Study(None, [], sample([NO_LABEL] * 12))
    source = types.SimpleNamespace(class_names=None, num_classes=None)
    text = images_part.image_map(a_run(tmp_path), study, source)
    assert 'data:image/webp' in text and 'legend' not in text and 'same class' not in text


def test_colors_follow_the_page() -> None:
    curve = figures.Curve('total, training', {0: 1.0, 1: 0.5}, evaluated=False)
    svg = figures.to_svg(figures.curve_figure([curve], title='loss', share=False))
    used, defined = set(re.findall(r'var\((--\w+)\)', svg)), re.findall(r'(--\w+): #', svg)
    assert used and all(defined.count(name) == 2 for name in used)
    assert '@media (prefers-color-scheme: dark)' in svg
    assert 'fill: #ffffff' not in svg  # no white ground


def test_long_curves_are_thinned() -> None:
    points = dict.fromkeys(range(0, 1000001, 100), 1.0)
    (curve,) = figures.curves({'train/total_loss': points}, figures.LOSSES)
    assert len(curve.points) <= 1001 and list(curve.points)[-1] == 1_000_000


# --- what to do next


@pytest.mark.parametrize(
    'flags',
    [
        {'preset': 'demo'},
        {'dataset': 'cifar10', 'data_dir': "a 'b' $c"},
        {'data_dir': 'd', 'eval_split': 'test', 'holdout_fraction': 0.2},
        {'train_mode': 'finetune', 'checkpoint': 'c', 'data_dir': 'd'},
        {'train_mode': 'distill', 'teacher': 't', 'preset': 'demo_student'},
    ],
    ids=lambda flags: ' '.join(map(str, flags.values())),
)
def test_every_command_is_accepted(tmp_path: pathlib.Path, flags: dict[str, object]) -> None:
    folder = tmp_path / "it's a run"
    found = dict(next_steps.steps_of(a_run(folder, **flags)))
    modes = []
    for command in found.values():
        program, *arguments = shlex.split(command)
        if program != 'python':
            assert [program, *arguments] == ['tensorboard', '--logdir', str(folder)]
            continue
        given = run.parse(arguments)
        resolve(given, PRESETS)
        assert any(str(folder) in str(value) for value in given.values())
        if 'data_dir' in flags and given['mode'] in ('embed', 'train_then_eval'):
            assert given['data_dir'] == flags['data_dir']
        modes.append((given['mode'], given.get('train_mode')))
    assert modes[0] == ('eval', None) and ('embed', None) in modes and ('search', None) in modes
    classifies = flags.get('train_mode') is not None
    assert (('predict', None) in modes) == classifies
    following = 'distill' if classifies else 'finetune'
    assert ('train_then_eval', following) in modes


# --- failures


def finish(folder: pathlib.Path, *, wanted: bool) -> str:
    """What `train` prints after a training, which is left out."""
    config = from_values({'report': wanted, 'model_dir': str(folder)})
    source = types.SimpleNamespace(skipped=None)
    made = types.SimpleNamespace(
        config=config,
        strategy=None,
        source=source,
        data=types.SimpleNamespace(evaluated=source),
    )
    planned = PlannedRun('Pretraining', {'model_dir': str(folder)})
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, with_reports(), contextlib.redirect_stdout(shown):
        patch.setattr(train, '_train', lambda *_, **__: None)
        patch.setattr(train, '_check_module_folders', lambda *_: None)
        patch.setattr(train, 'within_memory', lambda *_: contextlib.nullcontext())
        for name in ('together', 'wait_for_all'):
            patch.setattr(train.distribution, name, lambda *_: contextlib.nullcontext())
        patch.setattr(train.distribution, 'is_chief', lambda _: True)
        patch.setattr(train.distribution, 'worker_name', lambda _: None)
        train.train(made, planned, evaluate=True, stop=run.Stop())
    return shown.getvalue()


def test_a_report_that_fails_says_that_the_training_is_complete(tmp_path: pathlib.Path) -> None:
    shown = finish(tmp_path, wanted=True)  # there is no flags.json
    assert 'The training is complete and its results are written' in shown
    assert 'found no flags.json' in shown and 'Report:' not in shown
    assert not (tmp_path / 'report.html').exists()


def test_a_report_that_is_written_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(report.page, 'write_report', lambda *given: written.append(given))
    assert f'Report: {tmp_path}/report.html\n' in finish(tmp_path, wanted=True)
    assert [path for path, *_ in written] == [f'{tmp_path}/report.html']
    assert 'Report' not in finish(tmp_path, wanted=False) and len(written) == 1


def test_other_errors_of_a_report_keep_their_traceback(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError('a bug')

    monkeypatch.setattr(report.page, 'write_report', fail)
    with pytest.raises(ValueError, match='a bug'):
        finish(tmp_path, wanted=True)
    monkeypatch.setattr(
        report.page, 'write_report', lambda *_: (_ for _ in ()).throw(UserError('x'))
    )
    assert 'x The same command' in finish(tmp_path, wanted=True)
