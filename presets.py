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
    'color_jitter_strength': 0.8,
    'crop_min_area': 0.2,
    'eval_split': 'test',
    'optimizer': 'lars',
    'learning_rate': 2.0,
    'weight_decay': 1e-4,
    'temperature': 0.5,
    'train_batch_size': 128,
    'knn_neighbors': 200,
}

# SimCLRv2 fine-tunes with a rate of 0.005 * sqrt(1024) = 0.16.
_FINETUNE = {
    'train_mode': 'finetune',
    'zero_init_logits_layer': True,
    'optimizer': 'lars',
    'learning_rate': 0.005,
    'learning_rate_scaling': 'sqrt',
    'warmup_epochs': 0.0,
    'weight_decay': 0.0,
    'train_batch_size': 1024,
}

PRESETS: dict[str, Preset] = {
    'demo': Preset(
        'The bundled 6,000 images of Fashion-MNIST, a small ResNet-18; minutes on a laptop.',
        {
            **_SMALL,
            'dataset': 'bundled',
            'train_epochs': 25,
            'warmup_epochs': 2.0,
            'checkpoint_epochs': 10,
            'train_summary_steps': 20,
        },
    ),
    'fashion_mnist': Preset(
        'All 60,000 training images of Fashion-MNIST (TFDS fashion_mnist), a small ResNet-18.',
        {
            **_SMALL,
            'dataset': 'fashion_mnist',
            'train_batch_size': 256,
            'train_epochs': 14,
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
    'linear_eval': Preset(
        'Linear evaluation on ImageNet: the encoder is frozen (arXiv:2002.05709, appendix B.6); '
        'published: 69.1% for SimCLR, 71.7% for SimCLRv2 with ResNet-50. Give --checkpoint.',
        {
            'dataset': 'imagenet2012',
            'train_mode': 'finetune',
            'fine_tune_after_block': 4,
            'optimizer': 'momentum',
            'learning_rate': 0.1,
            'learning_rate_scaling': 'linear',
            'warmup_epochs': 0.0,
            'weight_decay': 1e-6,
            'train_batch_size': 4096,
            'train_epochs': 90,
        },
    ),
    'finetune_1pct': Preset(
        'Fine-tuning on 1% of ImageNet (arXiv:2006.10029, appendix); published: 57.9% with '
        'ResNet-50. For wide or SK networks --learning_rate=0.002. Give --checkpoint.',
        {
            **_FINETUNE,
            'dataset': 'imagenet2012_subset/1pct',
            'ft_proj_selector': 1,
            'train_epochs': 60,
        },
    ),
    'finetune_10pct': Preset(
        'Fine-tuning on 10% of ImageNet (arXiv:2006.10029, appendix); published: 68.4% with '
        'ResNet-50. For wide or SK networks --learning_rate=0.002. Give --checkpoint.',
        {
            **_FINETUNE,
            'dataset': 'imagenet2012_subset/10pct',
            'ft_proj_selector': 1,
            'train_epochs': 30,
        },
    ),
    'finetune_100pct': Preset(
        'Fine-tuning on all of ImageNet (arXiv:2006.10029, appendix); published: 76.3% with '
        'ResNet-50. For wide or SK networks --learning_rate=0.002. Give --checkpoint.',
        {**_FINETUNE, 'dataset': 'imagenet2012', 'ft_proj_selector': 0, 'train_epochs': 30},
    ),
}
