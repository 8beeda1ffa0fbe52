"""How a network learns. A method of pretraining is one file here and one entry in `METHODS`.

Importing this package doesn't import TensorFlow: `--help` and the checks of flags read the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from common.methods import MethodEntry
from common.views import CONTRAST, SUPERVISED

_PRETRAINING = (
    'method',
    'lineareval_while_pretraining',
    'color_jitter_strength',
    'color_jitter_brightness',
    'use_blur',
)
_TUNING = ('fine_tune_after_block', 'zero_init_logits_layer', 'label_fraction', 'labels_per_class')

METHODS = {
    'simclr': MethodEntry(
        'tf2.methods.simclr:SimCLR',
        CONTRAST,
        'NT-Xent between two views of each image; in-batch negatives, and with --memory_size those '
        'of a momentum encoder (arXiv:2002.05709, arXiv:2006.10029).',
        reads=(
            *_PRETRAINING,
            'temperature',
            'hidden_norm',
            'memory_size',
            'momentum_encoder_decay',
            'export_momentum_encoder',
        ),
    ),
}
# Stages that learn in one way only.
STAGE_METHODS = {
    'finetune': MethodEntry(
        'tf2.methods.fine_tuning:FineTuning',
        SUPERVISED,
        'Cross-entropy with the labels.',
        reads=_TUNING,
    ),
    'distill': MethodEntry(
        'tf2.methods.distillation:Distillation',
        SUPERVISED,
        "Cross-entropy with a teacher's output and the labels (arXiv:2006.10029, section 2).",
        reads=(
            *_TUNING,
            'teacher',
            'safe_weights',
            'teacher_view',
            'distill_alpha',
            'distill_temperature',
            'distill_temperature_squared',
        ),
    ),
}


def entry_of(stage: str, method: str) -> MethodEntry:
    """The method of a stage.

    Args:
        stage: `--train_mode`.
        method: `--method`, which says how the stages without a method of their own learn.
    """
    return STAGE_METHODS.get(stage) or METHODS[method]


def make_head(method: str) -> Callable[..., Any]:
    """What makes the projection head of networks that `method` pretrains; imports TensorFlow.

    The stages after pretraining keep that head.
    """
    return METHODS[method].load().projection_head


def entries() -> Iterator[MethodEntry]:
    """All of them."""
    yield from METHODS.values()
    yield from STAGE_METHODS.values()
