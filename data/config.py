"""Settings of the input: data set, splits, labels and augmentation."""

from __future__ import annotations

import dataclasses

from common.connections import split_address
from common.errors import UserError
from common.settings import INFERENCE, check_options, option

FILES = ('image_folder', 'image_list')  # data sets in which every image is a file
OWN_IMAGES = (*FILES, 'tfrecords')  # data sets that are the user's own files


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images to read and how to augment them (SimCLR appendix A, arXiv:2002.05709)."""

    dataset: str | None = option(
        None,
        'Data set: "bundled" (the small one that ships with the project), "image_folder" (images '
        'below --data_dir, however they are sorted, or a list of them), or any TensorFlow Datasets '
        "name. Unset: image_folder with --data_dir, else bundled, with the stage's preset for it, "
        'such as --preset=own_images and --preset=demo.',
        modes=('eval', 'check', *INFERENCE, 'search'),
    )
    data_dir: str | None = option(
        None,
        'Folder in which the data set is, or will be prepared. Of your own images: a folder, '
        'several separated by commas, a list of files (text, CSV, JSON lines), or TFRecord files.',
        modes=('eval', 'check', *INFERENCE, 'search'),
        resume='free',
    )
    train_split: str = option(
        'train', 'Split to train on; TFDS slices such as train[:10%] work.', modes=('check',)
    )
    eval_split: str = option(
        'validation',
        'Split to evaluate on.',
        modes=('eval', 'check', *INFERENCE),
        resume='continue',
    )
    holdout_fraction: float = option(
        0.1,
        'Own images: share of every class that is held out as the split "validation" where no '
        'folder is there to evaluate on, the same files in every run. 0: none. To embed or predict '
        'an --eval_split, the default is what the run of --checkpoint held out.',
        at_least=0,
        modes=('check', *INFERENCE),
        below=1,
        requires={'dataset': OWN_IMAGES},
    )
    image_key: str | None = option(
        None,
        'TensorFlow Datasets and TFRecord files: the feature that is the image. Unset: the only '
        'one there is, or the one with a usual name.',
        modes=('eval', 'check', *INFERENCE, 'search'),
    )
    label_key: str | None = option(
        None,
        'TensorFlow Datasets: the feature that is the label, a class, an integer or a one-hot '
        'vector. Unset: the one the data set declares as its target, else "label", else the only '
        'one there is. TFRecord files: an integer or text.',
        modes=('eval', 'check', *INFERENCE),
    )
    cache_dataset: bool = option(
        False,
        'Keep the encoded training examples in memory after the first read.',
        resume='free',
    )
    tf_data_service: str | None = option(
        None,
        'Address of a tf.data service, grpc://host:port, whose workers make the training batches '
        '(started with python -m data.service). Each worker makes an epoch of its own, so batches '
        'of several epochs mix, in an order that is not repeatable. Unset: this process makes the '
        'batches.',
        resume='free',
    )
    image_range: str = option(
        'auto',
        'Range of the values of floating-point images; values outside of it are an error. auto: '
        'inferred from the first training images. Not for integer images.',
        modes=INFERENCE,
        choices=('auto', '0..1', '-1..1', '0..255'),
    )
    max_pixels: int = option(
        80_000_000,
        'Largest number of pixels in an image, checked in the file header before decoding, since '
        'a small file can decode to a huge image. 0: no limit.',
        at_least=0,
        modes=('eval', 'export', 'check', *INFERENCE, 'search'),
        resume='free',
    )
    max_bad_fraction: float = option(
        0.01,
        'Own images: largest share of the images of a split that may be unreadable or damaged; one '
        'always may be, unless this is 0. They are skipped and listed in skipped_files.txt.',
        at_least=0,
        at_most=1,
        modes=('eval', *INFERENCE),
        resume='free',
        requires={'dataset': FILES},
    )
    image_size: int = option(
        224,
        'Height and width of the images the encoder sees, in pixels.',
        at_least=1,
        modes=('export', *INFERENCE, 'search'),
    )
    color_jitter_strength: float = option(
        1.0,
        'Strength s of the color distortion; 0 turns it off.',
        at_least=0,
        at_most=10,
    )
    color_jitter_brightness: str = option(
        'multiply',
        'Brightness jitter: SimCLRv2 multiplies by a random factor, SimCLRv1 adds a random delta.',
        choices=('multiply', 'add'),
    )
    use_blur: bool = option(True, 'Blur half of the pretraining views with a random Gaussian.')
    crop_min_area: float = option(
        0.08,
        'Smallest share of the image area in a random crop. As in the published program, boxes '
        'below 0.1 are redrawn at the default.',
        above=0,
        at_most=1,
        requires={'global_crop_area': (None,)},
    )

    label_fraction: float = option(
        1.0,
        'Share of the labels of each class to train on; for fine-tuning, and for distillation with '
        'labels.',
        above=0,
        at_most=1,
    )
    labels_per_class: int = option(
        0,
        'Number of labels of each class to train on, instead of --label_fraction. 0: all.',
        at_least=0,
    )

    @property
    def own_images(self) -> str | None:
        """Where the user's own images are, as it was given; None for another data set."""
        return self.data_dir if self.dataset in (None, *OWN_IMAGES) else None

    def __post_init__(self) -> None:
        check_options(self)
        if self.tf_data_service is not None:
            split_address(self.tf_data_service, '--tf_data_service')
        if self.labels_per_class and self.label_fraction < 1:
            raise UserError(
                f'--label_fraction={self.label_fraction} and --labels_per_class='
                f'{self.labels_per_class} both choose the labels; give one of them.'
            )
