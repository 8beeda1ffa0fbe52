"""Encoders and heads. A backbone is one file here and one entry in `BACKBONES`.

A backbone is a Keras model or layer, made by `Backbone(config, norm, image_size)` of a
`ModelConfig`, the `layers.Norm` of the network and the pixels of its images. It has

- `width`: int, channels of the representation;
- `blocks`: a sequence, from input to output, of sequences of layers that hold all its variables.
  Block 0 is the stem; `--fine_tune_after_block` counts the others from 0, and their number or more
  leaves nothing of the backbone to train;
- `__call__(images, training=False)`: images [b, h, w, 3] float32 in [0, 1] -> endpoints by name,
  with the representation 'final_avg_pool' [b, width] float32 among them.

Importing this module does not import TensorFlow.
"""

from __future__ import annotations

import dataclasses

from common.registry import load


@dataclasses.dataclass(frozen=True)
class BackboneEntry:
    """What is known about a backbone before TensorFlow is imported.

    Attributes:
        implementation: its class, as 'module:Class'.
        blocks: number of its blocks after the stem, as 'module:function' of a `ModelConfig`, where
            no TensorFlow is imported.
        title: for people, with settings of `ModelConfig` in braces; default: its name.
        reads: the settings of `ModelConfig` that not every backbone reads and this one does.
        check: 'module:function' that takes a `ModelConfig` and raises UserError for settings that
            contradict each other; None checks nothing.
        memory: its `tf2.memory_estimate.Encoder`, as 'module:Class'. Without one, nothing is
            refused because it does not fit into memory.
        small_stem: whether it has another stem for images of `SMALL_IMAGE` pixels or less.
        published: whether published weights are of this backbone; their shapes tell its settings.
    """

    implementation: str
    blocks: str
    title: str | None = None
    reads: tuple[str, ...] = ()
    check: str | None = None
    memory: str | None = None
    small_stem: bool = False
    published: bool = False

    def load(self) -> type:
        """The class; imports TensorFlow."""
        return load(self.implementation)


BACKBONES: dict[str, BackboneEntry] = {
    'resnet': BackboneEntry(
        'tf2.models.resnet:ResNet',
        blocks='tf2.models.resnet_sizes:count_groups',
        title='ResNet-{resnet_depth} (width {width_multiplier:g})',
        reads=('resnet_depth', 'width_multiplier', 'sk_ratio', 'se_ratio'),
        check='tf2.models.resnet_sizes:check_settings',
        memory='tf2.memory_estimate:ResNetEncoder',
        small_stem=True,
        published=True,
    )
}
