"""Named bundles of flags, each with its source and, where there is one, its published result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """Flags that belong together.

    Attributes:
        summary: what they are for, where they come from, what was published or measured.
        flags: setting name -> value.
    """

    summary: str
    flags: Mapping[str, Any]


_SMALL = {
    'resnet_depth': 18,
    'width_multiplier': 0.25,
    'image_size': 28,
    'use_blur': False,
    'color_jitter_strength': 0.5,
    'eval_split': 'test',
    'optimizer': 'lars',
    'learning_rate': 1.0,
    'weight_decay': 1e-4,
    'temperature': 0.5,
    'train_batch_size': 256,
    'knn_neighbors': 200,
}

PRESETS: dict[str, Preset] = {
    'demo': Preset(
        'The bundled 6,000 images of Fashion-MNIST, a small ResNet-18; minutes on a laptop.',
        {
            **_SMALL,
            'dataset': 'bundled',
            'train_epochs': 20,
            'warmup_epochs': 2.0,
            'checkpoint_epochs': 10,
            'train_summary_steps': 10,
        },
    ),
    'fashion_mnist': Preset(
        'All 60,000 training images of Fashion-MNIST (TFDS fashion_mnist), a small ResNet-18.',
        {
            **_SMALL,
            'dataset': 'fashion_mnist',
            'train_epochs': 12,
            'warmup_epochs': 1.0,
            'checkpoint_epochs': 2,
            'train_summary_steps': 50,
        },
    ),
    'cifar10': Preset(
        'CIFAR-10, ResNet-18, batch 512, 1000 epochs, no blur, strength 0.5 (SimCLR appendix B.9, '
        'arXiv:2002.05709, and its program); published: about 91% linear evaluation.',
        {
            'dataset': 'cifar10',
            'eval_split': 'test',
            'image_size': 32,
            'resnet_depth': 18,
            'use_blur': False,
            'color_jitter_strength': 0.5,
            'train_batch_size': 512,
            'train_epochs': 1000,
            'learning_rate': 1.0,
            'weight_decay': 1e-4,
            'temperature': 0.5,
        },
    ),
    'imagenet_v1': Preset(
        'SimCLR on ImageNet, ResNet-50, 2-layer head, 1000 epochs (arXiv:2002.05709, section 6); '
        'published: 69.1% linear evaluation.',
        {
            'dataset': 'imagenet2012',
            'color_jitter_brightness': 'add',
            'num_proj_layers': 2,
            'train_batch_size': 4096,
            'train_epochs': 1000,
            'learning_rate': 0.3,
            'learning_rate_scaling': 'linear',
            'warmup_epochs': 10.0,
            'weight_decay': 1e-6,
            'temperature': 0.1,
        },
    ),
    'imagenet_v2': Preset(
        'SimCLRv2 on ImageNet, ResNet-50, 3-layer head, 800 epochs (arXiv:2006.10029, section 3); '
        'published: 71.7% linear evaluation, 57.9 / 68.4 / 76.3% fine-tuned on 1 / 10 / 100% of '
        'the labels.',
        {
            'dataset': 'imagenet2012',
            'num_proj_layers': 3,
            'train_batch_size': 4096,
            'train_epochs': 800,
            'learning_rate': 0.1,
            'learning_rate_scaling': 'sqrt',
            'warmup_epochs': 40.0,
            'weight_decay': 1e-4,
            'temperature': 0.1,
        },
    ),
}
