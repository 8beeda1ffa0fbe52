"""Encoders and heads. A backbone is one file here and one entry in `BACKBONES`.

A backbone is a Keras model or layer. Its constructor takes a `ModelConfig`, a `layers.Norm` and the
image size in pixels. It has

- `width`: int, channels of the representation;
- `blocks`: from input to output, sequences of layers that together hold all its variables. The
  first is the stem; `--fine_tune_after_block` counts the others from 0, and a value equal to their
  number freezes the whole backbone;
- `__call__(images, training=False)`: images [b, h, w, 3] float32 in [0, 1] -> endpoints by name,
  with the representation 'final_avg_pool' [b, width] float32 among them.

Importing this package doesn't import TensorFlow.
"""

from __future__ import annotations

import dataclasses

from common.registry import load


@dataclasses.dataclass(frozen=True)
class BackboneEntry:
    """What is known about a backbone before TensorFlow is imported.

    Attributes:
        implementation: its class, as 'module:Class'.
        blocks: counts its blocks after the stem, given a `ModelConfig`, as 'module:function' in a
            module that doesn't import TensorFlow.
        title: display name, with settings of `ModelConfig` in braces; default: its key.
        reads: settings of `ModelConfig` that this backbone reads and some others don't.
        check: raises UserError if the settings in a `ModelConfig` contradict each other, as
            'module:function'; None checks nothing.
        memory: its `tf2.memory_estimate.Encoder`, as 'module:Class'. Without one, no run is refused
            for lack of memory.
        small_stem: whether it has a different stem for images of `SMALL_IMAGE` pixels or less.
        published: whether published weights have this backbone; its settings can then be inferred
            from their shapes.
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
