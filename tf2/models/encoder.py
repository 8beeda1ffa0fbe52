"""Encoder, projection head and classifier as one model with named endpoints."""

from __future__ import annotations

import tensorflow as tf

from common.errors import UserError
from tf2.config import ModelConfig
from tf2.models.heads import MakeHead, ProjectionHead, classifier
from tf2.models.layers import Norm


class SimCLRModel(tf.keras.Model):
    """Encoder f, projection head g and, if there are labels, a linear classifier.

    Args:
        config: architecture.
        image_size: in pixels; a backbone may depend on it.
        num_classes: classes of the linear classifier; None builds none.
        make_head: makes the projection head.
        replicas: number of replicas of the training step; global BN is not synchronized on one.
        norm_parts: number of parts of the global batch with batch statistics of their own, a
            multiple of `replicas`; 1 leaves the batch whole.
        precision: 'float32', 'bfloat16' or 'float16', for convolutions and dense layers.
        filter_products: see `convolution.convolve`; `tf2.precision` chooses it.
        detach_classifier: whether the classifier's gradient stops before the encoder, so that
            training it doesn't change the representation.

    Attributes:
        norm: normalization and dtype policy, also for networks that a method adds.

    Raises:
        UserError: if the projection head lacks the layer that the classifier should read.
    """

    def __init__(
        self,
        config: ModelConfig,
        image_size: int,
        num_classes: int | None,
        *,
        make_head: MakeHead = ProjectionHead,
        replicas: int = 1,
        norm_parts: int = 1,
        precision: str = 'float32',
        filter_products: bool = False,
        detach_classifier: bool = False,
    ) -> None:
        super().__init__()
        norm = Norm(
            momentum=config.batch_norm_decay,
            synchronized=config.global_bn and replicas > 1 and norm_parts == 1,
            parts=max(1, norm_parts // replicas),
            dtype='float32' if precision == 'float32' else f'mixed_{precision}',
            filter_products=filter_products,
        )
        self.config = config
        self.norm = norm
        self.image_size = image_size
        self.num_classes = num_classes
        self.make_head = make_head
        self.replicas = replicas
        self.norm_parts = norm_parts
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

    # AutoGraph has nothing to convert here, and would spend seconds finding that out.
    @tf.autograph.experimental.do_not_convert
    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Runs encoder, head and classifier.

        Args:
            images: [b, h, w, 3] float32 in [0, 1].
            training: whether batch statistics are used and the moving ones updated.

        Returns:
            The backbone's endpoints, 'proj_head_input' [b, d], 'proj_head_output' [b, out_dim],
            and, with a classifier, 'logits_sup' [b, num_classes]; the last three are float32.
        """
        endpoints = self.backbone(images, training=training)
        return {**endpoints, **self.heads(endpoints['final_avg_pool'], training)}

    def heads(self, representation: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Runs projection head and classifier on the encoder's output [b, d]; see `call`."""
        hiddens = self.projection_head(representation, training=training)
        outputs = {'proj_head_input': hiddens[0], 'proj_head_output': hiddens[-1]}
        if self.classifier is not None:
            selected = hiddens[self.config.ft_proj_selector]
            selected = tf.stop_gradient(selected) if self.detach_classifier else selected
            outputs['logits_sup'] = self.classifier(selected)
        return outputs


def freeze(model: SimCLRModel, after_block: int) -> None:
    """Freezes what fine-tuning doesn't train, weights and batch normalization statistics.

    Layers of the projection head that the classifier doesn't read are always frozen.

    Args:
        model: built.
        after_block: -1 trains the whole encoder; k trains the blocks after the stem from block k
            on, counted from 0, or only the classifier if there is no block k. ResNets have 4.
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
    """A new model, not built yet, with the architecture of `model` but no classifier."""
    return SimCLRModel(
        model.config,
        model.image_size,
        None,
        make_head=model.make_head,
        replicas=model.replicas,
        norm_parts=model.norm_parts,
        precision=model.precision,
    )


def build_model(model: SimCLRModel) -> SimCLRModel:
    """Creates all variables of `model`, without computing anything, and returns it."""
    images = tf.keras.Input([None, None, 3])
    model(images, training=False)
    return model
