"""Views of an image: chains of operations with their own arguments."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of a view.

    Attributes:
        name: a key of `data.augmentations.AUGMENTATIONS`.
        arguments: its own arguments, as (name, value). The others come from the settings.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()


def op(name: str, **arguments: Any) -> Op:
    """An `Op`, such as op('crop', area=(0.05, 0.14)) or op('blur', probability=0.1)."""
    return Op(name, tuple(sorted(arguments.items())))


@dataclasses.dataclass(frozen=True)
class View:
    """How one view of an example is made.

    Attributes:
        ops: in order. The first resizes every image to one size; those that take only single images
            come before those that take batches.
        size: height and width in pixels; None for the setting `image_size`. Views of one batch may
            have different sizes.
        draw: number of its random draws. Views with the same number have the same box and flip, at
            any size.
    """

    ops: tuple[Op, ...]
    size: int | None = None
    draw: int = 0


@dataclasses.dataclass(frozen=True)
class Crops:
    """Global and local crops of each image: multi-crop (SwAV, section 3.2, arXiv:2006.09882).

    Attributes:
        global_crops: their number.
        local_crops: their number.
        local_size: height and width of local crops in pixels; global ones have `image_size`.
        global_area: smallest and largest share of the image's area; None leaves it to the settings.
        local_area: the same.
    """

    global_crops: int
    local_crops: int
    local_size: int
    global_area: tuple[float, float] | None
    local_area: tuple[float, float]


def with_crops(views: tuple[View, ...], local: View, crops: Crops) -> tuple[View, ...]:
    """Views of a method that takes crops, the global ones first, each with a draw of its own.

    Args:
        views: how global crops are made, in turn if there are more crops than these.
        local: how a local crop is made, apart from size and area.
        crops: how many there are, and of which size and area.
    """
    made = [views[number % len(views)] for number in range(crops.global_crops)]
    if crops.global_area is not None:
        made = [_with_area(view, crops.global_area) for view in made]
    small = dataclasses.replace(_with_area(local, crops.local_area), size=crops.local_size)
    made += [small] * crops.local_crops
    return tuple(dataclasses.replace(view, draw=draw) for draw, view in enumerate(made))


def _with_area(view: View, area: tuple[float, float]) -> View:
    crop = op('crop', area=area)
    return dataclasses.replace(
        view, ops=tuple(crop if own.name == 'crop' else own for own in view.ops)
    )


_STRONG = (op('crop'), op('flip'), op('color'), op('blur'))
_WEAK = (op('crop'), op('flip'))

# SimCLR, appendix A (arXiv:2002.05709): two draws of one chain.
CONTRAST = (View(_STRONG, draw=0), View(_STRONG, draw=1))
# BYOL, appendix B (arXiv:2006.07733): one view is always blurred, the other sometimes solarized.
_MILDER = op('color', strengths=(0.4, 0.4, 0.2, 0.1))
ASYMMETRIC = (
    View((op('crop'), op('flip'), _MILDER, op('blur', probability=1.0)), draw=0),
    View(
        (
            op('crop'),
            op('flip'),
            _MILDER,
            op('blur', probability=0.1),
            op('solarize', probability=0.2),
        ),
        draw=1,
    ),
)
# Local crops of BYOL: its paper has none. They are blurred as in the program of DINO
# (arXiv:2104.14294), which has BYOL's operations.
ASYMMETRIC_LOCAL = View((op('crop'), op('flip'), _MILDER, op('blur', probability=0.5)))
# MoCo (arXiv:1911.05722, section 3.3, and its program): colors always change, by larger amounts.
_GRAY_FIRST = (
    op('crop'),
    op('gray'),
    op('color', strengths=(0.4, 0.4, 0.4, 0.4), probability=1.0, gray_probability=0.0),
    op('flip'),
)
QUERY_AND_KEY_V1 = (View(_GRAY_FIRST, draw=0), View(_GRAY_FIRST, draw=1))
# InstDisc (arXiv:1805.01978) and its program: a single view.
DISCRIMINATION = QUERY_AND_KEY_V1[:1]
# InvaSpread (arXiv:1904.03436) and its program: gray after the jitter.
_GRAY_LAST = (op('crop'), op('color', strengths=(0.4, 0.4, 0.4, 0.4), probability=1.0), op('flip'))
SPREAD = (View(_GRAY_LAST, draw=0), View(_GRAY_LAST, draw=1))
# MoCo v2 (arXiv:2003.04297, and its program) and SimSiam (arXiv:2011.10566, section 3): SimCLR's
# operations, colors at half the strength.
_HALF_COLOR = (op('crop'), op('color', strengths=(0.4, 0.4, 0.4, 0.1)), op('blur'), op('flip'))
QUERY_AND_KEY_V2 = (View(_HALF_COLOR, draw=0), View(_HALF_COLOR, draw=1))
# SimCLR, appendix B.5, for fine-tuning.
SUPERVISED = (View(_WEAK),)
EVALUATION = (View((op('eval_crop'),)),)


def teacher_view(kind: str, size: int) -> View:
    """The view of a teacher that doesn't get a view of its student.

    Args:
        kind: 'student' for the student's box and flip at another size, or 'eval' for the evaluation
            view.
        size: pixels the teacher was trained at.
    """
    return View(EVALUATION[0].ops if kind == 'eval' else _WEAK, size)
