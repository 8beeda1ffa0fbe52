"""Recognizes out-of-memory errors and suggests what to try."""

from __future__ import annotations

import re

import tensorflow as tf

from tf2.config import EvaluationConfig, TrainConfig

# Messages of TensorFlow's allocators, CUDA and XLA, which raise several types of errors.
_SAID = re.compile(r'\bOOM\b|out of memory|OUT_OF_MEMORY|failed to allocate', re.IGNORECASE)
# Other exhausted resources, for which TensorFlow raises the same type of error.
_OTHERS = re.compile(r'no space left|quota|too many open files|larger than max', re.IGNORECASE)
_END_OTHERS = 'to end other programs that use the memory'


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the host or a device ran out of memory."""
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return _OTHERS.search(' '.join(str(error).split())) is None
    said = isinstance(error, tf.errors.OpError) and _SAID.search(str(error)) is not None
    return said or isinstance(error, MemoryError)


def advice_for(doing: str, train: TrainConfig, evaluation: EvaluationConfig, replicas: int) -> str:
    """A sentence listing what to try, most effective first.

    Args:
        doing: 'training', 'evaluation' or 'export'.
        train: batch size and precision that ran out of memory.
        evaluation: batch size and neighbors that ran out of memory.
        replicas: among which a batch is divided.
    """
    advice = {
        'training': _for_training(train, replicas),
        'evaluation': _for_evaluation(evaluation, replicas),
        # Export runs on the host with a single image.
        'export': [
            _END_OTHERS,
            '--mode=export on a larger machine',
        ],
    }
    return f'Try, in this order: {", ".join(advice[doing])}.'


def _for_training(config: TrainConfig, replicas: int) -> list[str]:
    half = _half(config.train_batch_size, replicas)
    tries = [f'--train_batch_size={half} (NT-Xent then has fewer negatives)'] if half else []
    if config.mixed_precision == 'float32':
        tries.append('--mixed_precision=bfloat16 (float16 on GPUs before Ampere)')
    return [*tries, 'more devices', 'a smaller --image_size or --width_multiplier']


def _for_evaluation(config: EvaluationConfig, replicas: int) -> list[str]:
    half = _half(config.eval_batch_size, replicas)
    tries = [f'--eval_batch_size={half}'] if half else []
    if config.knn_neighbors:
        tries.append(f'--knn_examples={max(1, config.knn_examples // 2)}')
    return [*tries, _END_OTHERS, 'more devices']


def _half(batch_size: int, replicas: int) -> int:
    """Half of a global batch, rounded down to a multiple of `replicas`; may be 0."""
    return batch_size // 2 // replicas * replicas
