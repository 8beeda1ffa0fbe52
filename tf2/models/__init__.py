"""Encoders and heads. A backbone is one file here and one line in `BACKBONES`."""

from __future__ import annotations

from tf2.models.resnet import ResNet

BACKBONES = {'resnet': ResNet}
