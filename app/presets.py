"""Named sets of flags, with their sources and published results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named set of flags.

    Attributes:
        summary: what it is for, its source, and results that were published or measured.
        flags: setting name -> value.
        stages: for pretraining, the presets of the stages after it: fine-tuning,
            self-distillation, distillation into a smaller student.
    """

    summary: str
    flags: Mapping[str, Any]
    stages: tuple[str, ...] = ()


# A network that trains in minutes on a laptop.
_SMALL_NETWORK = {
    'resnet_depth': 18,
    'width_multiplier': 0.25,
    'image_size': 28,
    'eval_split': 'test',
}
_SMALL = {
    **_SMALL_NETWORK,
    'use_blur': False,
    'color_jitter_strength': 0.8,
    'crop_min_area': 0.2,
    'optimizer': 'lars',
    'learning_rate': 2.0,
    'weight_decay': 1e-4,
    'temperature': 0.5,
    'train_batch_size': 128,
    'knn_neighbors': 200,
}
# What all presets of the bundled images share while pretraining.
_DEMO = {
    'dataset': 'bundled',
    'train_epochs': 16,
    'warmup_epochs': 2.0,
    'checkpoint_epochs': 10,
    'train_summary_steps': 20,
}
# The same for all of Fashion-MNIST.
_FASHION = {
    'dataset': 'fashion_mnist',
    'crop_min_area': 0.35,
    'train_batch_size': 256,
    'train_epochs': 13,
    'warmup_epochs': 1.0,
    'checkpoint_epochs': 2,
    'train_summary_steps': 50,
    'knn_neighbors': 8,
    'knn_examples': 60000,
}
_FASHION_STAGES = ('fashion_mnist_finetune', 'fashion_mnist_self_distill', 'fashion_mnist_student')
_DEMO_STAGES = ('demo_finetune', 'demo_self_distill', 'demo_student')
_SMALL_BYOL = {
    **{name: value for name, value in _SMALL.items() if name != 'temperature'},
    'color_jitter_strength': 1.6,  # of half the amounts
    # Added brightness turns the black background of most images white.
    'color_jitter_brightness': 'multiply',
    'proj_hidden_dim': 512,
    'proj_out_dim': 128,
    'predictor_hidden_dim': 512,
    'target_decay': 0.9,  # the run is short
    # 200 nearest neighbors reached 65% after 4 epochs at 20 pixels, those of SimCLR 68%; with LARS,
    # and also weaker jitter, 54%.
    'optimizer': 'momentum',
    'learning_rate': 0.4,
    'weight_decay': 5e-4,
}
# A third of an epoch in the queue; a momentum encoder that follows within an epoch.
_SMALL_MOCO = {
    **_SMALL,
    'color_jitter_strength': 1.6,  # of half the amounts
    'temperature': 0.2,
    'memory_size': 2048,
    'momentum_encoder_decay': 0.99,
}
_SMALL_SIMSIAM = {
    **{name: value for name, value in _SMALL.items() if name != 'temperature'},
    'color_jitter_strength': 1.6,  # of half the amounts
    'proj_hidden_dim': 512,
    'proj_out_dim': 512,
    'predictor_hidden_dim': 128,
    'optimizer': 'sgd',
    'learning_rate': 0.6,
    'weight_decay': 5e-4,
}
_SMALL_SWAV = {
    **{name: value for name, value in _SMALL.items() if name != 'temperature'},
    'prototypes': 300,
    # 200 nearest neighbors reached 66% after 4 epochs at 20 pixels, those of SimCLR 68%. With local
    # crops, of so few pixels, it was less: 58% with 4 of a twentieth to a fifth of the area, 62%
    # with 2 of a fifth to a half.
}
_SMALL_INSTDISC = {
    **_SMALL,
    'color_jitter_strength': 1.0,
    # The rate of LARS above is too high while rows of the bank are those drawn at the start: 200
    # nearest neighbors reached 33% in 140 steps, and with this one 44% in 200, 57% in all 751.
    'optimizer': 'sgd',
    'learning_rate': 0.12,
    'weight_decay': 5e-4,
    'temperature': 0.1,
    'bank_loss': 'softmax',
    'bank_negatives': 0,
}
_SMALL_INVASPREAD = {
    **_SMALL,
    'color_jitter_strength': 1.0,
    'temperature': 0.1,
}
# Method -> its name and its flags, for images of 28 pixels.
_SMALL_METHODS = {
    'byol': ('BYOL', _SMALL_BYOL),
    'moco_v1': ('MoCo v1', {**_SMALL_MOCO, 'color_jitter_strength': 1.0}),
    'moco_v2': ('MoCo v2', _SMALL_MOCO),
    'simsiam': ('SimSiam', _SMALL_SIMSIAM),
    'swav': ('SwAV', _SMALL_SWAV),
    'instdisc': ('InstDisc, with a softmax over all images,', _SMALL_INSTDISC),
    'invaspread': ('InvaSpread', _SMALL_INVASPREAD),
}
# The stages after pretraining.
_SMALL_TUNED = {
    **_SMALL_NETWORK,
    'crop_min_area': 0.5,
    'optimizer': 'adam',
    'warmup_epochs': 0.0,
    'weight_decay': 0.0,
    'train_summary_steps': 20,
}
_SMALL_FINETUNE = {
    **_SMALL_TUNED,
    'train_mode': 'finetune',
    'ft_proj_selector': 1,
    'learning_rate': 0.008,
    'train_batch_size': 64,
    'train_epochs': 60,
    'checkpoint_epochs': 20,
}
# With so few labels, Adam would forget what was pretrained.
_SMALL_FEW_LABELS = {
    **_SMALL_FINETUNE,
    'optimizer': 'momentum',
    'learning_rate': 0.02,
    'train_batch_size': 40,
}
_SMALL_LINEAR = {
    **_SMALL_TUNED,
    'train_mode': 'finetune',
    'fine_tune_after_block': 4,
    'crop_min_area': 0.8,
    'optimizer': 'momentum',
    'learning_rate': 1.0,
    'train_batch_size': 256,
    'train_epochs': 5,
    'checkpoint_epochs': 5,
}
_SMALL_DISTILL = {
    **_SMALL_TUNED,
    'train_mode': 'distill',
    'distill_temperature': 1.0,
    'train_batch_size': 256,
    'checkpoint_epochs': 5,
}
# SimCLRv2 (arXiv:2006.10029, appendix) self-distills with a temperature of 0.1. Here that discards
# what the teacher knows of other classes: 85.7% against 86.1% on held-out images.
_SMALL_SELF_DISTILL = {
    **_SMALL_DISTILL,
    'ft_proj_selector': 1,
    'learning_rate': 0.001,
    'train_epochs': 5,
}
_SMALL_STUDENT = {**_SMALL_DISTILL, 'width_multiplier': 0.125, 'learning_rate': 0.002}

_IMAGENET = {'dataset': 'imagenet2012', 'train_batch_size': 4096, 'temperature': 0.1}
# The rest of the settings of MoCo and InstDisc are defaults of the methods.
_IMAGENET_200 = {'dataset': 'imagenet2012', 'train_batch_size': 256, 'train_epochs': 200}
# As in the program of SwAV (arXiv:2006.09882), but with LARS for LARC.
_IMAGENET_SWAV = {
    'dataset': 'imagenet2012',
    'method': 'swav',
    'num_proj_layers': 2,
    'prototypes': 3000,
    'freeze_prototypes_epochs': 1.0,
    'crop_min_area': 0.14,
    'optimizer': 'lars',
    'rate_in_velocity': False,
    'learning_rate_scaling': 'linear',
    'weight_decay': 1e-6,
}
_SWAV_DIFFERS = (
    'Its optimizer, LARC, also adapts and decays biases and normalization, and its rate ends at a '
    'thousandth of the peak instead of 0.'
)
# SimCLRv2 fine-tunes with a rate of 0.005 * sqrt(1024) = 0.16.
_FINETUNE = {
    'train_mode': 'finetune',
    'ft_proj_selector': 1,
    'zero_init_logits_layer': True,
    'optimizer': 'lars',
    'learning_rate': 0.005,
    'learning_rate_scaling': 'sqrt',
    'warmup_epochs': 0.0,
    'weight_decay': 0.0,
    'train_batch_size': 1024,
    'train_epochs': 30,
}
_OWN = {'dataset': 'image_folder', 'train_batch_size': 128}
_OWN_SMALL = {'dataset': 'image_folder', 'image_size': 32, 'eval_split': 'validation'}


def _linear(data: str, **flags: Any) -> Preset:
    return Preset(f'Linear evaluation on all labels of {data}. Give --checkpoint.', flags)


def _self_distill(data: str, **flags: Any) -> Preset:
    return Preset(
        f'Self-distillation on {data}, without labels. Give --teacher and, to start from its '
        'weights, --checkpoint.',
        flags,
    )


def _student(data: str, **flags: Any) -> Preset:
    return Preset(
        f'Distillation into a network of half the width on {data}, without labels. Give --teacher.',
        flags,
    )


def _finetune_imagenet(share: str, published: str, **flags: Any) -> Preset:
    return Preset(
        f'Fine-tuning on {share} of ImageNet (arXiv:2006.10029, appendix); published: {published} '
        'with ResNet-50. For wide or SK networks --learning_rate=0.002. Give --checkpoint.',
        {**_FINETUNE, **flags},
    )


PRESETS: dict[str, Preset] = {
    'demo': Preset(
        'The bundled 6,000 images of Fashion-MNIST, a small ResNet-18; minutes on a laptop.',
        {**_SMALL, **_DEMO},
        stages=_DEMO_STAGES,
    ),
    **{
        f'demo_{method}': Preset(
            f'{title} on the bundled images, a small ResNet-18; minutes on a laptop.',
            {**flags, **_DEMO, 'method': method},
            stages=_DEMO_STAGES,
        )
        for method, (title, flags) in _SMALL_METHODS.items()
    },
    'demo_finetune': Preset(
        'Fine-tuning on 10 labels per class of the bundled images. Give --checkpoint.',
        {**_SMALL_FEW_LABELS, 'dataset': 'bundled', 'labels_per_class': 10},
    ),
    'demo_linear': _linear('the bundled images', **_SMALL_LINEAR, dataset='bundled'),
    'demo_self_distill': _self_distill(
        'the bundled images', **_SMALL_SELF_DISTILL, dataset='bundled'
    ),
    'demo_student': _student(
        'the bundled images', **_SMALL_STUDENT, dataset='bundled', train_epochs=12
    ),
    'own_images': Preset(
        'Your own images, below --data_dir: the defaults, ResNet-50 at 224 pixels, in batches of '
        '128, for which 16 GB are enough.',
        _OWN,
        stages=('own_images_finetune', 'own_images_self_distill', 'own_images_student'),
    ),
    'own_images_finetune': Preset(
        'Fine-tuning on your own images, below --data_dir. Give --checkpoint.',
        {**_FINETUNE, **_OWN},
    ),
    'own_images_self_distill': _self_distill(
        'your own images',
        **_OWN,
        train_mode='distill',
        ft_proj_selector=1,
        distill_temperature=0.1,
    ),
    'own_images_student': _student(
        'your own images',
        **_OWN,
        train_mode='distill',
        width_multiplier=0.5,
        distill_temperature=1.0,
    ),
    'own_images_small': Preset(
        'Your own images, below --data_dir, some thousand: a small ResNet-18 at 32 pixels; minutes '
        'on a laptop.',
        {
            **_SMALL,
            **_OWN_SMALL,
            'train_epochs': 40,
            'warmup_epochs': 4.0,
            'knn_neighbors': 20,  # classes may be small
            'train_summary_steps': 20,
        },
        stages=(
            'own_images_small_finetune',
            'own_images_small_self_distill',
            'own_images_small_student',
        ),
    ),
    'own_images_small_finetune': Preset(
        'Fine-tuning the small network on your own images, below --data_dir. Give --checkpoint.',
        {**_SMALL_FINETUNE, **_OWN_SMALL},
    ),
    'own_images_small_self_distill': _self_distill(
        'your own images, for the small network', **{**_SMALL_SELF_DISTILL, **_OWN_SMALL}
    ),
    'own_images_small_student': _student(
        'your own images, for the small network',
        **{**_SMALL_STUDENT, **_OWN_SMALL, 'train_epochs': 24},
    ),
    'fashion_mnist': Preset(
        'All 60,000 training images of Fashion-MNIST (TFDS fashion_mnist), a small ResNet-18.',
        {**_SMALL, **_FASHION, 'learning_rate': 4.0, 'color_jitter_strength': 1.0},
        stages=_FASHION_STAGES,
    ),
    **{
        f'fashion_mnist_{method}': Preset(
            f'{title} on all of Fashion-MNIST, with the settings of --preset=demo_{method} and the '
            'crops of --preset=fashion_mnist.',
            {**flags, **_FASHION, 'method': method},
            stages=_FASHION_STAGES,
        )
        for method, (title, flags) in _SMALL_METHODS.items()
    },
    'fashion_mnist_linear': _linear('Fashion-MNIST', **_SMALL_LINEAR, dataset='fashion_mnist'),
    'fashion_mnist_finetune': Preset(
        'Fine-tuning on 1% of the labels of Fashion-MNIST, 600. Give --checkpoint.',
        {**_SMALL_FINETUNE, 'dataset': 'fashion_mnist', 'label_fraction': 0.01},
    ),
    'fashion_mnist_few_labels': Preset(
        'Fine-tuning on 4 labels per class of Fashion-MNIST, or a few more. Give --checkpoint.',
        {**_SMALL_FEW_LABELS, 'dataset': 'fashion_mnist', 'labels_per_class': 4},
    ),
    'fashion_mnist_self_distill': _self_distill(
        'Fashion-MNIST', **_SMALL_SELF_DISTILL, dataset='fashion_mnist'
    ),
    'fashion_mnist_student': _student(
        'Fashion-MNIST', **_SMALL_STUDENT, dataset='fashion_mnist', train_epochs=10
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
    'cifar10_invaspread': Preset(
        'InvaSpread on CIFAR-10, ResNet-18, batch 128, 301 epochs (arXiv:1904.03436, section 4.1, '
        'and its program); published: 83.6% with 200 nearest neighbors.',
        {
            'dataset': 'cifar10',
            'method': 'invaspread',
            'eval_split': 'test',
            'image_size': 32,
            'resnet_depth': 18,
            'train_batch_size': 128,
            'train_epochs': 301,
            'knn_neighbors': 200,
            'knn_examples': 50000,
        },
    ),
    'cifar10_swav': Preset(
        'SwAV on CIFAR-10, ResNet-18, batch 512, 800 epochs, no blur (the benchmark of lightly, '
        'another program); published there: 88.4% with 200 nearest neighbors.',
        {
            'dataset': 'cifar10',
            'method': 'swav',
            'eval_split': 'test',
            'image_size': 32,
            'resnet_depth': 18,
            'use_blur': False,
            'color_jitter_strength': 0.5,
            'crop_min_area': 0.08,
            'num_proj_layers': 2,
            'proj_hidden_dim': 512,
            'prototypes': 512,
            'freeze_prototypes_epochs': 0.0,
            'optimizer': 'adam',
            'learning_rate': 0.002,
            'warmup_epochs': 0.0,
            'weight_decay': 1e-6,
            'train_batch_size': 512,
            'train_epochs': 800,
            'knn_neighbors': 200,
            'knn_examples': 50000,
        },
    ),
    'imagenet_v1': Preset(
        'SimCLR on ImageNet, ResNet-50, 2-layer head, 1000 epochs (arXiv:2002.05709, section 6); '
        'published: 69.1% linear evaluation.',
        {
            **_IMAGENET,
            'color_jitter_brightness': 'add',
            'num_proj_layers': 2,
            'train_epochs': 1000,
            'learning_rate': 0.3,
            'learning_rate_scaling': 'linear',
            'warmup_epochs': 10.0,
            'weight_decay': 1e-6,
        },
    ),
    'imagenet_v2': Preset(
        'SimCLRv2 on ImageNet, ResNet-50, 3-layer head, 800 epochs (arXiv:2006.10029, section 3); '
        'published: 71.7% linear evaluation, 57.9 / 68.4 / 76.3% fine-tuned on 1 / 10 / 100% of '
        'the labels.',
        {
            **_IMAGENET,
            'num_proj_layers': 3,
            'train_epochs': 800,
            'learning_rate': 0.1,
            'learning_rate_scaling': 'sqrt',
            'warmup_epochs': 40.0,
            'weight_decay': 1e-4,
        },
    ),
    'imagenet_byol': Preset(
        'BYOL on ImageNet, ResNet-50, 1000 epochs (arXiv:2006.07733, section 3.2 and appendix B); '
        'published: 74.3% linear evaluation.',
        {
            'dataset': 'imagenet2012',
            'method': 'byol',
            'color_jitter_brightness': 'add',
            'num_proj_layers': 2,
            'proj_hidden_dim': 4096,
            'proj_out_dim': 256,
            'predictor_hidden_dim': 4096,
            'target_decay': 0.996,
            'optimizer': 'lars',
            'rate_in_velocity': False,
            'learning_rate': 0.2,
            'learning_rate_scaling': 'linear',
            'warmup_epochs': 10.0,
            'weight_decay': 1.5e-6,
            'train_batch_size': 4096,
            'train_epochs': 1000,
        },
    ),
    'imagenet_moco_v1': Preset(
        'MoCo v1 on ImageNet, ResNet-50, 200 epochs (arXiv:1911.05722, section 3.3); published: '
        '60.6% linear evaluation.',
        {**_IMAGENET_200, 'method': 'moco_v1'},
    ),
    'imagenet_moco_v2': Preset(
        'MoCo v2 on ImageNet, ResNet-50, 200 epochs (arXiv:2003.04297, table 1); published: 67.5% '
        'linear evaluation, 71.1% after 800 epochs.',
        {**_IMAGENET_200, 'method': 'moco_v2'},
    ),
    'imagenet_swav': Preset(
        'SwAV on ImageNet, ResNet-50, 2 crops of 224 and 6 of 96 pixels, 800 epochs '
        '(arXiv:2006.09882, and its program); published: 75.3% linear evaluation, 73.9% after 200 '
        f'epochs. {_SWAV_DIFFERS}',
        {
            **_IMAGENET_SWAV,
            'local_crops': 6,
            'learning_rate': 0.3,
            'warmup_epochs': 10.0,
            'train_batch_size': 4096,
            'train_epochs': 800,
        },
    ),
    'imagenet_swav_small_batch': Preset(
        'SwAV on ImageNet with a queue, for a batch of 256, 400 epochs (arXiv:2006.09882, and its '
        f'program); published: 74.3% linear evaluation, 72.7% after 200. {_SWAV_DIFFERS}',
        {
            **_IMAGENET_SWAV,
            'local_crops': 6,
            'queue_size': 3840,
            'queue_start_epoch': 15.0,
            'learning_rate': 0.6,
            'warmup_epochs': 0.0,
            'train_batch_size': 256,
            'train_epochs': 400,
        },
    ),
    'imagenet_swav_small_crops': Preset(
        'SwAV on ImageNet, 2 crops of 160 and 4 of 96 pixels, 400 epochs, hardly slower than 2 '
        'crops of 224; accuracies are in the paper (arXiv:2006.09882, figure 3). '
        f'{_SWAV_DIFFERS}',
        {
            **_IMAGENET_SWAV,
            'image_size': 160,
            'local_crops': 4,
            'learning_rate': 0.3,
            'warmup_epochs': 10.0,
            'train_batch_size': 4096,
            'train_epochs': 400,
        },
    ),
    'imagenet_instdisc': Preset(
        'InstDisc on ImageNet, ResNet-50, 200 epochs (arXiv:1805.01978, section 4); published: '
        '54.0% linear evaluation.',
        {**_IMAGENET_200, 'method': 'instdisc'},
    ),
    'imagenet_simsiam': Preset(
        'SimSiam on ImageNet, ResNet-50, 100 epochs (arXiv:2011.10566, section 3); published: '
        '68.1% linear evaluation, 71.3% after 800 epochs.',
        {
            'dataset': 'imagenet2012',
            'method': 'simsiam',
            'crop_min_area': 0.2,
            'num_proj_layers': 3,
            'proj_out_dim': 2048,
            'predictor_hidden_dim': 512,
            'optimizer': 'sgd',
            'learning_rate': 0.05,
            'learning_rate_scaling': 'linear',
            'warmup_epochs': 0.0,
            'weight_decay': 1e-4,
            'train_batch_size': 512,
            'train_epochs': 100,
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
    'finetune_1pct': _finetune_imagenet(
        '1%', '57.9%', dataset='imagenet2012_subset/1pct', train_epochs=60
    ),
    'finetune_10pct': _finetune_imagenet('10%', '68.4%', dataset='imagenet2012_subset/10pct'),
    'finetune_100pct': _finetune_imagenet(
        'all', '76.3%', dataset='imagenet2012', ft_proj_selector=0
    ),
}
