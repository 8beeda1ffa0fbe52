"""Evaluations on samples during pretraining, which must not affect training."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

import run
from app import evaluate, splits
from app.planned_run import PlannedRun
from app.report import measurements, page, runs
from common.interruption import Stop
from tf2.evaluators import EVALUATORS

NAMES = [name for name, entry in EVALUATORS.items() if 'teacher' not in entry.needs]
TINY = (
    '--dataset=bundled',
    '--train_split=train[:64]',
    '--eval_split=test[:32]',
    '--resnet_depth=18',
    '--width_multiplier=0.125',
    '--image_size=8',
    '--train_batch_size=16',
    '--eval_batch_size=8',
    '--train_steps=6',
    '--checkpoint_steps=2',
    '--train_summary_steps=3',
    '--keep_checkpoint_max=1',
    '--knn_neighbors=3',
    '--color_jitter_strength=0',
    '--use_blur=False',
)


@pytest.fixture(scope='module', autouse=True)
def quick(plain: None, known_labels: None, bare_runs: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, 'SAMPLE', 16)
        yield


def main(folder: pathlib.Path, *flags: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert run.main(['run.py', f'--model_dir={folder}', *flags]) == 0
    return shown.getvalue()


@pytest.fixture(scope='module')
def finished(quick: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """The folder of a run with all evaluators and an unlimited budget, and what it printed."""
    folder = tmp_path_factory.mktemp('samples') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, 'SHARE_OF_TIME', 1e9)
        chosen = f'--evaluators={",".join(NAMES)}'
        return folder, main(folder, *TINY, '--mode=train_then_eval', chosen)


def numbers(path: pathlib.Path) -> dict[str, float]:
    return {name: value for name, value in json.loads(path.read_text()).items() if '/' in name}


def test_samples_are_evaluated_at_summaries_and_checkpoints(
    finished: tuple[pathlib.Path, str],
) -> None:
    folder, shown = finished
    assert sorted(path.name for path in folder.glob('result*')) == [
        'result.json',
        *(f'result_{step}.json' for step in (2, 3, 4, 6)),
    ]
    final = numbers(folder / 'result.json')
    measured = {
        'eval/label_top_1_accuracy',
        'eval/label_top_5_accuracy',
        'eval/knn_accuracy',
        'eval/probe_accuracy',
        'eval/mean_per_class_accuracy',
        'eval/alignment',
        'eval/uniformity',
        'eval/effective_rank',
    }
    assert final.keys() == {*measured, 'eval/regularization_loss'}
    for step in (2, 3, 4):
        on_sample = numbers(folder / f'result_{step}.json')
        assert on_sample.keys() == {name.replace('eval/', 'eval/sample/') for name in measured}
        # Of 16 images, in two batches.
        top_1 = on_sample['eval/sample/label_top_1_accuracy']
        assert 16 * top_1 == pytest.approx(round(16 * top_1))
        assert f"Step {step} on a sample of 'test[:32]' of bundled: eval/sample/label" in shown
    details = json.loads((folder / 'details.json').read_text())
    assert details['global_step'] == 6
    assert np.sum(details['eval/confusion_matrix']) == 32
    top_1 = np.trace(details['eval/confusion_matrix']) / 32
    assert final['eval/label_top_1_accuracy'] == pytest.approx(top_1)


def test_sample_results_are_in_tensorboard(finished: tuple[pathlib.Path, str]) -> None:
    scalars = runs.read_events(str(finished[0])).scalars
    for step, prefix in [(2, 'eval/sample/'), (4, 'eval/sample/'), (6, 'eval/')]:
        for name, value in numbers(finished[0] / f'result_{step}.json').items():
            assert name.startswith(prefix)
            assert scalars[name][step] == pytest.approx(value, rel=1e-6)


def test_the_report_shows_the_numbers_of_the_result(finished: tuple[pathlib.Path, str]) -> None:
    folder = finished[0]
    found = runs.read_run(PlannedRun('Pretraining', {'model_dir': str(folder)}))
    text = page._measured(found)
    result = numbers(folder / 'result.json')
    for name, label in [
        ('label_top_1_accuracy', 'top-1'),
        ('knn_accuracy', 'neighbors'),
        ('probe_accuracy', 'linear probe'),
        ('mean_per_class_accuracy', 'class mean'),
    ]:
        assert f'{label} {100 * result[f"eval/{name}"]:.2f}%' in text
    for name in ('alignment', 'uniformity', 'effective rank'):
        assert f'{name} {result["eval/" + name.replace(" ", "_")]:.4g}' in text
    shares = json.loads((folder / 'details.json').read_text())['eval/per_class_accuracy']
    assert shares
    for name, share in shares.items():
        assert f'{name} {100 * share:.2f}%' in text
    # During the run, results on samples are labeled as such.
    on_the_way = measurements.numbers(numbers(folder / 'result_2.json'))
    assert 'linear probe, sample' in on_the_way
    assert measurements.by_class({}) == ''


def test_a_separate_evaluation_has_the_same_results(finished: tuple[pathlib.Path, str]) -> None:
    folder = finished[0]
    main(folder, '--mode=eval', '--evaluators=rank,alignment', '--eval_name=again')
    again, first = numbers(folder / 'again' / 'result.json'), numbers(folder / 'result.json')
    names = {'eval/effective_rank', 'eval/alignment', 'eval/regularization_loss'}
    assert again.keys() == names
    for name in names:
        assert again[name] == pytest.approx(first[name], rel=1e-4)


def test_without_time_left_no_sample_is_evaluated_and_training_is_the_same(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, 'SHARE_OF_TIME', -1.0)
    shown = main(tmp_path, *TINY, '--mode=train_then_eval', '--evaluators=knn,rank')
    assert 'a sample of' not in shown and 'eval/effective_rank' in shown
    assert sorted(path.name for path in tmp_path.glob('result*')) == [
        'result.json',
        'result_6.json',
    ]
    readers = [tf.train.load_checkpoint(f'{folder}/ckpt-6') for folder in (finished[0], tmp_path)]
    keys = set(readers[0].get_variable_to_shape_map())
    assert keys == set(readers[1].get_variable_to_shape_map())
    for key in keys:
        values = [np.asarray(reader.get_tensor(key)) for reader in readers]
        if values[0].dtype.kind in 'fi':  # the record is text and contains times
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6, err_msg=key)


def test_a_signal_ends_a_sample() -> None:
    stop = Stop()
    batches = splits._until(stop, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    stop.number = 15
    with pytest.raises(splits.GivenUpError):
        next(batches)
