"""Times a pretraining step of lightly, a PyTorch library, fed from memory.

Run by `peers` and `methods` with the Python of LIGHTLY_PYTHON; see README.md in this folder for its
installation. It needs PyTorch, torchvision and lightly, and nothing of this project.

The first line of output is JSON and names what is timed. Then each line of input runs one step, and
its time is printed: {"seconds": 1.5}. Output of libraries goes to stderr.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable

# Output of libraries on stdout would be taken for answers.
ANSWERS = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

try:
    import lightly
    import torch
    import torchvision
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss, SwaVLoss
    from lightly.models import modules, utils
    from lightly.utils.lars import LARS
except ImportError as error:
    sys.exit(
        f'{sys.executable} has no lightly with LARS ({error}). See benchmarks/speed/README.md for '
        'its installation'
    )

SIZE = 32  # pixels
CLASSES = 10
FEATURES = 512  # of ResNet-18
PROJECTIONS = 128
TEMPERATURE = 0.1
LEARNING_RATE = 0.01
WEIGHT_DECAY = 1e-6
MOMENTUM = 0.99  # of momentum networks
QUEUE = 4096

Step = Callable[[torch.Tensor], torch.Tensor]  # views [2b, 3, s, s] -> loss
Made = tuple[torch.nn.Module, torch.optim.Optimizer, Step]


class Network(torch.nn.Module):
    """ResNet-18 with a stem for small images, a head, and a classifier."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.backbone.maxpool = torch.nn.Identity()
        self.backbone.fc = torch.nn.Identity()
        self.head = head
        self.classifier = torch.nn.Linear(FEATURES, CLASSES)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [2b, 3, s, s] to projections [2b, 128] and logits [2b, 10]."""
        features = self.backbone(images)
        return self.head(features), self.classifier(features.detach())


def optimizer_of(network: Network) -> LARS:
    """LARS, with weight decay only for kernels of the backbone and the head."""
    kernels, others = [], [*network.classifier.parameters()]
    for parameter in (*network.backbone.parameters(), *network.head.parameters()):
        (kernels if parameter.ndim > 1 else others).append(parameter)
    groups = [
        {'params': kernels, 'weight_decay': WEIGHT_DECAY},
        {'params': others, 'weight_decay': 0.0},
    ]
    return LARS(groups, lr=LEARNING_RATE, momentum=0.9)


def simclr(labels: torch.Tensor) -> Made:
    """NT-Xent with LARS; both views are one batch."""
    network = Network(modules.SimCLRProjectionHead(FEATURES, FEATURES, PROJECTIONS, num_layers=3))
    contrast = NTXentLoss(TEMPERATURE)

    def loss(views: torch.Tensor) -> torch.Tensor:
        projections, logits = network(views)
        return contrast(*projections.float().chunk(2)) + supervised(logits, labels.repeat(2))

    return network, optimizer_of(network), loss


def moco_v2(labels: torch.Tensor) -> Made:
    """A query, a key of a momentum network, and a queue."""
    network = Network(modules.MoCoProjectionHead(FEATURES, FEATURES, PROJECTIONS))
    momentum = momentum_copy(network)
    contrast = NTXentLoss(0.2, memory_bank_size=(QUEUE, PROJECTIONS))

    def loss(views: torch.Tensor) -> torch.Tensor:
        query_view, key_view = views.chunk(2)
        queries, logits = network(query_view)
        with torch.no_grad():
            keys, _ = momentum(key_view)
        utils.update_momentum(network, momentum, MOMENTUM)
        return contrast(queries.float(), keys.float()) + supervised(logits, labels)

    return network, sgd(network), loss


def byol(labels: torch.Tensor) -> Made:
    """Predictions of a momentum network's projections."""
    network = Network(modules.BYOLProjectionHead(FEATURES, 1024, 256))
    momentum = momentum_copy(network)
    network.predictor = modules.BYOLPredictionHead(256, 1024, 256)

    def loss(views: torch.Tensor) -> torch.Tensor:
        outputs = [network(view) for view in views.chunk(2)]
        with torch.no_grad():
            targets = [momentum(view)[0] for view in views.chunk(2)]
        utils.update_momentum(network.backbone, momentum.backbone, MOMENTUM)
        utils.update_momentum(network.head, momentum.head, MOMENTUM)
        return predicted(network, outputs, targets, labels)

    return network, sgd(network), loss


def simsiam(labels: torch.Tensor) -> Made:
    """Predictions of the other view's projection, without a momentum network."""
    network = Network(modules.SimSiamProjectionHead(FEATURES, 512, 512))
    network.predictor = modules.SimSiamPredictionHead(512, 128, 512)

    def loss(views: torch.Tensor) -> torch.Tensor:
        outputs = [network(view) for view in views.chunk(2)]
        return predicted(network, outputs, [made.detach() for made, _ in outputs], labels)

    return network, sgd(network), loss


def swav(labels: torch.Tensor) -> Made:
    """Assignments to prototypes, predicted from the other view; both views are one batch."""
    network = Network(modules.SwaVProjectionHead(FEATURES, 512, PROJECTIONS))
    network.prototypes = modules.SwaVPrototypes(PROJECTIONS, 512)
    criterion = SwaVLoss()

    def loss(views: torch.Tensor) -> torch.Tensor:
        network.prototypes.normalize()
        projections, logits = network(views)
        scores = network.prototypes(torch.nn.functional.normalize(projections.float()))
        return criterion(list(scores.chunk(2)), []) + supervised(logits, labels.repeat(2))

    return network, sgd(network), loss


def predicted(
    network: Network,
    outputs: list[tuple[torch.Tensor, torch.Tensor]],
    targets: list[torch.Tensor],
    labels: torch.Tensor,
) -> torch.Tensor:
    """The loss of predicting each view's target from the other view, and of the classifier."""
    criterion = NegativeCosineSimilarity()
    pairs = zip((network.predictor(made) for made, _ in outputs), reversed(targets))
    similarities = [criterion(made.float(), wanted.float()) for made, wanted in pairs]
    logits = torch.cat([logits for _, logits in outputs])
    return sum(similarities) / 2 + supervised(logits, labels.repeat(2))


METHODS = {made.__name__: made for made in (simclr, moco_v2, byol, simsiam, swav)}


def momentum_copy(network: Network) -> Network:
    """A copy without gradients."""
    made = copy.deepcopy(network)
    utils.deactivate_requires_grad(made)
    return made.to(memory_format=torch.channels_last)


def sgd(network: torch.nn.Module) -> torch.optim.SGD:
    """SGD with momentum and weight decay of everything."""
    return torch.optim.SGD(network.parameters(), LEARNING_RATE, 0.9, weight_decay=1e-4)


def supervised(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of the classifier."""
    return torch.nn.functional.cross_entropy(logits.float(), labels)


def step_of(method: str, batch: int, precision: str) -> Callable[[], float]:
    """A step on `batch` images with two views each, in channels-last layout; returns its loss."""
    network, optimizer, loss_of = METHODS[method](torch.randint(0, CLASSES, [batch]))
    network.to(memory_format=torch.channels_last)
    views = torch.rand(2 * batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)

    def step() -> float:
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
            loss = loss_of(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    """For each line of input, runs one step and prints its seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--precision', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--method', default='simclr', choices=METHODS)
    given = parser.parse_args()
    step = step_of(given.method, given.batch, given.precision)
    what = f'{given.method} of lightly {lightly.__version__}, PyTorch {torch.__version__}'
    print(
        json.dumps({'timed': f'{what}, channels last, {given.precision}'}), file=ANSWERS, flush=True
    )
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
        print(json.dumps({'seconds': seconds}), file=ANSWERS, flush=True)


if __name__ == '__main__':
    main()
