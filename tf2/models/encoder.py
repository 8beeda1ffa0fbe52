"""Encoder, projection head and classifier as one model with named endpoints."""

from __future__ import annotations

import tensorflow as tf

from common.errors import UserError
from tf2.config import ModelConfig
from tf2.models.heads import MakeHead, ProjectionHead, classifier
from tf2.models.layers import Norm


class SimCLRModel(tf.keras.Model):
    """What is trained, saved and exported: f, g and, where there are labels, a linear classifier.

    Args:
        config: architecture.
        image_size: pixels of the images, which a backbone may depend on.
        num_classes: classes of the linear classifier; None builds none.
        make_head: makes the projection head.
        replicas: number of replicas the training step runs on; global BN needs no
            synchronization on one.
        precision: 'float32', 'bfloat16' or 'float16', for convolutions and dense layers.
        filter_products: see `Norm`; `tf2.precision` knows where it pays.
        detach_classifier: whether gradients of the classifier stop before the encoder, so that it
            measures the representation and does not change it.

    Raises:
        UserError: if the projection head does not have the layer that the classifier is to read.
    """

    def __init__(
        self,
        config: ModelConfig,
        image_size: int,
        num_classes: int | None,
        *,
        make_head: MakeHead = ProjectionHead,
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
        self.make_head = make_head
        self.replicas = replicas
        self.precision = precision
        self.detach_classifier = detach_classifier
        self.backbone = config.backbone_entry.load()(config, norm, image_size)
        self.projection_head = make_head(config, self.backbone.width, norm)
        layers = len(self.projection_head.blocks)
        if config.ft_proj_selector > layers:
            raise UserError(
                f'--ft_proj_selector must be at most the number of projection layers, {layers}; '
                f'found {config.ft_proj_selector}.'
            )
        self.classifier = classifier(num_classes) if num_classes else None

    # No control flow depends on a tensor. AutoGraph would take seconds to find that out.
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
        after_block: -1 trains the whole encoder; k the blocks after the stem from block k on,
            counted from 0, and, without such a block, the classifier only. ResNets have 4.
    """
    blocks = model.backbone.blocks
    for block in blocks[: after_block + 1]:
        for layer in block:
            layer.trainable = False
    head = model.projection_head.blocks
    selector = model.config.ft_proj_selector
    read = len(head) if selector == -1 else selector
    for layer in head[0 if after_block + 1 >= len(blocks) else read :]:
        layer.trainable = False


def without_classifier(model: SimCLRModel) -> SimCLRModel:
    """A new model, not built yet, with the encoder and projection head that `model` has."""
    return SimCLRModel(
        model.config,
        model.image_size,
        None,
        make_head=model.make_head,
        replicas=model.replicas,
        precision=model.precision,
    )


def build_model(model: SimCLRModel) -> SimCLRModel:
    """Creates all variables of `model` without computing anything, and returns it."""
    images = tf.keras.Input([None, None, 3])
    model(images, training=False)
    return model
