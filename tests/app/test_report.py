"""The report compared with the runs it describes."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
import io
import itertools
import json
import math
import pathlib
import re
import types
import xml.etree.ElementTree
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run
from app import report, train
from app.planned_run import PlannedRun
from app.report import events, figures, page, predictions, runs, training_part
from common.errors import UserError
from data.batches import eval_batches
from data.sources import NO_LABEL, Source, open_source
from tests.support import no_checker, with_reports

SPLITS = ('--dataset=bundled', '--train_split=train[:64]', '--eval_split=test[:32]')
TINY = (
    *SPLITS,
    '--mode=train_then_eval',
    '--image_size=28',
    '--train_steps=4',
    '--train_summary_steps=2',
    '--checkpoint_steps=2',
    '--train_batch_size=16',
    '--eval_batch_size=20',
)
SMALL = ('--resnet_depth=18', '--width_multiplier=0.0625')
PLAIN_VIEWS = ('--color_jitter_strength=0', '--use_blur=False')


@dataclasses.dataclass(frozen=True)
class Written:
    """A report, and the figures that went into it."""

    stages: Sequence[PlannedRun]
    text: str
    curve_figures: Sequence[Figure]
    confusion_figures: Sequence[Figure]


def planned(title: str, folder: pathlib.Path) -> PlannedRun:
    return PlannedRun(title, {'model_dir': str(folder)})


def train_tiny(folder: pathlib.Path, *flags: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert run.main(['run.py', *TINY, f'--model_dir={folder}', *flags]) == 0


@pytest.fixture(scope='module')
def stages(plain: None, tmp_path_factory: pytest.TempPathFactory) -> list[PlannedRun]:
    """Pretraining, fine-tuning on 20 labels, and distillation without labels."""
    root = tmp_path_factory.mktemp('pipeline')
    pretrained, tuned, student = (root / name for name in ('pretrain', 'finetune', 'student'))
    with pytest.MonkeyPatch.context() as patch:
        # The check of a module needs another process and is tested elsewhere.
        patch.setattr('hub_export.publish._checker', no_checker)
        with with_reports():
            train_tiny(pretrained, *SMALL, *PLAIN_VIEWS, '--knn_neighbors=5')
        tuning = ('--train_mode=finetune', '--labels_per_class=2', f'--checkpoint={pretrained}')
        with pytest.MonkeyPatch.context() as unexported:
            # The report doesn't need this module.
            unexported.setattr(train.hub_export, 'export_module', lambda *_, **__: 'nowhere')
            train_tiny(tuned, *tuning)
        train_tiny(student, *SMALL, '--train_mode=distill', f'--teacher={tuned}')
    return [
        PlannedRun('Pretraining', {'model_dir': str(pretrained), 'data_dir': 'a <b> & c'}),
        planned('Fine-tuning <few>', tuned),
        planned('Student', student),
    ]


@pytest.fixture(scope='module')
def rows(stages: list[PlannedRun]) -> list[report.Row]:
    return report.table(stages)


@pytest.fixture(scope='module')
def written(stages: list[PlannedRun], tmp_path_factory: pytest.TempPathFactory) -> Written:
    path = tmp_path_factory.mktemp('page') / 'new' / 'report.html'
    drawn: dict[str, list[Figure]] = {'curve_figure': [], 'confusion_figure': []}
    with pytest.MonkeyPatch.context() as patch:
        for name, kept in drawn.items():
            draw = getattr(figures, name)

            def spy(*args: object, draw=draw, kept=kept, **kwargs: object) -> Figure:
                kept.append(draw(*args, **kwargs))
                return kept[-1]

            patch.setattr(figures, name, spy)
        report.write_report(str(path), stages)
    assert [file.name for file in path.parent.iterdir()] == ['report.html']
    return Written(stages, path.read_text(), *drawn.values())


def result(stage: PlannedRun) -> dict[str, float]:
    return json.loads((pathlib.Path(stage.folder) / 'result.json').read_text())


def source_of(stage: PlannedRun) -> Source:
    return open_source(runs.read_run(stage).config.data)


# --- the table


def encoder_parameters() -> int:
    """Parameters of five convolutions of 1/16 of a ResNet's widths, each with BN, by hand."""
    widths = (3, 4, 4, 8, 16, 32)
    return sum(9 * inputs * width + 2 * width for inputs, width in itertools.pairwise(widths))


def test_the_table_counts_parameters_and_labels(rows: list[report.Row]) -> None:
    pretrained, tuned, student = rows
    head = 2 * (32 * 32 + 2 * 32) + 32 * 128 + 128
    classifier = 32 * 10 + 10
    assert pretrained.parameters == encoder_parameters() + head
    assert tuned.parameters == student.parameters == encoder_parameters() + classifier
    assert (pretrained.labels, tuned.labels, student.labels) == (0, 20, 0)
    assert (pretrained.through_teacher, tuned.through_teacher, student.through_teacher) == (
        0,
        0,
        20,
    )
    assert all(0 < row.seconds < 300 for row in (pretrained, tuned, student))


def test_a_classifier_after_the_head_counts_the_layers_it_reads(
    stages: list[PlannedRun],
) -> None:
    tuned = runs.read_run(stages[1])
    model = dataclasses.replace(tuned.config.model, ft_proj_selector=1)
    deeper = dataclasses.replace(tuned, config=dataclasses.replace(tuned.config, model=model))
    assert runs.count_parameters(deeper) - runs.count_parameters(tuned) == 32 * 32 + 2 * 32


@pytest.mark.parametrize(
    ('changes', 'labels'),
    [
        ({'train_mode': 'finetune', 'train_examples': 64}, 64),
        ({'train_mode': 'distill', 'teacher': 't', 'distill_alpha': 0.5, 'train_examples': 64}, 64),
        ({'train_mode': 'distill', 'teacher': 't', 'distill_alpha': 1.0, 'train_examples': 64}, 0),
    ],
    ids=['fine-tuning', 'labels and teacher', 'teacher only'],
)
def test_without_a_list_of_labels_all_were_used(
    stages: list[PlannedRun],
    tmp_path: pathlib.Path,
    changes: dict[str, object],
    labels: int,
) -> None:
    values = json.loads((pathlib.Path(stages[0].folder) / 'flags.json').read_text())
    (tmp_path / 'flags.json').write_text(json.dumps({**values, **changes}))
    (row,) = report.table([planned('X', tmp_path)])
    assert (row.labels, row.top_1, row.seconds) == (labels, None, 0)
    assert '–' in report.format_table([row])


def test_the_table_shows_the_final_accuracy(
    stages: list[PlannedRun], rows: list[report.Row], tmp_path: pathlib.Path
) -> None:
    assert [row.top_1 for row in rows] == [
        result(stage)['eval/label_top_1_accuracy'] for stage in stages
    ]
    folder = tmp_path / 'tuned'
    folder.mkdir()
    (folder / 'flags.json').write_bytes(
        (pathlib.Path(stages[1].folder) / 'flags.json').read_bytes()
    )
    outcome = {'eval/label_top_1_accuracy': 0.25, 'best/eval/label_top_1_accuracy': 0.75}
    outcome['global_step'] = 3
    (folder / 'result.json').write_text(json.dumps(outcome))
    (row,) = report.table([planned('X', folder)])
    assert row.top_1 == 0.25


def test_the_table_as_text_is_aligned(stages: list[PlannedRun], rows: list[report.Row]) -> None:
    heading, *lines = report.format_table(rows).splitlines()
    assert ' '.join(heading.split()) == 'Stage Top-1 Labels used Parameters Network Time'
    ends = {line.index(')', line.index('ResNet')) for line in lines[: len(rows)]}
    assert len(ends) == 1
    for row, line in zip(rows, lines):
        assert line.startswith(row.title) and f'{100 * row.top_1:.2f}%' in line
        assert f'{row.parameters:,}' in line
    assert '20 (through the teacher)' in lines[2]
    knn = result(stages[0])['eval/knn_accuracy']
    assert (
        f'linear classifier trained alongside on all labels; nearest neighbors {knn:.2%}'
        in (lines[3])
    )


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0.4, '0 s'),
        (59.4, '59 s'),
        (59.6, '1 min 00 s'),
        (865.2, '14 min 25 s'),
        (7500, '2 h 05 min'),
    ],
)
def test_durations_have_readable_units(seconds: float, text: str) -> None:
    assert runs.duration(seconds) == text


def test_a_folder_without_a_run_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r'found no flags\.json in .*, the folder of Pretraining'):
        report.table([planned('Pretraining', tmp_path)])


# --- events


def event(time: float, step: int = 0, **scalars: float) -> bytes:
    values = []
    for name, value in scalars.items():
        tag = name.replace('__', '/')
        metadata = tf.compat.v1.SummaryMetadata(plugin_data={'plugin_name': 'scalars'})
        tensor = tf.make_tensor_proto(value, tf.float32)
        values.append(tf.compat.v1.Summary.Value(tag=tag, metadata=metadata, tensor=tensor))
    summary = tf.compat.v1.Summary(value=values)
    return tf.compat.v1.Event(wall_time=time, step=step, summary=summary).SerializeToString()


def write_events(path: pathlib.Path, *records: bytes) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def test_the_time_of_a_run_excludes_pauses_and_other_evaluations(
    tmp_path: pathlib.Path,
) -> None:
    def file(time: int, process: int, number: int) -> pathlib.Path:
        return tmp_path / f'events.out.tfevents.{time}.host.{process}.{number}.v2'

    # Killed after 130 s, while writing; with an evaluation in between.
    killed = file(1000, 7, 0)
    records = [event(1000), event(1060, 10, train__a_loss=3), event(1130, 20, train__a_loss=2)]
    write_events(killed, *records, event(1200, 30, train__a_loss=9))
    killed.write_bytes(killed.read_bytes()[:-5])
    write_events(file(1070, 7, 1), event(1070), event(1075, 10, eval__x_accuracy=0.1))
    # Resumed from step 10, with the same process ID, as happens in containers; evaluated at the
    # end.
    goes_on = [event(5040, 20, train__a_loss=1), event(5050, 30, train__a_loss=0.5)]
    write_events(file(5000, 7, 0), event(5000), *goes_on)
    write_events(file(5060, 7, 1), event(5060), event(5064, 30, eval__x_accuracy=0.2))
    # Another process evaluates once more, a day later.
    write_events(file(90000, 8, 0), event(90000), event(90009, 30, eval__x_accuracy=0.25))
    write_events(file(90010, 9, 0))
    found = events.read_events(str(tmp_path))
    assert found.seconds == 130 + 64
    assert found.damaged == [killed.name]
    assert found.scalars == {
        'train/a_loss': {10: 3, 20: 1, 30: 0.5},
        'eval/x_accuracy': {10: pytest.approx(0.1), 30: 0.25},
    }


def recorded(folder: str) -> dict[str, np.ndarray]:
    """Tag -> [n, 2] steps and values, as TensorBoard reads them."""
    found = {}
    for path in pathlib.Path(folder).glob('*.tfevents.*'):
        reader = EventAccumulator(str(path), size_guidance={'tensors': 0}).Reload()
        for tag in reader.Tags()['tensors']:
            if not tag.endswith('/views'):
                points = [(e.step, tf.make_ndarray(e.tensor_proto)) for e in reader.Tensors(tag)]
                found[tag] = np.concatenate([found.get(tag, np.zeros([0, 2])), points])
    return {tag: points[np.argsort(points[:, 0])] for tag, points in found.items()}


# --- curves


def lines(figure: Figure) -> dict[str, np.ndarray]:
    (axes,) = figure.axes
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_curves_are_those_of_the_run(written: Written) -> None:
    kinds = (figures.LOSSES, figures.ACCURACIES, figures.RATES, figures.SPEEDS)
    assert len(written.curve_figures) == len(kinds) * len(written.stages)
    for stage, *drawn in zip(written.stages, *(written.curve_figures[i::4] for i in range(4))):
        points = recorded(stage.folder)
        for figure, endings in zip(drawn, kinds):
            shown = lines(figure)
            tags = [t for t in points if t.endswith(endings) and 'regularization' not in t]
            assert len(tags) == len(shown) and tags
            for tag in tags:
                (curve,) = figures.curves({tag: {}}, endings)
                np.testing.assert_array_equal(shown[curve.label], points[tag])


def test_every_stage_shows_its_losses_and_accuracies(written: Written) -> None:
    shown = [set(lines(figure)) for figure in written.curve_figures]
    assert shown[0] == {'total, training', 'contrastive, training', 'classifier, training'}
    assert {'top-1, evaluation', 'neighbors, evaluation', 'contrastive, training'} <= shown[1]
    assert shown[2:4] == [{'learning rate'}, {'images per second, training'}]
    assert shown[4] == {'total, training', 'classifier, training'}
    assert {'top-1, evaluation', 'top-5, evaluation', 'classifier, training'} <= shown[5]
    assert 'distillation, training' in shown[8]
    assert {'top-1, evaluation', 'agreement, training'} <= shown[9]


def test_axes_and_legend_of_curves_fit_into_the_figure() -> None:
    tags = [f'eval/{name}' for name in figures._NAMES if name.endswith(figures.ACCURACIES)]
    drawn = figures.curves({tag: {0: 0.1, 5: 0.9} for tag in tags}, figures.ACCURACIES)
    figure = figures.curve_figure(drawn, title='accuracy', share=True)
    figures.to_svg(figure)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('step', 'accuracy')


# --- confusion


def numbers(figure: Figure) -> list[int]:
    return [int(text.get_text()) for text in figure.axes[0].texts]


def test_the_confusion_matrix_is_that_of_the_result(written: Written) -> None:
    (figure,) = written.confusion_figures
    shown = np.reshape(numbers(figure), [10, 10])
    stage = written.stages[-1]
    # The slow reference: the module on one image at a time.
    source, last = source_of(stage), runs.read_run(stage)
    module = predictions.load_module(last)
    expected = np.zeros([10, 10], int)
    for batch in eval_batches(source, last.config.data, split='test[:32]', batch_size=1):
        guess = np.argmax(module(batch['views'][0])['logits_sup'])
        expected[int(batch['label'][0]), guess] += 1
    np.testing.assert_array_equal(shown, expected)
    assert shown.sum() == 32
    accuracy = np.trace(shown) / 32
    assert accuracy == pytest.approx(result(stage)['eval/label_top_1_accuracy'])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(
        source.class_names
    )
    assert f'{np.trace(shown)} of 32 are correct' in written.text


def test_the_confusion_matrix_covers_the_evaluated_batches(stages: list[PlannedRun]) -> None:
    last = runs.read_run(stages[-1])
    settings = dataclasses.replace(last.config.evaluation, eval_steps=1)
    short = dataclasses.replace(last, config=dataclasses.replace(last.config, evaluation=settings))
    found = predictions.study(short, source_of(stages[-1])).confusion
    assert found.counts.sum() == found.read == 20


def test_many_classes_have_no_numbers_and_odd_names_are_kept() -> None:
    few = figures.Confusion(np.arange(9).reshape(3, 3), ['$x$', '<b> & c', 'a' * 40])
    figure = figures.confusion_figure(few)
    assert numbers(figure) == list(range(9))
    svg = figures.to_svg(figure)
    texts = [e.text for e in xml.etree.ElementTree.fromstring(svg).iter() if e.tag.endswith('text')]
    assert {'$x$', '<b> & c'} <= set(texts)
    many = figures.Confusion(np.eye(100, dtype=int), [f'class {i}' for i in range(100)])
    figure = figures.confusion_figure(many)
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_xticks()) <= 40
    absent = figures.Confusion(np.array([[3, 0], [0, 0]]), ['here', 'absent'])
    assert numbers(figures.confusion_figure(absent)) == [3, 0, 0, 0]


# --- neighbors


def test_the_nearest_rows_have_the_highest_cosine() -> None:
    rng = np.random.default_rng(0)
    searched, queries = rng.normal(size=[30, 5]), rng.normal(size=[4, 5])
    found, cosines = predictions.nearest(searched, queries, 6)
    for query, indices, values in zip(queries, found, cosines):
        slow = [
            sum(a * b for a, b in zip(query, row)) / math.hypot(*query) / math.hypot(*row)
            for row in searched
        ]
        order = sorted(range(30), key=lambda i: -slow[i])[:6]
        assert indices.tolist() == order
        np.testing.assert_allclose(values, [slow[i] for i in order])
    assert predictions.nearest(searched[:3], queries, 6)[0].shape == (4, 3)
    assert np.isfinite(predictions.nearest(np.zeros([2, 5]), queries, 2)[1]).all()


def test_neighbors_are_those_of_the_pretrained_encoder(stages: list[PlannedRun]) -> None:
    first, source = runs.read_run(stages[0]), source_of(stages[0])
    module = predictions.load_module(first)

    def examples(split: str) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        for batch in eval_batches(source, first.config.data, split=split, batch_size=1):
            image = batch['views'][0]
            feature = module(image)['final_avg_pool'].numpy()[0]
            pixels = np.rint(255 * image.numpy()[0]).astype(np.uint8)
            yield pixels, int(batch['label'][0]), feature / np.linalg.norm(feature)

    train_examples, test_examples = list(examples('train[:64]')), list(examples('test[:32]'))
    found = predictions.study(first, source).neighborhoods
    labels = [neighborhood.query.label for neighborhood in found]
    assert len(found) == 8 and labels == sorted(set(labels))
    for neighborhood in found:
        # Queries are the first images of their classes.
        query = next(e for e in test_examples if e[1] == neighborhood.query.label)
        np.testing.assert_array_equal(neighborhood.query.pixels, query[0])
        best = sorted(train_examples, key=lambda e: -float(query[2] @ e[2]))[:6]
        cosines = [float(query[2] @ e[2]) for e in best]
        np.testing.assert_allclose(neighborhood.similarities, cosines, atol=1e-5)
        for picture, expected in zip(neighborhood.neighbors, best):
            np.testing.assert_array_equal(picture.pixels, expected[0])
            assert picture.label == expected[1]


@pytest.mark.parametrize(
    ('labels', 'classes', 'chosen'),
    [
        ([1, 1, 0, 1, 0, 0, 0, 1, 1], 2, [2, 4, 5, 6, 0, 1, 3, 7]),
        ([2, 2, 0, 1, 1, 2], 3, [2, 3, 4, 0, 1, 5]),
        ([NO_LABEL] * 12, None, [*range(8)]),
        ([*range(19, -1, -1)], 20, [*range(7, -1, -1)]),
        ([], 3, []),
    ],
)
def test_queries_are_spread_over_classes(
    labels: list[int], classes: int | None, chosen: list[int]
) -> None:
    assert predictions.choose_queries(labels, classes) == chosen


def test_thumbnails_are_small_and_keep_their_colors() -> None:
    assert predictions.thumbnails(np.full([2, 28, 28, 3], 0.5, np.float32)).shape == (2, 28, 28, 3)
    large = predictions.thumbnails(np.full([1, 224, 112, 3], 0.2, np.float32))
    assert large.shape == (1, 96, 48, 3) and np.unique(large) == [51]


# --- the page of a single run


@pytest.fixture(scope='module')
def own_page(stages: list[PlannedRun]) -> str:
    """The page that the pretraining wrote at its end."""
    return (pathlib.Path(stages[0].folder) / 'report.html').read_text()


def rows_after(text: str, heading: str) -> dict[str, list[str]]:
    """First cell of each row → the other cells, of the first table after a heading."""
    body = text[text.index(f'{heading}</h') :].split('<tbody>')[1].split('</tbody>')[0]
    rows = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', line) for line in body.strip().splitlines()]
    return {html.unescape(name): [html.unescape(cell) for cell in cells] for name, *cells in rows}


def test_a_run_ends_with_a_page_whose_numbers_are_its_results(
    stages: list[PlannedRun], own_page: str
) -> None:
    found = {key: value for key, value in result(stages[0]).items() if key.startswith('eval/')}
    shown = rows_after(own_page, 'Results')
    assert len(shown) == len(found)
    assert shown['top-1'][0] == f'{found["eval/label_top_1_accuracy"]:.2%}'
    assert shown['neighbors'][0] == f'{found["eval/knn_accuracy"]:.2%}'
    assert shown['regularization loss'][0] == f'{found["eval/regularization_loss"]:.4g}'
    tiles = re.findall(r'<li><b>(.*?)</b>(.*?)</li>', own_page)
    assert (shown['neighbors'][0], 'by nearest neighbors') in tiles
    assert f'{found["eval/knn_accuracy"]:.2%} of the evaluation images' in own_page
    assert 'Guessing would give 10%' in own_page
    # So few images make one confusion matrix: its classes add up to the accuracy.
    classes = rows_after(own_page, 'Best and worst classes').values()
    images = [int(row[2]) for row in classes]
    right = sum(float(row[1].rstrip('%')) / 100 * count for row, count in zip(classes, images))
    assert sum(images) == 32
    assert right / 32 == pytest.approx(found['eval/label_top_1_accuracy'], abs=1e-4)
    assert list(classes) == sorted(classes, key=lambda row: -float(row[1].rstrip('%')))


def test_the_page_of_a_run_has_its_settings_and_data(
    stages: list[PlannedRun], own_page: str
) -> None:
    settings = rows_after(own_page, 'Settings')
    assert settings['--knn_neighbors'] == ['5', '0', 'flag']
    assert settings['--resnet_depth'] == ['18', '50', 'flag']
    assert settings['--eval_split'] == ['test[:32]', 'validation', 'flag']
    assert '--temperature' not in settings and '--model_dir' not in settings
    described = json.loads((pathlib.Path(stages[0].folder) / 'data.json').read_text())
    assert all(f'<p>{html.escape(line)}</p>' in own_page for line in described['lines'])
    assert 'bundled: 64 training images' in own_page
    counts = rows_after(own_page, 'Labels by class')
    assert list(counts) == list(source_of(stages[0]).class_names) == described['class_names']
    assert sum(int(row[1]) for row in counts.values()) == 64
    assert [int(row[2]) for row in counts.values()] == described['eval']


def test_the_page_of_a_run_has_all_parts_in_order(own_page: str) -> None:
    titles = re.findall(r'<h([1-6])>(.*?)</h', own_page)
    assert [title for level, title in titles if level in '12'] == [
        'Pretraining on bundled',
        'Results',
        'What was trained',
        'Settings',
        'Data',
        'How the training went',
        'Which classes are confused',
        'Nearest neighbors of the encoder',
        'A map of the images',
        'How to go on',
    ]
    levels = [int(level) for level, _ in titles]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - level <= 1 for level, later in itertools.pairwise(levels))
    assert len(images(own_page, 'svg+xml')) == 5 and len(images(own_page, 'webp')) == 1
    legend = own_page[own_page.index('class="legend"') :].split('</ul>')[0]
    assert legend.count('<li>') == 9 and 'Ankle boot' in legend  # no bag among them
    assert all('alt="' in picture for picture in re.findall(r'<img [^>]*>', own_page))
    assert '<script' not in own_page and len(own_page) < 1_000_000
    *_, program = re.findall(r'<pre>(.*?)</pre>', own_page, re.DOTALL)
    compile(html.unescape(program), 'program', 'exec')


# --- the page


def images(text: str, kind: str) -> list[bytes]:
    found = re.findall(rf'src="data:image/{re.escape(kind)};base64,([^"]*)"', text)
    return [base64.b64decode(encoded) for encoded in found]


def test_the_page_has_every_row_of_the_table(written: Written, rows: list[report.Row]) -> None:
    body = written.text.split('<tbody>')[1].split('</tbody>')[0]
    lines = body.strip().splitlines()
    assert len(lines) == 3
    for line, row in zip(lines, rows):
        accuracy = next(result(s) for s in written.stages if s.title == row.title)
        assert f'>{100 * accuracy["eval/label_top_1_accuracy"]:.2f}%</td>' in line
        assert f'>{row.parameters:,}</td>' in line
        assert f'>{runs.duration(row.seconds)}</td>' in line
    assert '20 (through the teacher)' in lines[2]
    assert 'a linear classifier trained alongside on all labels' in written.text
    assert f'nearest neighbors {result(written.stages[0])["eval/knn_accuracy"]:.2%}' in written.text


def test_the_page_has_every_figure(written: Written) -> None:
    drawings = images(written.text, 'svg+xml')
    assert len(drawings) == 4 * 3 + 1
    texts = [
        {e.text for e in xml.etree.ElementTree.fromstring(svg).iter() if e.tag.endswith('text')}
        for svg in drawings
    ]
    for shown, figure in zip(texts, written.curve_figures):
        assert set(lines(figure)) <= shown
    assert {'Ankle boot', 'true class', 'predicted class'} <= texts[-1]
    # Eight pairs or single views a stage; eight rows of one and six images.
    sizes = [tf.io.decode_png(png).shape.as_list() for png in images(written.text, 'png')]
    assert sizes == [[28, 56, 3]] * 8 + [[28, 28, 3]] * 16 + [[28, 28, 3]] * 8 * 7
    cells = re.findall(r'<div class="(right|wrong)">.*?>(✓|✗) ', written.text)
    assert len(cells) == 48 and {*cells} <= {('right', '✓'), ('wrong', '✗')}


def test_sample_views_are_those_the_run_recorded(written: Written) -> None:
    (path, *_) = sorted(pathlib.Path(written.stages[0].folder).glob('*.tfevents.*'))
    recorded_images = EventAccumulator(str(path), {'tensors': 0}).Reload().Tensors('train/views')
    strips = list(recorded_images[0].tensor_proto.string_val[2:])
    for shown, strip in zip(images(written.text, 'png'), strips):
        np.testing.assert_array_equal(tf.io.decode_png(shown), tf.io.decode_png(strip, 3))


def test_large_views_are_reduced(stages: list[PlannedRun]) -> None:
    strip = np.concatenate([np.full([224, 224, 3], v, np.uint8) for v in (40, 200)], axis=1)
    recorded_run = runs.read_run(stages[0])
    recorded_events = dataclasses.replace(
        recorded_run.events, views=[tf.io.encode_png(strip).numpy()]
    )
    text = training_part.views(dataclasses.replace(recorded_run, events=recorded_events))
    (shown,) = images(text, 'jpeg')
    pixels = tf.io.decode_jpeg(shown).numpy().astype(int)
    assert pixels.shape == (96, 192, 3)
    assert abs(pixels[:, :90] - 40).max() <= 2 and abs(pixels[:, 102:] - 200).max() <= 2
    assert 'small' not in text and 'two random views' in text


def test_views_of_several_sizes_are_shown_completely() -> None:
    sizes, values = (32, 32, 16, 16, 16), (0.2, 0.4, 0.6, 0.8, 1.0)
    views = [tf.fill([1, size, size, 3], value) for size, value in zip(sizes, values)]
    strip = tf.image.convert_image_dtype(train.side_by_side(views)[0], tf.uint8)
    events = types.SimpleNamespace(views=[tf.io.encode_png(strip).numpy()])
    planned_run = planned('Pretraining', pathlib.Path('m'))
    text = training_part.views(types.SimpleNamespace(events=events, planned=planned_run))
    (shown,) = images(text, 'png')
    squares = np.split(tf.io.decode_png(shown).numpy(), 5, axis=1)
    for square, size, value in zip(squares, sizes, values, strict=True):
        expected = np.zeros([32, 32, 3])
        expected[:size, :size] = 255 * value
        np.testing.assert_allclose(square, expected, atol=1)
    assert '5 random views' in text and 'single' not in text


def test_the_page_is_self_contained(written: Written) -> None:
    targets = re.findall(r'(?:src|href|data|action)\s*=\s*["\']?([^"\'>\s]*)', written.text)
    assert targets and all(target.startswith('data:image/') for target in targets)
    assert '<script' not in written.text and 'url(' not in written.text
    assert '@import' not in written.text
    assert len(written.text) < 3_000_000


def test_every_image_has_an_alt_text(written: Written) -> None:
    pictures = re.findall(r'<img [^>]*>', written.text)
    assert len(pictures) == 13 + 24 + 56 + 1
    assert all(re.search(r'alt="[^"]{10,}"', picture) for picture in pictures)
    assert written.text.count('<figcaption>') == 4 * 3 + 3 + 1 + 1 + 1


def test_commands_and_names_are_escaped(written: Written) -> None:
    assert '&#x27;--data_dir=a &lt;b&gt; &amp; c&#x27;</pre>' in written.text
    for stage in written.stages:
        assert f'<pre>{html.escape(stage.command)}</pre>' in written.text
    assert '<few>' not in written.text and 'Fine-tuning &lt;few&gt;' in written.text


def without_labels(source: Source) -> Source:
    def examples(split: str) -> tf.data.Dataset:
        return source.examples(split).map(lambda e: {**e, 'label': tf.constant(NO_LABEL)})

    return dataclasses.replace(source, num_classes=None, class_names=None, examples=examples)


@pytest.mark.parametrize('classes', [None, 10], ids=['no classes', 'classes, no labels'])
def test_without_labels_the_page_says_what_is_missing(
    stages: list[PlannedRun],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    classes: int | None,
) -> None:
    source = without_labels(source_of(stages[0]))
    source = dataclasses.replace(source, num_classes=classes)
    monkeypatch.setattr(page, 'open_source', lambda config: source)
    report.write_report(str(tmp_path / 'report.html'), stages[:1])
    text = (tmp_path / 'report.html').read_text()
    assert 'There is no confusion matrix: it takes labels' in text
    assert '✓' not in text and '✗' not in text
    assert len(images(text, 'png')) == 8 + 56


def test_a_stage_without_module_and_accuracy_has_a_page(
    stages: list[PlannedRun], tmp_path: pathlib.Path
) -> None:
    flags = (pathlib.Path(stages[0].folder) / 'flags.json').read_bytes()
    (tmp_path / 'flags.json').write_bytes(flags)
    report.write_report(str(tmp_path / 'report.html'), [planned('Bare', tmp_path)])
    text = (tmp_path / 'report.html').read_text()
    assert text.count('Bare exported no network.') == 3
    assert 'This stage wrote no curves.' in text and 'was not evaluated' in text
    assert 'hub.load' not in text
    assert not images(text, 'png') and not images(text, 'svg+xml')


def test_a_run_without_an_evaluation_split_has_a_page(
    stages: list[PlannedRun], tmp_path: pathlib.Path
) -> None:
    """A run that only trains need not have one."""
    run_folder = pathlib.Path(stages[0].folder)
    flags = json.loads((run_folder / 'flags.json').read_text())
    (tmp_path / 'flags.json').write_text(json.dumps({**flags, 'eval_split': 'validation'}))
    (tmp_path / 'saved_model').symlink_to(run_folder / 'saved_model')
    report.write_report(str(tmp_path / 'report.html'), [planned('Pretraining', tmp_path)])
    text = html.unescape((tmp_path / 'report.html').read_text())
    assert text.count("There are no images in 'validation' to look at; --eval_split names") == 3
    assert '64 training images (train[:64]) and 0 for evaluation' in text


def test_a_report_that_cannot_be_made_leaves_the_old_one(
    stages: list[PlannedRun], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    def refuse(config: object) -> None:
        raise UserError('gone')

    path = tmp_path / 'report.html'
    path.write_text('old')
    monkeypatch.setattr(page, 'open_source', refuse)
    with pytest.raises(UserError, match='gone'):
        report.write_report(str(path), stages)
    assert path.read_text() == 'old' and [*tmp_path.iterdir()] == [path]
    with pytest.raises(UserError, match='at least one run'):
        report.write_report(str(path), [])


def test_a_report_prepares_no_data_set_that_only_a_record_names(
    stages: list[PlannedRun], tmp_path: pathlib.Path
) -> None:
    values = json.loads((pathlib.Path(stages[0].folder) / 'flags.json').read_text())
    (tmp_path / 'flags.json').write_text(json.dumps({**values, 'dataset': 'huggingface:mnist'}))
    with pytest.raises(UserError, match='must be prepared already'):
        report.write_report(str(tmp_path / 'report.html'), [planned('Pretraining', tmp_path)])
    assert not (tmp_path / 'report.html').exists()
