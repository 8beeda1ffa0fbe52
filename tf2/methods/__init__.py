"""Training methods. A pretraining method is one file here and one entry in `METHODS`.

Importing this package doesn't import TensorFlow: `--help` and the checks of flags read the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from common.methods import MethodEntry
from common.registry import load
from common.views import (
    ASYMMETRIC,
    ASYMMETRIC_LOCAL,
    CONTRAST,
    DISCRIMINATION,
    QUERY_AND_KEY_V1,
    QUERY_AND_KEY_V2,
    SPREAD,
    SUPERVISED,
)

if TYPE_CHECKING:
    from tf2.config import ModelConfig

_PRETRAINING = (
    'method',
    'lineareval_while_pretraining',
    'color_jitter_strength',
    'color_jitter_brightness',
    'use_blur',
)
# Settings of methods that take any number of crops, see `MethodEntry.local_view`.
CROPS = (
    'global_crops',
    'local_crops',
    'local_crop_size',
    'global_crop_area',
    'local_crop_area',
)
# Settings of the default projection head.
_HEAD = ('proj_head_mode',)
_PREDICTS = ('proj_hidden_dim', 'predictor_hidden_dim')
_TUNING = (
    *_HEAD,
    'proj_hidden_dim',
    'fine_tune_after_block',
    'zero_init_logits_layer',
    'label_fraction',
    'labels_per_class',
)

# What the published programs of MoCo, InstDisc and InvaSpread have in common.
_SGD = {
    'optimizer': 'sgd',
    'learning_rate': 0.03,
    'warmup_epochs': 0.0,
    'crop_min_area': 0.2,
}
_MOMENTUM_ENCODER = ('memory_size', 'momentum_encoder_decay', 'export_momentum_encoder')
_MOCO = {
    **_SGD,
    'weight_decay': 1e-4,
    'train_batch_size': 256,
    'train_epochs': 200,
    'memory_size': 65536,
    'norm_parts': 8,  # as many as the published runs had GPUs
}
_READ_BY_MOCO = (
    *_PRETRAINING,
    *CROPS,
    'proj_hidden_dim',
    'temperature',
    *_MOMENTUM_ENCODER,
    'norm_parts',
)
_WIDTHS = 'tf2.models.head_sizes:count_layers'

METHODS = {
    'simclr': MethodEntry(
        'tf2.methods.simclr:SimCLR',
        CONTRAST,
        'NT-Xent between two views of each image; in-batch negatives, and with --memory_size those '
        'of a momentum encoder (arXiv:2002.05709, arXiv:2006.10029).',
        reads=(
            *_PRETRAINING,
            *CROPS,
            *_HEAD,
            'temperature',
            'hidden_norm',
            *_MOMENTUM_ENCODER,
        ),
        local_view=CONTRAST[0],
    ),
    'byol': MethodEntry(
        'tf2.methods.byol:BYOL',
        ASYMMETRIC,
        "BYOL: a predictor maps each view to a momentum network's projection of the other; no "
        'negatives (arXiv:2006.07733).',
        reads=(*_PRETRAINING, *CROPS, *_PREDICTS, 'target_decay'),
        # Section 3.2 and appendix B.
        defaults={
            'num_proj_layers': 2,
            'proj_hidden_dim': 4096,
            'proj_out_dim': 256,
            'color_jitter_brightness': 'add',
            'rate_in_velocity': False,
        },
        head_layers=_WIDTHS,
        momentum_copy=True,
        local_view=ASYMMETRIC_LOCAL,
    ),
    'moco_v1': MethodEntry(
        'tf2.methods.moco:MoCo',
        QUERY_AND_KEY_V1,
        'InfoNCE between a query and its key of a momentum encoder, with a queue of keys as '
        'negatives; linear head (arXiv:1911.05722).',
        reads=tuple(name for name in _READ_BY_MOCO if name != 'use_blur'),
        defaults={
            **_MOCO,
            'learning_rate_schedule': '0.6:0.1,0.8:0.01',
            'num_proj_layers': 1,
            'temperature': 0.07,
        },
        head_layers=_WIDTHS,
        needs=('memory_size',),
        untrained_views=1,
        local_view=QUERY_AND_KEY_V1[0],
    ),
    'moco_v2': MethodEntry(
        'tf2.methods.moco:MoCo',
        QUERY_AND_KEY_V2,
        'MoCo with a head of two layers, stronger views and a cosine schedule (arXiv:2003.04297).',
        reads=_READ_BY_MOCO,
        defaults={**_MOCO, 'num_proj_layers': 2, 'temperature': 0.2},
        head_layers=_WIDTHS,
        needs=('memory_size',),
        untrained_views=1,
        local_view=QUERY_AND_KEY_V2[0],
    ),
    'simsiam': MethodEntry(
        'tf2.methods.simsiam:SimSiam',
        QUERY_AND_KEY_V2,
        'SimSiam: a predictor maps each view to the projection of the other, which gets no '
        'gradient; no negatives, no momentum network (arXiv:2011.10566).',
        reads=(*_PRETRAINING, *CROPS, *_PREDICTS, 'fixed_predictor_rate'),
        # Section 3 and appendix A.
        defaults={
            'proj_out_dim': 2048,
            'predictor_hidden_dim': 512,
            'crop_min_area': 0.2,
            'optimizer': 'sgd',
            'learning_rate': 0.05,
            'warmup_epochs': 0.0,
            'weight_decay': 1e-4,
        },
        head_layers=_WIDTHS,
        local_view=QUERY_AND_KEY_V2[0],
    ),
    'swav': MethodEntry(
        'tf2.methods.swav:SwAV',
        CONTRAST,
        'SwAV: predicts to which of many trained prototypes another view is assigned, with equal '
        'shares of a batch for all of them (arXiv:2006.09882).',
        reads=(
            *_PRETRAINING,
            *CROPS,
            'proj_hidden_dim',
            'temperature',
            'prototypes',
            'freeze_prototypes_epochs',
            'sinkhorn_epsilon',
            'sinkhorn_iterations',
            'queue_size',
            'queue_start_epoch',
        ),
        # As in the published program.
        defaults={
            'num_proj_layers': 2,
            'crop_min_area': 0.14,
            'rate_in_velocity': False,
        },
        head_layers=_WIDTHS,
        local_view=CONTRAST[0],
    ),
    'instdisc': MethodEntry(
        'tf2.methods.instdisc:InstDisc',
        DISCRIMINATION,
        'InstDisc: tells an image from all others by a memory bank with a moving average of the '
        'feature of each (arXiv:1805.01978).',
        reads=(
            *(name for name in _PRETRAINING if name != 'use_blur'),
            'proj_hidden_dim',
            'temperature',
            'bank_loss',
            'bank_negatives',
            'bank_momentum',
            'proximal_weight',
        ),
        defaults={
            **_SGD,
            'weight_decay': 1e-4,
            'train_batch_size': 256,
            'train_epochs': 200,
            'learning_rate_schedule': '0.6:0.1,0.8:0.01',
            'num_proj_layers': 1,
            'temperature': 0.07,
        },
        head_layers=_WIDTHS,
        remembers_examples=True,
    ),
    'invaspread': MethodEntry(
        'tf2.methods.invaspread:InvaSpread',
        SPREAD,
        'InvaSpread: two views of an image are alike, and unlike all others of the batch, by a '
        'probability for each pair; one encoder (arXiv:1904.03436).',
        reads=(
            *(name for name in _PRETRAINING if name != 'use_blur'),
            'proj_hidden_dim',
            'temperature',
            'negative_weight',
        ),
        # For images of 32 and 96 pixels. The rate is that for a batch of 128.
        defaults={
            **_SGD,
            'learning_rate': 0.06,
            'weight_decay': 5e-4,
            'train_batch_size': 128,
            'train_epochs': 301,
            'learning_rate_schedule': '0.3987:0.1,0.5316:0.05,0.6645:0.01',
            'num_proj_layers': 1,
            'temperature': 0.1,
        },
        head_layers=_WIDTHS,
    ),
}
# Stages with a fixed method.
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
        method: `--method`, the method of stages without a fixed one.
    """
    return STAGE_METHODS.get(stage) or METHODS[method]


def make_head(method: str) -> Callable[..., Any]:
    """The function that makes the projection head of networks pretrained by `method`.

    Imports TensorFlow. Later stages keep the head.
    """
    return METHODS[method].load().projection_head


def count_head_layers(method: str, model: ModelConfig) -> int:
    """Number of layers of the projection head of networks pretrained by `method`."""
    count = METHODS[method].head_layers
    return load(count)(model) if count else model.head_layers


def entries() -> Iterator[MethodEntry]:
    """All entries of `METHODS` and `STAGE_METHODS`."""
    yield from METHODS.values()
    yield from STAGE_METHODS.values()
