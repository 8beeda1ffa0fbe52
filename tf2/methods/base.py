"""The interface between methods and the training loop."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import tensorflow as tf

from common.file_names import MODULES
from tf2 import collectives
from tf2.config import LearningConfig, ModelConfig
from tf2.models.encoder import SimCLRModel
from tf2.models.heads import ProjectionHead
from tf2.models.layers import Norm

Batch: TypeAlias = Mapping[str, Any]
Logits: TypeAlias = Callable[[tf.Tensor], tf.Tensor]
Nest: TypeAlias = Any  # tensors in tuples and dictionaries
Terms: TypeAlias = dict[str, tf.Tensor]
Gradients: TypeAlias = Sequence[tf.Tensor | None]
ONLINE_METRICS = ('supervised_loss', 'supervised_acc')
Progress: TypeAlias = Callable[[tf.Tensor], tf.Tensor | float]


def _at_the_start(step: tf.Tensor) -> float:
    del step
    return 0.0


# See `Method.watched`: for methods that compare projections of several views, without negatives.
WITHOUT_NEGATIVES = {'representation': 'representation', 'projection': 'projections'}


class Method(tf.Module, abc.ABC):
    """What is trained, and by which loss: all that the training loop knows.

    A step calls `targets`, `forward`, `loss`, `adjust_gradients` and `after_update`, in this
    order, on every replica. Only `after_update` changes the method's state, except that networks
    update their moving batch statistics when they run.

    Attributes:
        metrics: names of the scalars `loss` returns besides 'loss'.
        watched: 'representation' and, without negatives, 'projection' -> their key in what
            `forward` returns: [b, d] float32, or a tuple of one for each view. Of what is watched,
            a collapse is told.
        model: encoder, projection head and classifier.
        progress: number of updates done -> share of the run that is done, from 0 to 1, for
            schedules of a method's own. A run sets it; without one it is 0.
        epoch: the same -> passes over the training examples that are done, a float32 scalar.
    """

    metrics: tuple[str, ...] = ()
    watched: ClassVar[Mapping[str, str]] = {}
    model: SimCLRModel
    progress: Progress = staticmethod(_at_the_start)
    epoch: Progress = staticmethod(_at_the_start)

    def trained(self) -> Sequence[tf.Module]:
        """Modules whose trainable variables the optimizer updates."""
        return (self.model,)

    def unscheduled(self) -> Sequence[tf.Module]:
        """Modules of `trained` whose learning rate stays at its peak, whatever the schedule."""
        return ()

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> ProjectionHead:
        """The projection head; `ft_proj_selector` counts its layers.

        A network keeps the head of its pretraining method in later stages and in exported modules.
        If a method has a head of its own, its entry in `METHODS` counts the layers.

        Args:
            config: settings of the head.
            width: of the representation.
            norm: normalization and dtype policy.
        """
        return ProjectionHead(config, width, norm)

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """The trainable variables of `trained`, without duplicates."""
        variables = (v for module in self.trained() for v in module.trainable_variables)
        return list({variable.ref(): variable for variable in variables}.values())

    def initialize(self) -> None:
        """Called before the first update of a new run, after the model has its initial weights.

        Called in cross-replica context. Not called on resuming, which restores the state.
        """
        return None

    def targets(self, batch: Batch) -> Nest:
        """What `loss` compares the outputs with, without gradient; None if there is nothing.

        Args:
            batch: this replica's share: 'views', a tuple of [b, h, w, 3] float32 in [0, 1],
                'label' [b] int32, -1 where there is none, and 'index' [b] int64, the position
                among the training examples.
        """
        del batch

    @abc.abstractmethod
    def forward(self, views: Sequence[tf.Tensor], training: bool) -> Nest:
        """Runs what is trained.

        Args:
            views: of a batch.
            training: whether batch statistics are used and the moving ones updated.

        Returns:
            Tensors [b, ...], one row per example.
        """

    @abc.abstractmethod
    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        """The loss on this replica's share of the batch; changes no state.

        Args:
            outputs: of `forward`.
            targets: of `targets`.
            batch: see `targets`.

        Returns:
            'loss' and `metrics`, float32 scalars; their means over replicas are the values for
            the global batch.
        """

    def adjust_gradients(self, gradients: Gradients, step: tf.Tensor) -> Gradients:
        """The gradients to apply.

        Args:
            gradients: of `trainable_variables`, summed over the replicas.
            step: number of updates done, int64 scalar.
        """
        del step
        return gradients

    def after_update(self, outputs: Nest, targets: Nest, batch: Batch, step: tf.Tensor) -> None:
        """Called after the update; changes moving averages, queues and other state.

        Args:
            outputs: of this step's `forward`.
            targets: of this step's `targets`.
            batch: see `targets`.
            step: number of updates done before this one, int64 scalar.
        """
        del outputs, targets, batch, step

    def exports(self) -> Mapping[str, SimCLRModel]:
        """Subfolder of the model folder -> model to export there."""
        return {MODULES: self.model}


def build(
    model: SimCLRModel,
    config: LearningConfig,
    teacher: Logits | None = None,
    examples: int | None = None,
) -> Method:
    """The method that `config` names.

    Args:
        model: built, within the strategy's scope.
        config: settings of stage and method.
        teacher: images [b, h, w, 3] -> logits [b, c]; only for a stage with a teacher.
        examples: number of training examples, for a method that remembers each.
    """
    arguments = (model, config) if teacher is None else (model, config, teacher)
    remembered = {'examples': examples} if config.entry.remembers_examples else {}
    return config.entry.load()(*arguments, **remembered)


def with_classifier(terms: Terms, outputs: Mapping[str, Any], labels: tf.Tensor) -> Terms:
    """`terms` and those of the classifier that is trained along with pretraining.

    Args:
        terms: 'loss' and metrics, float32 scalars.
        outputs: of `Method.forward`; 'logits_sup', [b, classes] float32 or a tuple of one for each
            view, if the model has a classifier.
        labels: [b] int32, -1 where there is none.

    Returns:
        `terms`; with a classifier, `ONLINE_METRICS` too, and its cross-entropy is in the loss.
    """
    if 'logits_sup' not in outputs:
        return terms
    logits = outputs['logits_sup']
    logits = logits if isinstance(logits, tuple) else (logits,)
    online = labeled_cross_entropy(tf.tile(labels, [len(logits)]), tf.concat(logits, 0))
    return {**terms, **online, 'loss': terms['loss'] + online['supervised_loss']}


def labeled_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Cross-entropy and accuracy over the labeled examples of all replicas.

    The means over replicas are the values for the global batch.

    Args:
        labels: [b] int32, -1 where there is none.
        logits: [b, classes] float32.

    Returns:
        `ONLINE_METRICS`, float32 scalars; 0 if no example has a label.
    """
    known = tf.cast(labels >= 0, tf.float32)  # [b]
    classes = tf.maximum(labels, 0)  # a valid class in rows that don't count
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)  # [b]
    hits = tf.cast(tf.argmax(logits, -1, tf.int32) == classes, tf.float32)  # [b]
    # Over all replicas, which may have different numbers of labels.
    count = tf.maximum(collectives.mean_over_replicas(tf.reduce_sum(known)), 1e-6)
    return {
        'supervised_loss': tf.reduce_sum(losses * known) / count,
        'supervised_acc': tf.reduce_sum(hits * known) / count,
    }
