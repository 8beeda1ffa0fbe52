"""Times the pretraining step of lightly, a PyTorch library, fed from memory.

Run by `peers` with the Python of LIGHTLY_PYTHON; see README.md in this folder for its installation.
It needs PyTorch, torchvision and lightly, and nothing of this project.

The first line of output is JSON and names what is timed. Then each line of input runs one step, and
its time is printed: {"seconds": 1.5}. Output of libraries goes to stderr.
"""

from __future__ import annotations

import argparse
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
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
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


class Network(torch.nn.Module):
    """ResNet-18 with a stem for small images, lightly's head of three layers, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.backbone.maxpool = torch.nn.Identity()
        self.backbone.fc = torch.nn.Identity()
        self.head = SimCLRProjectionHead(FEATURES, FEATURES, PROJECTIONS, num_layers=3)
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


def step_of(batch: int, precision: str) -> Callable[[], float]:
    """A step on `batch` images with two views each, in channels-last layout; returns its loss."""
    network = Network().to(memory_format=torch.channels_last)
    optimizer = optimizer_of(network)
    contrast = NTXentLoss(TEMPERATURE)
    views = torch.rand(2 * batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, [batch]).repeat(2)

    def step() -> float:
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
            projections, logits = network(views)
        supervised = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss = contrast(*projections.float().chunk(2)) + supervised
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
    given = parser.parse_args()
    step = step_of(given.batch, given.precision)
    what = f'lightly {lightly.__version__}, PyTorch {torch.__version__}, LARS, channels last'
    print(json.dumps({'timed': f'{what}, {given.precision}'}), file=ANSWERS, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
        print(json.dumps({'seconds': seconds}), file=ANSWERS, flush=True)


if __name__ == '__main__':
    main()
