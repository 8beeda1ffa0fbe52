"""Command-line options for the network and the batch of a benchmark."""

from __future__ import annotations

import argparse


def add_case(parser: argparse.ArgumentParser) -> None:
    """Adds depth, width, size and batch; the defaults are the first case of `steps`."""
    parser.add_argument('--depth', type=int, default=18)
    parser.add_argument('--width', type=float, default=1)
    parser.add_argument('--size', type=int, default=32, help='of the images, in pixels')
    parser.add_argument('--batch', type=int, default=64)
