"""Published names, written out for layers that no golden model has."""

from __future__ import annotations

import pytest

from tests.tf2.weights import published
from tf2.config import ModelConfig
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.published_names import encoder_layers, tf2_names


@pytest.mark.parametrize(
    ('depth', 'sk', 'se', 'size'), [(18, 0.0, 0.25, 32), (50, 0.0, 0.25, 64), (50, 0.0625, 0.5, 64)]
)
def test_names_with_squeeze_and_excitation(depth: int, sk: float, se: float, size: int) -> None:
    config = ModelConfig(
        resnet_depth=depth, width_multiplier=0.0625, sk_ratio=sk, se_ratio=se, num_proj_layers=2
    )
    model = build_model(SimCLRModel(config, size, 5))
    expected = published.shapes(depth, 0.0625, sk, se, small=size == 32, head=2, classes=5)
    found = {name: tuple(variable.shape) for name, variable in tf2_names(model).items()}
    assert found == expected


def test_encoder_layers_need_no_built_model() -> None:
    names = [
        name for name, _ in encoder_layers(SimCLRModel(ModelConfig(resnet_depth=18), 32, None))
    ]
    layers = {name.rpartition('/')[0] for name in published.shapes(18, small=True, head=0)}
    assert set(names) == {name for name in layers if name.startswith('model/resnet_model')}
