"""Architectures inferred from shapes alone, in every format."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.errors import UserError
from tests.tf2.weights import published
from tf2.weights import shape_inference
from tf2.weights.formats import contents_of
from tf2.weights.shape_inference import infer

SPELLINGS = {
    'official TF1 checkpoint': published.tf1_keys,
    'official TF2 checkpoint': published.tf2_keys,
    'official TF2 SavedModel': published.saved_model_keys,
}
every_spelling = pytest.mark.parametrize(('form', 'keys'), SPELLINGS.items(), ids=SPELLINGS)
Keys = Callable[[published.Shapes], dict[str, str]]


def inferred(shapes: published.Shapes, form: str, keys: Keys) -> tuple[dict, bool, int | None]:
    """Architecture, whether the stem is the small one, classes."""
    spelling = keys(shapes)
    spelled = {spelling[name]: shape for name, shape in shapes.items()}
    contents = contents_of('here', {**spelled, 'global_step': ()})
    assert contents.format == form
    assert contents.not_weights == ('global_step',)
    assert contents.keys == spelling
    assert contents.shapes == shapes
    stem = shape_inference.is_for_small_images(contents)
    return infer('here', contents), stem, shape_inference.class_count(contents)


def expected(depth: int, width: float = 1, sk: float = 0.0, se: float = 0.0) -> dict:
    return {'resnet_depth': depth, 'width_multiplier': width, 'sk_ratio': sk, 'se_ratio': se}


THREE_LAYERS = {'proj_head_mode': 'nonlinear', 'num_proj_layers': 3, 'proj_out_dim': 128}


@pytest.mark.parametrize(
    'case', ['r18_1x_sk0_cifar', 'r50_1x_sk1', pytest.param('tf1_r18_1x_sk0_cifar')]
)
def test_shapes_of_these_tests_are_the_published_ones(case: str) -> None:
    golden = published.golden_shapes(case)
    if case.startswith('tf1'):
        golden.pop('global_step')
        made = published.shapes(18, small=True, classes=10)
        keys = published.tf1_keys(made)
        assert {keys[name]: shape for name, shape in made.items()} == golden
    else:
        depth, sk = (18, 0) if case.startswith('r18') else (50, 0.0625)
        made = published.shapes(
            depth, sk=sk, small=depth == 18, classes=10 if depth == 18 else 1000
        )
        assert made == golden
        trainable = [[n for n in names if 'moving' not in n] for names in (made, golden)]
        assert trainable[0] == trainable[1]  # their order matters in SavedModels


@every_spelling
@pytest.mark.parametrize('small', [False, True])
@pytest.mark.parametrize('sk', [0.0, 0.0625])
@pytest.mark.parametrize('width', [1, 2, 3])
@pytest.mark.parametrize('depth', [50, 101, 152])
def test_published_encoders(
    depth: int, width: int, sk: float, small: bool, form: str, keys: Keys
) -> None:
    shapes = published.shapes(depth, width, sk, small=small)
    found = inferred(shapes, form, keys)
    assert found == ({**expected(depth, width, sk), **THREE_LAYERS}, small, 1000)


@every_spelling
@pytest.mark.parametrize(
    ('depth', 'width', 'sk', 'se'),
    [
        (18, 1, 0, 0),
        (34, 2, 0, 0),
        (200, 1, 0, 0),
        (200, 2, 0.0625, 0),
        (18, 1, 0, 0.25),
        (34, 0.25, 0, 1),
        (50, 1, 0, 0.0625),
        (50, 0.3, 0, 0.25),
        (101, 1, 0.0625, 0.25),
        (152, 3, 0.0625, 0.25),
        (50, 1, 0.25, 0),
        (50, 2, 0.1, 0.5),
    ],
)
def test_other_encoders(
    depth: int, width: float, sk: float, se: float, form: str, keys: Keys
) -> None:
    for small in (False, True):
        shapes = published.shapes(depth, width, sk, se, small=small, classes=None)
        found = inferred(shapes, form, keys)
        assert found == ({**expected(depth, width, sk, se), **THREE_LAYERS}, small, None)


@every_spelling
@pytest.mark.parametrize(
    ('layers', 'head'),
    [
        (0, {'proj_head_mode': 'none'}),
        (1, {'proj_head_mode': 'linear', 'proj_out_dim': 64}),
        (2, {'proj_head_mode': 'nonlinear', 'num_proj_layers': 2, 'proj_out_dim': 64}),
        (4, {'proj_head_mode': 'nonlinear', 'num_proj_layers': 4, 'proj_out_dim': 64}),
    ],
)
def test_heads(layers: int, head: dict, form: str, keys: Keys) -> None:
    shapes = published.shapes(18, 0.25, head=layers, out=64, classes=7)
    assert inferred(shapes, form, keys) == ({**expected(18, 0.25), **head}, False, 7)


def test_a_head_without_its_last_layer() -> None:
    shapes = published.shapes(18, 0.25)
    cut = {name: shape for name, shape in shapes.items() if 'linear_layers/2' not in name}
    head = {'proj_head_mode': 'nonlinear', 'num_proj_layers': 3}
    found, _, _ = inferred(cut, 'official TF2 checkpoint', published.tf2_keys)
    assert found == {**expected(18, 0.25), **head}


@pytest.mark.parametrize('width', [0.05, 0.1, 1 / 3, 0.5, 0.77, 1.5, 4])
def test_widths_are_inferred_up_to_rounding(width: float) -> None:
    shapes = published.shapes(18, width)
    found, _, _ = inferred(shapes, 'official TF2 checkpoint', published.tf2_keys)
    assert published.shapes(18, found['width_multiplier']) == shapes
    assert len(str(found['width_multiplier'])) <= 5


@pytest.mark.parametrize('ratio', [0.01, 0.03, 0.07, 1 / 3, 0.9, 1])
@pytest.mark.parametrize('width', [0.3, 1, 3])
def test_ratios_are_inferred_up_to_rounding(width: float, ratio: float) -> None:
    shapes = published.shapes(50, width, ratio, ratio)
    found, _, _ = inferred(shapes, 'official TF2 checkpoint', published.tf2_keys)
    same = published.shapes(50, width, found['sk_ratio'], found['se_ratio'])
    assert same == shapes


def test_gates_are_recognized_by_their_biases() -> None:
    shapes = published.shapes(18, 0.25, se=0.5)
    renamed = {
        name: name.replace('se_layer/se_reduce', 'gate/conv2d_1').replace(
            'se_layer/se_expand', 'gate/conv2d'
        )
        for name in shapes
    }
    spelled = {f'{renamed[name]}{published.SUFFIX}': shape for name, shape in shapes.items()}
    contents = contents_of('here', spelled)
    assert contents.shapes == shapes
    assert infer('here', contents)['se_ratio'] == 0.5


def test_encoders_with_a_part_missing_are_refused() -> None:
    shapes = published.shapes(18, 0.25)
    for name, words in (
        ('model/resnet_model/block_groups/0/layers/0/conv2d_bn_layers/0/conv2d/kernel', '20 conv'),
        ('model/resnet_model/initial_conv_relu_max_pool/2/bn/gamma', '2/bn/gamma'),
    ):
        for keys in SPELLINGS.values():
            spelling = keys(shapes)
            spelled = {spelling[n]: shape for n, shape in shapes.items() if n != name}
            with pytest.raises(UserError) as error:
                contents_of('here', spelled)
            assert '\n' not in str(error.value)
            if keys is published.tf2_keys:
                assert words in str(error.value)


def test_other_models_are_refused_with_what_was_expected_and_found() -> None:
    with pytest.raises(UserError, match=r'base_model/….*found.*dense/kernel.*embedding/weights'):
        contents_of('here', {'embedding/weights': (3,), 'dense/kernel': (3, 4)})
    with pytest.raises(UserError, match='no variable'):
        contents_of('here', {})
