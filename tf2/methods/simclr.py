"""SimCLR (arXiv:2002.05709) and the memory of SimCLRv2 (arXiv:2006.10029): NT-Xent on two views.

Or on more: SwAV (arXiv:2006.09882, section 3.2) gives SimCLR local crops too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow as tf

from common.file_names import MOMENTUM_MODULES
from tf2.config import LearningConfig
from tf2.methods.base import ONLINE_METRICS, Batch, Method, Nest, Terms, with_classifier
from tf2.methods.crops import encode, pairs
from tf2.methods.memory import Memory
from tf2.methods.nt_xent import Contrast, nt_xent
from tf2.models.encoder import SimCLRModel


class SimCLR(Method):
    """NT-Xent on pairs of views and, where there are labels, an online linear classifier.

    The classifier reads the representation behind a stop_gradient, so it does not change the
    encoder.

    Args:
        model: built.
        config: temperature, memory and `global_crops` are read. With a memory, whose variables are
            created here, `initialize` must be called before the first update.
    """

    watched: ClassVar[Mapping[str, str]] = {'representation': 'proj_head_input'}

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='pretraining')
        self.model = model
        self.config = config
        self.memory = Memory(model, config) if config.memory_size else None
        supervised = ONLINE_METRICS if model.classifier else ()
        self.metrics = ('contrast_loss', 'contrast_acc', 'contrast_entropy', *supervised)

    def initialize(self) -> None:
        """See `Method.initialize`. The momentum encoder starts as a copy of the model."""
        if self.memory is not None:
            self.memory.copy_from(self.model)

    def targets(self, batch: Batch) -> tf.Tensor | None:
        """See `Method.targets`. With a memory, the keys of the second views, [b, d]."""
        return self.memory and self.memory.keys(batch['views'][1])

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """See `Method.forward` and `encode`; logits of a classifier are those of global crops."""
        outputs = encode(self.model, views, training)
        if self.model.classifier is not None:
            outputs['logits_sup'] = outputs['logits_sup'][: self.config.global_crops]
        return outputs

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """See `Method.loss`. `batch['views']` are crops of each image, the global ones first.

        With more than two of them it is the mean of NT-Xent over all pairs with a global crop.
        """
        config = self.config
        memory = self.memory.negatives() if self.memory is not None else {}
        found = [
            nt_xent(*pair, config.temperature, hidden_norm=config.hidden_norm, **memory)
            for pair in pairs(outputs['proj_head_output'], config.global_crops)
        ]
        contrast = Contrast(*(tf.add_n(parts) / len(found) for parts in zip(*found)))
        terms = {
            'loss': contrast.loss,
            'contrast_loss': contrast.loss,
            'contrast_acc': contrast.accuracy,
            'contrast_entropy': contrast.entropy,
        }
        return with_classifier(terms, outputs, batch['label'])

    def after_update(self, outputs: Nest, targets: Nest, batch: Batch, step: tf.Tensor) -> None:
        """See `Method.after_update`. Enqueues the keys and updates the momentum encoder.

        The keys are enqueued after the loss; otherwise an image's own key would be a negative.
        """
        if self.memory is not None:
            self.memory.enqueue(targets)
            self.memory.update_encoder(self.model)

    def exports(self) -> Mapping[str, SimCLRModel]:
        """See `Method.exports`. With the momentum encoder if it is to be exported."""
        momentum = {MOMENTUM_MODULES: self.memory.encoder} if self.memory else {}
        return super().exports() | (momentum if self.config.export_momentum_encoder else {})
