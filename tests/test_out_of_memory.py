"""Exhausted memory in a step, an evaluation or an export ends in one line."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import tensorflow as tf

import hub_export
import run
from tf2.config import EvaluationConfig, TrainConfig
from tf2.evaluators import classification
from tf2.files import checkpoints_in
from tf2.out_of_memory import advice_for, is_out_of_memory
from tf2.trainer import Trainer

pytestmark = pytest.mark.usefixtures('plain', 'known_labels')

TINY = (
    *('--resnet_depth=18', '--width_multiplier=0.05', '--image_size=8', '--preset=demo'),
    *('--train_batch_size=16', '--eval_batch_size=32', '--train_steps=1', '--knn_neighbors=0'),
    *('--warmup_epochs=0', '--mixed_precision=float32'),
)
ALLOCATOR = 'OOM when allocating tensor with shape[9] by allocator GPU_0_bfc [Op:Conv2D]'
ERRORS = {
    'an allocator': tf.errors.ResourceExhaustedError(None, None, ALLOCATOR),
    'XLA': tf.errors.InternalError(None, None, 'Out of memory while trying to allocate 9 bytes.'),
    'CUDA': tf.errors.UnknownError(None, None, 'CUDA_ERROR_OUT_OF_MEMORY: out of memory'),
    'the host': MemoryError('Unable to allocate 9 GiB'),
}
OTHERS = {
    'a full disk': tf.errors.ResourceExhaustedError(None, None, 'ckpt; No space left on device'),
    'a message': tf.errors.ResourceExhaustedError(None, None, 'Received message larger than max'),
    'another fault': tf.errors.InternalError(None, None, 'Blas GEMM launch failed'),
    'Python': ValueError('out of memory'),
}


@pytest.mark.parametrize(('errors', 'expected'), [(ERRORS, True), (OTHERS, False)])
def test_exhausted_memory_is_distinguished_from_other_exhausted_resources(
    errors: dict[str, Exception], expected: bool
) -> None:
    for what, error in errors.items():
        assert is_out_of_memory(error) is expected, what


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.usefixtures('bare_runs')
@pytest.mark.parametrize('what', ['an allocator', 'the host'])
def test_a_step_out_of_memory_gives_advice(
    what: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(Trainer, '_run_steps', raising(ERRORS[what]))
    assert run.main(['run.py', f'--model_dir={tmp_path}', *TINY]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'error: The training must fit into memory, but ran out of it: ' in said
    assert 'Try, in this order: --train_batch_size=8 (NT-Xent then has fewer negatives)' in said
    assert ', --mixed_precision=bfloat16' in said
    assert said.endswith('The last checkpoint: none was written yet.')


@pytest.mark.usefixtures('bare_runs')
def test_an_evaluation_or_export_out_of_memory_gives_advice_and_keeps_the_checkpoint(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hub_export, 'export_module', raising(ERRORS['XLA']))
    command = ['run.py', '--mode=train_then_eval', f'--model_dir={tmp_path}', *TINY]
    assert run.main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'The export must fit into memory' in said
    (kept,) = checkpoints_in(str(tmp_path))
    assert said.endswith(f'The last checkpoint: {kept}.')

    monkeypatch.setattr(hub_export, 'export_module', lambda *_, **__: 'here')
    monkeypatch.setattr(classification.Classification, 'run', raising(ERRORS['CUDA']))
    assert run.main(command) == 2  # the training is done
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'The evaluation must fit into memory' in said
    assert 'Try, in this order: --eval_batch_size=16, ' in said
    assert tf.train.load_checkpoint(kept).get_variable_to_shape_map()


MEASURED = EvaluationConfig()


@pytest.mark.parametrize(
    ('doing', 'train', 'evaluation', 'replicas', 'begins'),
    [
        (
            'training',
            TrainConfig(train_batch_size=512),
            EvaluationConfig(),
            4,
            '--train_batch_size=256',
        ),
        (
            'training',
            TrainConfig(train_batch_size=12),
            EvaluationConfig(),
            4,
            '--train_batch_size=4',
        ),
        ('training', TrainConfig(train_batch_size=4), MEASURED, 4, 'more devices'),
        (
            'evaluation',
            TrainConfig(),
            EvaluationConfig(eval_batch_size=1, knn_neighbors=3, knn_examples=100),
            1,
            '--knn_examples=50',
        ),
    ],
)
def test_the_advised_batch_divides_evenly(
    doing: str, train: TrainConfig, evaluation: EvaluationConfig, replicas: int, begins: str
) -> None:
    said = advice_for(doing, train, evaluation, replicas)
    assert said.startswith(f'Try, in this order: {begins}')
