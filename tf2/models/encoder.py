"""Encoder, projection head and classifier as one model with named endpoints."""

from __future__ import annotations

import tensorflow as tf

from tf2.config import GROUP_FILTERS, SMALL_IMAGE, ModelConfig, has_bottlenecks
from tf2.models import BACKBONES
from tf2.models.heads import ProjectionHead, classifier
from tf2.models.layers import Norm


class SimCLRModel(tf.keras.Model):
    """What is trained, saved and exported: f, g and, where there are labels, a linear classifier.

    Args:
        config: architecture.
        image_size: pixels; the stem depends on whether it is above `SMALL_IMAGE`.
        num_classes: classes of the linear classifier; None builds none.
        replicas: number of replicas the training step runs on; global BN needs no
            synchronisation on one.
        precision: 'float32', 'bfloat16' or 'float16', for convolutions and dense layers.
        filter_products: see `Norm`; `tf2.precision` knows where it pays.
        detach_classifier: whether gradients of the classifier stop before the encoder, so that it
            measures the representation and does not change it.
    """

    def __init__(
        self,
        config: ModelConfig,
        image_size: int,
        num_classes: int | None,
        *,
        replicas: int = 1,
        precision: str = 'float32',
        filter_products: bool = False,
        detach_classifier: bool = False,
    ) -> None:
        super().__init__()
        norm = Norm(
            momentum=config.batch_norm_decay,
            synchronized=config.global_bn and replicas > 1,
            dtype='float32' if precision == 'float32' else f'mixed_{precision}',
            filter_products=filter_products,
        )
        self.config = config
        self.image_size = image_size
        self.num_classes = num_classes
        self.replicas = replicas
        self.precision = precision
        self.detach_classifier = detach_classifier
        self.backbone = BACKBONES['resnet'](
            config.resnet_depth,
            config.width_multiplier,
            config.sk_ratio,
            config.se_ratio,
            small_images=image_size <= SMALL_IMAGE,
            norm=norm,
        )
        self.projection_head = ProjectionHead(
            feature_dim(config),
            config.proj_head_mode,
            config.proj_out_dim,
            config.num_proj_layers,
            norm,
        )
        self.classifier = classifier(num_classes) if num_classes else None

    # Nothing in the model depends on a tensor's value, so AutoGraph has nothing to do; it would
    # take seconds to find that out, layer by layer.
    @tf.autograph.experimental.do_not_convert
    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Runs encoder, head and classifier.

        Args:
            images: [b, h, w, 3] float32 in [0, 1].
            training: whether batch statistics are used and the moving ones updated.

        Returns:
            The backbone's endpoints, 'proj_head_input' [b, d], 'proj_head_output' [b, out_dim],
            and, where there is a classifier, 'logits_sup' [b, num_classes]; the last three in
            float32.
        """
        endpoints = self.backbone(images, training=training)
        hiddens = self.projection_head(endpoints['final_avg_pool'], training=training)
        endpoints = {**endpoints, 'proj_head_input': hiddens[0], 'proj_head_output': hiddens[-1]}
        if self.classifier is not None:
            selected = hiddens[self.config.ft_proj_selector]
            selected = tf.stop_gradient(selected) if self.detach_classifier else selected
            endpoints['logits_sup'] = self.classifier(selected)
        return endpoints


def freeze(model: SimCLRModel, after_block: int) -> None:
    """Leaves trainable what fine-tuning trains; the rest keeps its weights and BN statistics.

    Layers of the projection head that the classifier does not read are always frozen.

    Args:
        model: built.
        after_block: -1 trains the whole encoder, 0 to 3 its block groups from that one on,
            counted from 0, and 4 nothing of encoder and head: the classifier only.
    """
    if after_block >= 0:
        model.backbone.stem.trainable = False
        for group in model.backbone.groups[:after_block]:
            for block in group:
                block.trainable = False
    blocks = model.projection_head.blocks
    selector = model.config.ft_proj_selector
    read = len(blocks) if selector == -1 else selector
    for block in blocks[0 if after_block == 4 else read :]:
        block.trainable = False


def feature_dim(config: ModelConfig) -> int:
    """Width of the encoder's output."""
    expansion = 4 if has_bottlenecks(config.resnet_depth) else 1
    return expansion * int(GROUP_FILTERS[-1] * config.width_multiplier)


def projection_dim(config: ModelConfig) -> int:
    """Width of the projection head's output."""
    return feature_dim(config) if config.proj_head_mode == 'none' else config.proj_out_dim


def without_classifier(model: SimCLRModel) -> SimCLRModel:
    """A new model, not built yet, with the encoder and projection head that `model` has."""
    return SimCLRModel(
        model.config, model.image_size, None, replicas=model.replicas, precision=model.precision
    )


def build_model(model: SimCLRModel) -> SimCLRModel:
    """Creates all variables of `model` without computing anything, and returns it."""
    images = tf.keras.Input([None, None, 3])
    model(images, training=False)
    return model
