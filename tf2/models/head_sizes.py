"""Layers of the projection heads of methods after SimCLR. Imports no TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tf2.config import ModelConfig


def count_layers(config: ModelConfig) -> int:
    """Number of layers: `num_proj_layers`, whatever `proj_head_mode` says."""
    return config.num_proj_layers


def layer_widths(config: ModelConfig, inputs: int) -> list[int]:
    """Widths of the layers.

    Args:
        config: `num_proj_layers`, `proj_hidden_dim` and `proj_out_dim` are read.
        inputs: width of the representation.
    """
    hidden = config.proj_hidden_dim or inputs
    return [hidden] * (config.num_proj_layers - 1) + [config.proj_out_dim]
