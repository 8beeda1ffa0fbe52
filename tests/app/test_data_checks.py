"""Data are checked before anything is trained or written."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import types
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

import run
from app import data_checks, experiment, train
from app.assembly import network
from app.classes import check_recorded
from app.config.resolution import from_values, resolve
from app.config.schema import to_values
from app.experiment import Experiment
from app.planned_run import PlannedRun
from app.presets import PRESETS
from app.run_folder import write_flags
from common.errors import UserError
from data import sources
from data.config import DataConfig
from data.labels import read_labels, relabeled
from data.sources.image_folder import open_image_folder
from data.sources.source import Source
from hub_export import publish, read_record
from tests.support import mirrored, no_checker
from tf2.checkpoints import recorded_in
from tf2.weights import open_weights

NAMES = ('cat', 'dog', 'owl')
OTHER_ORDER = ('owl', 'cat', 'dog')
TINY = ('--resnet_depth=18', '--width_multiplier=0.125', '--image_size=8', '--use_blur=False')


def write_images(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    """Writes noise whose brightness depends on the folder's name."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    level = 20 + 90 * NAMES.index(folder.name) if folder.name in NAMES else 100
    for number in range(count):
        pixels = rng.integers(level, level + 40, (9, 9, 3)).astype(np.uint8)
        (folder / f'{number}.png').write_bytes(tf.io.encode_png(pixels).numpy())


@pytest.fixture(scope='module')
def pets(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folders of images: train and test with labels, few without owls, plain without labels."""
    root = tmp_path_factory.mktemp('pets')
    for name in NAMES:
        write_images(root / 'train' / name, 8)
        write_images(root / 'test' / name, 4, seed=1)
    for name in NAMES[:2]:
        write_images(root / 'few' / name, 8)
    write_images(root / 'plain', 20)
    return root


@pytest.fixture
def prepare(pets: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., Experiment]:
    """Prepares a run on `pets`, without training it."""

    def prepared(**given) -> Experiment:
        given = {
            'dataset': 'image_folder',
            'data_dir': str(pets),
            'eval_split': 'test',
            'model_dir': str(tmp_path / 'run'),
            'mode': 'train_then_eval',
            **given,
        }
        return experiment.prepare(resolve(given, PRESETS), given)

    return prepared


def main(*arguments: str) -> str:
    """Runs the program in this process; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert run.main(['run.py', *arguments]) == 0
    return shown.getvalue()


# --- labels are a matter of the split


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'train_mode': 'finetune'}, "needs labels; none of the 20 images in 'plain' of image_fol"),
        (
            {'train_mode': 'distill', 'teacher': 'x', 'distill_alpha': 0.5},
            r'--distill_alpha=0\.5 gives weight to labels; none of the 20 images',
        ),
        (
            {'train_mode': 'finetune', 'train_split': 'few'},
            "'few' of image_folder has no example of owl, which 'test' has",
        ),
        ({'train_mode': 'finetune', 'train_split': 'train', 'labels_per_class': 9}, 'at most 8'),
    ],
    ids=['fine-tuning', 'distillation', 'a class that only the evaluation has', 'too many'],
)
def test_stages_that_learn_from_labels_need_them_in_their_split(
    prepare: Callable, given: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepare(**{'train_split': 'plain', **given})


def test_pretraining_without_labels_in_its_split_has_no_classifier(prepare: Callable) -> None:
    """The other split has labels, but an untrained classifier must not be evaluated."""
    prepared = prepare(train_split='plain', knn_neighbors=3)
    assert prepared.num_classes is None and prepared.class_names is None
    assert not prepared.data.finds_neighbors
    assert "No image in 'plain' has a label: there is no online classifier" in str(
        prepared.data.notes
    )
    assert prepared.data.describe() == (
        'image_folder: 20 training images, no labels; 12 to evaluate on, 3 classes of 4.'
    )


def test_an_untrained_classifier_of_an_older_run_is_kept_and_not_evaluated(
    prepare: Callable, tmp_path: pathlib.Path
) -> None:
    """An older release created one, so checkpoints contain its variables."""
    given = {'train_split': 'plain', 'image_size': 8, 'train_epochs': 2}
    config = prepare(**given).config
    (tmp_path / 'run').mkdir()
    write_flags(str(tmp_path / 'run'), config, {'num_classes': 3})
    (tmp_path / 'run' / 'ckpt-1.index').touch()
    prepared = prepare(**given)
    assert prepared.num_classes == 3
    assert 'there is no online classifier' in str(prepared.data.notes)


@pytest.mark.parametrize('split', ['train', 'train[:100%]', 'train+test'])
def test_an_evaluation_on_the_training_split_is_of_all_its_images(
    prepare: Callable, split: str
) -> None:
    """Even if few of their labels are trained on; neighbors are searched among those."""
    data = prepare(
        train_mode='finetune',
        train_split=split,
        eval_split=split,
        labels_per_class=1,
    ).data
    assert data.train_examples == data.train_labels.examples == len(data.subset.indices)
    whole = data.evaluated.num_examples(split)
    assert data.eval_labels.examples == whole > data.train_examples
    counts = [sum(1 for _ in source.examples(split)) for source in (data.evaluated, data.source)]
    assert counts == [whole, data.train_examples]


def test_classes_that_only_the_evaluation_split_has_are_noted(prepare: Callable) -> None:
    prepared = prepare(train_split='few')
    assert "'few' has no example of owl, which 'test' has" in str(prepared.data.notes)
    assert prepared.num_classes == 3
    whole = prepare()
    assert not [note for note in whole.data.notes if 'Sized' not in note]


@pytest.mark.usefixtures('plain')
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_an_evaluation_without_labels_measures_what_needs_none(
    prepare: Callable, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """It used to fail after the training."""
    monkeypatch.setattr(train.hub_export, 'export_module', lambda *_, **__: 'nowhere')
    monkeypatch.setattr(train, '_write_sample_views', lambda *_: None)
    prepared = prepare(
        train_mode=stage,
        eval_split='plain',
        train_steps=1,
        resnet_depth=18,
        width_multiplier=0.125,
        image_size=8,
        knn_neighbors=5,
        **({'color_jitter_strength': 0, 'use_blur': False} if stage == 'pretrain' else {}),
    )
    assert prepared.num_classes == 3
    assert "No image in 'plain' has a label: there is no accuracy." in prepared.data.notes
    planned = PlannedRun('Pretraining', {'model_dir': prepared.config.output.model_dir})
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        train.train(prepared, planned, evaluate=True, stop=run.Stop())
    assert shown.getvalue().index('No image in') < shown.getvalue().index('Step 1')
    results = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert {name for name in results if 'label' in name or 'knn' in name} == set()
    assert 'eval/regularization_loss' in results


def test_labels_of_minus_one_do_not_count(
    prepare: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a data set with classes, if some or all labels of a split are -1."""

    def without(count: int) -> None:
        def open_some(config):
            source = open_image_folder(config)

            def labels(split: str):
                (numbers,) = source.labels(split)
                return iter([np.where(np.arange(len(numbers)) < count, -1, numbers)])

            return data_checks.dataclasses.replace(source, labels=labels)

        monkeypatch.setattr(sources, 'load', lambda path: open_some)

    without(20)
    prepared = prepare(train_mode='finetune', knn_neighbors=0, eval_split='train')
    assert '; 20 without a label' in prepared.data.describe()
    with pytest.raises(UserError, match='searched, 4; found 5'):
        prepare(knn_neighbors=5, eval_split='train')
    without(24)
    with pytest.raises(UserError, match='none of the 24 images'):
        prepare(train_mode='finetune', eval_split='train')
    assert prepare(eval_split='train').num_classes is None


# --- sizes fit the data


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ({'train_mode': 'finetune'}, {'train_batch_size': (512, 24)}),
        ({'train_mode': 'finetune', 'labels_per_class': 2}, {'train_batch_size': (512, 6)}),
        ({'preset': 'finetune_1pct', 'label_fraction': 0.5}, {'train_batch_size': (1024, 12)}),
        (
            {'preset': 'demo', 'data_dir': None},
            {'train_batch_size': (128, 24), 'knn_neighbors': (200, 24)},
        ),
        ({}, {'eval_batch_size': (256, 12), 'train_batch_size': (512, 24)}),
        ({'train_batch_size': 8, 'eval_batch_size': 500}, {}),
    ],
    ids=str,
)
def test_default_sizes_are_adapted_to_small_data_sets_with_a_note(
    prepare: Callable, pets: pathlib.Path, given: dict, expected: dict
) -> None:
    prepared = prepare(**{**given, 'data_dir': str(pets)})
    for name, (asked, fitting) in expected.items():
        assert to_values(prepared.config)[name] == fitting
        assert f'--{name}={fitting} instead of {asked}' in prepared.data.notes[0]
    if not expected:
        assert prepared.config.evaluation.eval_batch_size == 500
        assert 'batch_size' not in str(prepared.data.notes)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'train_batch_size': 25}, 'must be at most the number of training examples, 24'),
        (
            {'train_mode': 'finetune', 'labels_per_class': 1, 'train_batch_size': 4},
            'examples, 3 in .* with a label that was chosen; found 4',
        ),
        ({'knn_neighbors': 25}, '--knn_neighbors must be at most .* 24; found 25'),
        ({'train_split': 'train[:1]'}, '--train_batch_size must be at least 2'),
    ],
)
def test_given_sizes_that_do_not_fit_are_refused(
    prepare: Callable, given: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepare(**given)


@pytest.mark.parametrize('queue', ['memory_size', 'queue_size'])
@pytest.mark.parametrize(
    ('examples', 'replicas', 'size', 'parts', 'batch'),
    [
        (22, 1, 0, 1, 22),
        (22, 4, 0, 1, 20),
        (22, 1, 64, 1, 16),
        (22, 3, 72, 1, 18),
        (3, 4, 0, 1, 0),
        (22, 2, 0, 4, 20),
    ],
)
def test_an_adapted_batch_suits_replicas_queues_and_parts(
    examples: int,
    replicas: int,
    size: int,
    parts: int,
    batch: int,
    queue: str,
    tmp_path: pathlib.Path,
) -> None:
    queues = {'memory_size': 0, 'queue_size': 0, queue: size}
    config = types.SimpleNamespace(
        learning=types.SimpleNamespace(**queues, norm_parts=parts),
        output=types.SimpleNamespace(model_dir=str(tmp_path)),
    )
    assert data_checks._batch_for(config, examples, replicas) == batch
    # A resumed run keeps its batch size, here one for four replicas.
    (tmp_path / 'ckpt-1.index').touch()
    (tmp_path / 'flags.json').write_text('{"train_batch_size": 12}')
    again = data_checks._batch_for(config, 22, 1)
    assert again == (12 if size % 12 == 0 else batch)


def test_small_data_sets_are_not_evaluated_at_every_step(prepare: Callable) -> None:
    prepared = prepare(train_mode='finetune', train_epochs=100)
    assert (prepared.total_steps, prepared.checkpoint_steps) == (101, 6)
    assert '--checkpoint_steps=6 instead of 1' in prepared.data.notes[0]
    for asked in ({'checkpoint_epochs': 1}, {'checkpoint_steps': 1}):
        assert prepare(train_mode='finetune', train_epochs=100, **asked).checkpoint_steps == 1
    assert prepare(train_mode='finetune', train_epochs=15).checkpoint_steps == 1


# --- what can't be written is found out before


@pytest.mark.parametrize(
    ('kind', 'path', 'given', 'words'),
    [
        ('file', 'saved_model', {}, 'saved_model is a file'),
        ('file', 'again', {'eval_name': 'again'}, 'again is a file'),
        ('link', 'saved_model', {}, 'saved_model is a file'),
        ('folder', 'result.json', {}, 'result.json in it must be a file'),
        ('folder', 'flags.json', {}, 'flags.json in it must be a file'),
        ('folder', 'checkpoint', {}, 'checkpoint in it must be a file'),
    ],
)
def test_the_places_of_results_and_modules_are_checked_first(
    prepare: Callable, tmp_path: pathlib.Path, kind: str, path: str, given: dict, words: str
) -> None:
    """Otherwise a run would fail after all of its work."""
    place = tmp_path / 'run' / path
    place.parent.mkdir()
    make = {'file': place.touch, 'folder': place.mkdir, 'link': lambda: place.symlink_to('gone')}
    make[kind]()
    with pytest.raises(UserError, match=words):
        prepare(**given)


@pytest.mark.parametrize('name', ['report.html', 'pipeline.json'])
def test_a_pipeline_checks_the_place_of_its_report_first(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    (tmp_path / name).mkdir()
    assert run.main(['run.py', '--mode=pipeline', '--preset=demo', f'--model_dir={tmp_path}']) == 2
    assert f'{name} in it must be a file' in capsys.readouterr().err


# --- class names


@pytest.fixture(scope='module')
def trained(
    plain: None, pets: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The folder of a trained classifier of `pets`."""
    model_dir = tmp_path_factory.mktemp('trained') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, '_checker', no_checker)
        data = ('--dataset=image_folder', f'--data_dir={pets}', '--eval_split=test')
        length = ('--train_steps=12', '--optimizer=adam', '--learning_rate=0.05')
        main(
            '--mode=train_then_eval',
            '--train_mode=finetune',
            f'--model_dir={model_dir}',
            *TINY[:3],
            *data,
            *length,
            '--train_batch_size=24',
            '--warmup_epochs=0',
            '--checkpoint_steps=6',
        )
    return model_dir


@pytest.fixture
def in_other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images and classes in another order."""

    def open_relabeled(config: DataConfig) -> Source:
        return relabeled(open_image_folder(config), OTHER_ORDER)

    monkeypatch.setattr(sources, 'load', lambda path: open_relabeled)


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images; the first class has another name, which makes it the last one."""

    def open_renamed(config):
        source = open_image_folder(config)
        named = data_checks.dataclasses.replace(source, class_names=('zebra', 'dog', 'owl'))
        return relabeled(named, ('dog', 'owl', 'zebra'))

    monkeypatch.setattr(sources, 'load', lambda path: open_renamed)


def test_class_names_go_with_checkpoints_settings_and_modules(trained: pathlib.Path) -> None:
    assert json.loads((trained / 'flags.json').read_text())['class_names'] == [*NAMES]
    assert recorded_in(str(trained / 'ckpt-6'))['class_names'] == [*NAMES]
    assert tuple(read_record(str(trained / 'saved_model' / '12')).class_names) == NAMES
    for place in ('', 'ckpt-6', 'saved_model/12'):
        assert open_weights(str(trained / place)).class_names == NAMES


@pytest.mark.usefixtures('in_other_order')
def test_an_evaluation_orders_classes_as_the_run_does(trained: pathlib.Path) -> None:
    shown = main('--mode=eval', f'--model_dir={trained}', '--eval_name=other')
    assert (
        f'Classes are numbered as in --model_dir={trained}: cat, dog, owl; image_folder has owl, '
        'cat, dog.'
    ) in shown
    expected = json.loads((trained / 'result.json').read_text())
    found = json.loads((trained / 'other' / 'result.json').read_text())
    name = 'eval/label_top_1_accuracy'
    assert found[name] == expected[name] > 0.5  # by chance: a third


def stages_after(trained: pathlib.Path) -> dict[str, dict]:
    """Flags of runs that read the classes of `trained`."""
    copied = {'resnet_depth': 18, 'width_multiplier': 0.125, 'image_size': 8}
    tuning = {'train_mode': 'finetune', **copied, 'optimizer': 'adam', 'learning_rate': 0.05}
    return {
        'resume': {
            **tuning,
            'model_dir': str(trained),
            'train_steps': 12,
            'train_batch_size': 24,
            'warmup_epochs': 0.0,
            'checkpoint_steps': 6,
        },
        'distillation': {'train_mode': 'distill', 'teacher': str(trained), **copied},
        'checkpoint': {'train_mode': 'finetune', 'checkpoint': str(trained)},
        'module': {'train_mode': 'finetune', 'checkpoint': f'{trained}/saved_model/12'},
        'pretraining': {'checkpoint': str(trained)},
    }


@pytest.mark.parametrize('stage', ['resume', 'distillation', 'checkpoint', 'module', 'pretraining'])
@pytest.mark.usefixtures('in_other_order')
def test_the_order_of_classes_follows_the_first_that_names_them(
    prepare: Callable, trained: pathlib.Path, stage: str
) -> None:
    prepared = prepare(**{**stages_after(trained)[stage], 'eval_split': 'test[:5]'})
    assert prepared.class_names == NAMES and prepared.source.class_names == NAMES
    assert [note for note in prepared.data.notes if note.startswith('Classes are numbered as in')]
    assert prepared.classifier_mismatch is None
    # What is printed about the labels goes with the new order of the names.
    labels = read_labels(prepared.data.evaluated, 'test[:5]')
    assert prepared.data.record()['eval'] == np.bincount(labels, minlength=3).tolist()


@pytest.mark.parametrize('stage', ['resume', 'distillation'])
@pytest.mark.usefixtures('renamed')
def test_other_classes_than_those_of_the_run_or_teacher_are_refused(
    prepare: Callable, trained: pathlib.Path, stage: str
) -> None:
    with pytest.raises(UserError, match='cat, dog, owl; found dog, owl, zebra'):
        prepare(**stages_after(trained)[stage])


@pytest.mark.usefixtures('renamed')
def test_an_evaluation_on_other_classes_is_refused(
    trained: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert run.main(['run.py', '--mode=eval', f'--model_dir={trained}']) == 2
    shown = capsys.readouterr().err
    assert 'cat, dog, owl; found dog, owl, zebra' in shown and shown.count('\n') == 1


@pytest.mark.parametrize('stage', ['checkpoint', 'module', 'pretraining'])
@pytest.mark.usefixtures('renamed')
def test_a_classifier_of_other_classes_is_left_out_with_a_message(
    prepare: Callable, trained: pathlib.Path, stage: str
) -> None:
    prepared = prepare(**stages_after(trained)[stage])
    assert prepared.class_names == ('dog', 'owl', 'zebra')
    model = network(prepared.config, prepared.num_classes)
    report = train._load_weights(prepared, model)
    assert 'classifier: its classes are cat, dog, owl; found dog, owl, zebra' in report.line()
    assert not [name for name in report.loaded if 'supervised_head' in name]


@pytest.mark.usefixtures('in_other_order')
def test_folders_without_class_names_are_compared_by_their_number(
    prepare: Callable, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Folders of an older release have none."""
    older = tmp_path / 'older'
    older.mkdir()
    for file in trained.glob('ckpt-12*'):
        (older / file.name).write_bytes(file.read_bytes())
    flags = json.loads((trained / 'flags.json').read_text())
    del flags['class_names']
    (older / 'flags.json').write_text(json.dumps(flags))
    prepared = prepare(**{**stages_after(trained)['resume'], 'model_dir': str(older)})
    assert prepared.class_names == OTHER_ORDER  # the order of the data
    # The checkpoint takes precedence over the settings beside it.
    with pytest.raises(UserError, match='in the same order: cat, dog, owl; found owl, cat, dog'):
        check_recorded(prepared.class_names, 'ckpt-12', recorded_in(str(older / 'ckpt-12')))
    check_recorded(prepared.class_names, 'ckpt-12', None)
    check_recorded(prepared.class_names, 'ckpt-12', {'examples_seen': 1})


def test_an_export_keeps_the_class_names(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, '_checker', no_checker)
        main('--mode=export', f'--checkpoint={trained}/ckpt-6', f'--model_dir={tmp_path / "x"}')
    assert tuple(read_record(str(tmp_path / 'x' / 'saved_model' / '6')).class_names) == NAMES


def test_batches_over_replicas_fit_too(prepare: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.distribution, 'build_strategy', lambda config: mirrored(4))
    prepared = prepare(train_split='train[:22]', eval_split='test[:10]', train_mode='finetune')
    assert prepared.config.train.train_batch_size == 20
    assert prepared.config.evaluation.eval_batch_size == 12


@pytest.mark.parametrize(
    ('begun', 'given', 'taken'),
    [(True, 'auto', '-1..1'), (False, 'auto', 'auto'), (True, '0..1', '0..1')],
)
def test_a_resumed_run_keeps_its_range_of_images(
    begun: bool, given: str, taken: str, tmp_path: pathlib.Path
) -> None:
    """The recorded range is used, if the run has checkpoints; a given one is compared later."""
    values = {'model_dir': str(tmp_path), 'dataset': 'mnist'}
    write_flags(str(tmp_path), from_values({**values, 'image_range': '-1..1'}), {})
    if begun:
        (tmp_path / 'ckpt-3.index').write_bytes(b'')
    config = from_values({**values, 'image_range': given})
    assert experiment._with_recorded_range(config).data.image_range == taken
