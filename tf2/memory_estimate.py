"""Estimates the memory that a run needs on each device, before anything is built.

Imports no TensorFlow. Tests compare its parameters with those of built models, and its activations
with the graph of the training step (`benchmarks.scaling`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from common.limits import SMALL_IMAGE
from common.registry import load
from tf2.config import LOGITS_AT_A_TIME, NORM_VECTOR, LearningConfig, ModelConfig
from tf2.methods import count_head_layers
from tf2.models.resnet_sizes import (
    BLOCKS_PER_GROUP,
    GROUP_FILTERS,
    MIN_SK_FILTERS,
    STEM_FILTERS,
    feature_width,
    has_bottlenecks,
)
from tf2.optimizers import OPTIMIZERS

FLOAT = 4  # bytes
BATCHES_IN_MEMORY = 2  # the current one and the next


@dataclasses.dataclass
class Part:
    """Memory of a part of a network; parts can be added.

    Attributes:
        parameters: number of trainable parameters.
        kernels: how many of them are copied to the compute dtype.
        statistics: number of moving means and variances.
        kept: bytes that the forward pass keeps for the backward pass, for one view.
        largest: most bytes of the inputs and outputs of a single layer, for one view.
    """

    parameters: int = 0
    kernels: int = 0
    statistics: int = 0
    kept: int = 0
    largest: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(
            self.parameters + other.parameters,
            self.kernels + other.kernels,
            self.statistics + other.statistics,
            self.kept + other.kept,
            max(self.largest, other.largest),
        )

    def times(self, count: int) -> Part:
        """`count` such parts in a row."""
        return Part(
            count * self.parameters,
            count * self.kernels,
            count * self.statistics,
            count * self.kept,
            self.largest if count else 0,
        )


@dataclasses.dataclass(frozen=True)
class Layers:
    """Memory of single layers on square feature maps.

    Attributes:
        precision: 'float32', 'bfloat16' or 'float16'.
        global_bn: whether batch statistics are taken over several replicas.
    """

    precision: str = 'float32'
    global_bn: bool = False

    @property
    def compute(self) -> int:
        """Bytes per number in convolutions and dense layers."""
        return FLOAT if self.precision == 'float32' else 2

    def norm_input(self, numbers: int, channels: int) -> int:
        """Bytes of its input that batch normalization keeps."""
        exact = self.global_bn or channels % NORM_VECTOR
        return numbers * (FLOAT if exact else self.compute)

    def conv(
        self, kernel: int, strides: int, size: int, inputs: int, filters: int, relu: bool = True
    ) -> tuple[Part, int]:
        """Convolution, batch normalization and, if `relu`, a ReLU; the input is not counted."""
        out = -(-size // strides)
        numbers = out * out * filters
        kept = self.norm_input(numbers, filters)
        if relu:
            kept += numbers * self.compute
        padded = (size + kernel - 1) ** 2 * inputs * self.compute
        if kernel > 1 and strides > 1:
            kept += padded
        weights = kernel * kernel * inputs * filters
        largest = size * size * inputs * self.compute + 2 * numbers * self.compute
        return Part(weights + 2 * filters, weights, 2 * filters, kept, largest), out

    def dense(self, inputs: int, units: int) -> Part:
        """Dense layer without bias, and batch normalization; the input is counted."""
        kept = self.norm_input(units, units) + inputs * self.compute
        return Part(inputs * units + 2 * units, inputs * units, 2 * units, kept)


class Encoder(Protocol):
    """Memory of a backbone; `BackboneEntry.memory` names a class of this protocol.

    Its constructor takes a `ModelConfig`, the image size in pixels, and `Layers`.

    Attributes:
        width: of the representation.
    """

    width: int

    def parts(self) -> Sequence[Part]:
        """One for each of the backbone's `blocks`."""


class ResNetEncoder:
    """See `Encoder`. Private methods return a part and the size of its output."""

    def __init__(self, config: ModelConfig, image_size: int, layers: Layers) -> None:
        self.config = config
        self.image_size = image_size
        self.layers = layers
        self.width = feature_width(config.resnet_depth, config.width_multiplier)

    def parts(self) -> list[Part]:
        """See `Encoder`. The stem and the block groups."""
        config, width = self.config, int(STEM_FILTERS * self.config.width_multiplier)
        stem, size = self._stem(width)
        parts, channels = [stem], width
        for index, blocks in enumerate(BLOCKS_PER_GROUP[config.resnet_depth]):
            filters = int(GROUP_FILTERS[index] * config.width_multiplier)
            first, size, channels = self._block(size, channels, filters, 2 if index else 1, True)
            other, *_ = self._block(size, channels, filters, 1, False)
            parts.append(first + other.times(blocks - 1))
        return parts

    def _stem(self, width: int) -> tuple[Part, int]:
        """The first convolutions and the pooling."""
        size = self.image_size
        if size <= SMALL_IMAGE:
            part, size = self.layers.conv(3, 1, size, 3, width)
            part.kept += size * size * 3 * self.layers.compute
            return part, size
        if self.config.sk_ratio > 0:
            first, size = self.layers.conv(3, 2, size, 3, width // 2)
            second, size = self.layers.conv(3, 1, size, width // 2, width // 2)
            third, size = self.layers.conv(3, 1, size, width // 2, width)
            part = first + second + third
        else:
            part, size = self.layers.conv(7, 2, size, 3, width)
        size = -(-size // 2)
        part.kept += size * size * width * self.layers.compute
        return part, size

    def _block(
        self, size: int, inputs: int, filters: int, strides: int, project: bool
    ) -> tuple[Part, int, int]:
        """A residual block; also returns its channels."""
        config = self.config
        if has_bottlenecks(config.resnet_depth):
            channels = 4 * filters
            first, _ = self.layers.conv(1, 1, size, inputs, filters)
            middle, out = self._middle(size, filters, strides)
            last, _ = self.layers.conv(1, 1, out, filters, channels, relu=False)
            part = first + middle + last
        else:
            channels = filters
            first, out = self.layers.conv(3, strides, size, inputs, filters)
            last, _ = self.layers.conv(3, 1, out, filters, filters, relu=False)
            part = first + last
        if project:
            part += self._shortcut(size, inputs, channels, strides)
        if config.se_ratio > 0:
            part += self._squeeze_excite(out, filters, channels)
        part.kept += out * out * channels * self.layers.compute  # the ReLU after the addition
        return part, out, channels

    def _middle(self, size: int, filters: int, strides: int) -> tuple[Part, int]:
        """The 3x3 convolution of a bottleneck block, or its selective kernel."""
        if self.config.sk_ratio == 0:
            return self.layers.conv(3, strides, size, filters, filters)
        branches, out = self.layers.conv(3, strides, size, filters, 2 * filters)
        # Both branches after the split, and their mixture.
        branches.kept += out * out * 3 * filters * self.layers.compute
        squeezed = max(int(filters * self.config.sk_ratio), MIN_SK_FILTERS)
        squeeze, _ = self.layers.conv(1, 1, 1, filters, squeezed)
        expand = squeezed * 2 * filters
        return branches + squeeze + Part(expand, expand), out

    def _shortcut(self, size: int, inputs: int, channels: int, strides: int) -> Part:
        """The projection of a block's input; that of ResNet-D averages first."""
        part, out = self.layers.conv(1, strides, size, inputs, channels, relu=False)
        if self.config.sk_ratio > 0:
            part.kept += out * out * inputs * self.layers.compute
        return part

    def _squeeze_excite(self, size: int, filters: int, channels: int) -> Part:
        squeezed = max(1, int(filters * self.config.se_ratio))
        kernels = 2 * channels * squeezed
        kept = size * size * channels * self.layers.compute
        return Part(kernels + squeezed + channels, kernels, 0, kept)


@dataclasses.dataclass(frozen=True)
class Network:
    """Memory of encoder, projection head and classifier; the backbone must be `is_known`.

    Attributes:
        config: architecture.
        image_size: in pixels.
        num_classes: of the classifier; 0 without one.
        precision: see `Layers`.
        global_bn: see `Layers`.
        method: of the pretraining. A head of its own is estimated as a default head with as many
            layers.
    """

    config: ModelConfig
    image_size: int
    num_classes: int
    precision: str = 'float32'
    global_bn: bool = False
    method: str = LearningConfig.method

    @property
    def head_layers(self) -> int:
        """Number of layers of the projection head."""
        return count_head_layers(self.method, self.config)

    @property
    def layers(self) -> Layers:
        """Memory of its layers."""
        return Layers(self.precision, self.global_bn)

    @property
    def features(self) -> int:
        """Width of the encoder's output."""
        return self._encoder.width

    @property
    def projections(self) -> int:
        """Width of the projection head's output."""
        return self.config.proj_out_dim if self.head_layers else self.features

    @property
    def _encoder(self) -> Encoder:
        return load(self.config.backbone_entry.memory)(self.config, self.image_size, self.layers)

    def encoder(self) -> Sequence[Part]:
        """Parts of the encoder, from the stem on."""
        return self._encoder.parts()

    def head(self) -> list[Part]:
        """Parts of the projection head: all layers but the last, and the last."""
        config, width = self.config, self.features
        if not self.head_layers:
            return []
        hidden = config.proj_hidden_dim or width
        widths = [width, *[hidden] * (self.head_layers - 1)]
        last = self.layers.dense(widths[-1], config.proj_out_dim)
        last.parameters -= config.proj_out_dim  # no beta
        layers = [self.layers.dense(inputs, hidden) for inputs in widths[:-1]]
        return [sum(layers, Part()), last]

    def classifier(self) -> Part:
        """The linear classifier, in float32."""
        parameters = (self.features_read + 1) * self.num_classes if self.num_classes else 0
        return Part(parameters, kept=self.features_read * FLOAT if self.num_classes else 0)

    @property
    def features_read(self) -> int:
        """Width of the classifier's input."""
        count, selector = self.head_layers, self.config.ft_proj_selector
        return self.projections if count and selector in (-1, count) else self.features

    def whole(self) -> Part:
        """The whole network."""
        return sum([*self.encoder(), *self.head()], self.classifier())


def is_known(config: ModelConfig) -> bool:
    """Whether the memory of the backbone of `config` can be estimated."""
    return config.backbone_entry.memory is not None


@dataclasses.dataclass(frozen=True)
class Run:
    """Memory of a run.

    Attributes:
        network: the network that is trained or evaluated.
        learning: stage, memory and what is frozen.
        optimizer: key of `OPTIMIZERS`.
        train_batch_size: global batch; 0 without training.
        eval_batch_size: global batch; 0 without evaluation.
        replicas: number of replicas.
        sharing: number of replicas that share the memory of a device, such as the host's.
        teacher: of a distillation; None without one, or if it is unknown.
        train_examples: their number, for a method that remembers each; 0 if it is unknown.
    """

    network: Network
    learning: LearningConfig
    optimizer: str
    train_batch_size: int
    eval_batch_size: int
    replicas: int = 1
    sharing: int = 1
    teacher: Network | None = None
    train_examples: int = 0

    def training(self) -> dict[str, int]:
        """Bytes on a device during training, by what takes them."""
        return self._of_device({**self._weights(), **self._of_batch()})

    def evaluation(self) -> dict[str, int]:
        """Bytes on a device during evaluation, by what takes them."""
        share = -(-self.eval_batch_size // self.replicas)
        image = self.network.image_size**2 * 3 * FLOAT
        largest = self.network.whole().largest
        batch = {
            'evaluation batches': BATCHES_IN_MEMORY * share * image,
            'activations': share * largest,
        }
        return self._of_device({**self._weights(), **batch})

    def fixed(self) -> int:
        """Bytes on a device that don't depend on the batch and the image size."""
        return sum(self._of_device(self._weights()).values())

    def _of_device(self, parts: Mapping[str, int]) -> dict[str, int]:
        return {what: self.sharing * size for what, size in parts.items() if size}

    def _trained_encoder(self) -> Sequence[Part]:
        """Parts of the encoder with gradients."""
        tuned = self.learning.stage.classifies
        return self.network.encoder()[1 + self.learning.fine_tune_after_block if tuned else 0 :]

    def _trained(self) -> Part:
        """The parts with gradients; those before them keep nothing for the backward pass."""
        network, encoder = self.network, self._trained_encoder()
        head, read = network.head(), network.config.ft_proj_selector
        if not self.learning.stage.classifies:
            return network.whole()
        if read == 0 or not encoder:
            head = []
        return sum([*encoder, *head], network.classifier())

    def _kept(self, size: int) -> int:
        """Bytes that the backward pass needs of one view of `size` pixels.

        Those of the encoder are taken to be proportional to the view's area.
        """
        smaller = (size / self.network.image_size) ** 2
        encoder = self._trained_encoder()
        return self._trained().kept - round((1 - smaller) * sum(part.kept for part in encoder))

    @property
    def _has_momentum_copy(self) -> bool:
        return bool(self.learning.memory_size) or self.learning.entry.momentum_copy

    @property
    def _prototypes(self) -> int:
        return self.learning.prototypes if 'prototypes' in self.learning.entry.reads else 0

    def _besides(self) -> int:
        """Trained parameters besides the network's: of prototypes, and of the predictor's kernels.

        A predictor is an MLP with one hidden layer.
        """
        reads = self.learning.entry.reads
        hidden = self.learning.predictor_hidden_dim if 'predictor_hidden_dim' in reads else 0
        return (2 * hidden + self._prototypes) * self.network.projections

    def _weights(self) -> dict[str, int]:
        network, whole = self.network, self.network.whole()
        besides = self._besides() if self.train_batch_size else 0
        sizes = {'weights': (whole.parameters + whole.statistics + besides) * FLOAT}
        if self.train_batch_size:
            trained = (self._trained().parameters + besides) * FLOAT
            slots = OPTIMIZERS[self.optimizer].slots
            sizes |= {'gradients': trained, self.optimizer: slots * trained}
        if self.train_batch_size and network.precision != 'float32':
            sizes[f'{network.precision} copies'] = whole.kernels * network.layers.compute
        if self._has_momentum_copy and self.train_batch_size:
            copied = whole.parameters + whole.statistics - network.classifier().parameters
            sizes['momentum encoder'] = copied * FLOAT
        if self.learning.memory_size and self.train_batch_size:
            sizes['memory'] = self.learning.memory_size * network.projections * FLOAT
        if self.learning.queue_size and self.train_batch_size:
            row = self.learning.global_crops * network.projections
            sizes['queue'] = self.learning.queue_size * row * FLOAT
        if self.learning.entry.remembers_examples and self.train_batch_size:
            sizes['memory bank'] = self.train_examples * network.projections * FLOAT
        if self.teacher is not None:
            held = self.teacher.whole()
            sizes['teacher'] = (held.parameters + held.statistics) * FLOAT
        return sizes

    def _of_batch(self) -> dict[str, int]:
        network, share = self.network, -(-self.train_batch_size // self.replicas)
        sizes = [view.size or network.image_size for view in self.learning.views]
        pixels = sum(size**2 for size in sizes)
        trained = sizes[self.learning.entry.untrained_views :]
        sizes = {
            'activations': share * sum(map(self._kept, trained)),
            'views': BATCHES_IN_MEMORY * share * pixels * 3 * FLOAT,
        }
        if not self.learning.stage.classifies:
            sizes['logits'] = self._logits(share)
        return sizes

    def _logits(self, share: int) -> int:
        """What the loss keeps."""
        learning, examples = self.learning, self.train_examples
        if learning.entry.remembers_examples:
            compared = learning.bank_negatives + 1 if learning.bank_negatives else examples
            # Rows of the bank that were drawn, or products with all of them.
            made = min(examples, compared * self.network.projections)
            return share * (made + 3 * compared) * FLOAT
        if self._prototypes:
            return self._scores(share)
        if 'memory_size' in learning.entry.needs:
            queries = share * (len(learning.views) - learning.entry.untrained_views)
            return 2 * queries * learning.memory_size * FLOAT  # logits and their gradients
        return self._nt_xent(share)

    def _scores(self, share: int) -> int:
        """Scores, predictions and their gradients of all views; assignments, with the queue's."""
        predicted = len(self.learning.views) * share
        assigned = self.learning.global_crops * (share + self.learning.queue_size // self.replicas)
        return (3 * predicted + 2 * assigned) * self._prototypes * FLOAT

    def _nt_xent(self, share: int) -> int:
        """All projections, their gradients, and a block of logits and exponentials."""
        rows = 2 * self.train_batch_size
        columns = rows + self.learning.memory_size
        block = max(2 * columns, min(LOGITS_AT_A_TIME, 2 * share * columns))
        return (2 * rows * self.network.projections + 2 * block) * FLOAT
