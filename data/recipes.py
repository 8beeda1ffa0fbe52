"""Named chains of augmentations (SimCLR appendix A and B.5; SimCLRv2, arXiv:2006.10029)."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias


@dataclasses.dataclass(frozen=True)
class View:
    """How one view of an example is made.

    Attributes:
        steps: names in AUGMENTATIONS, in order. The first brings every image to one size; those
            that take single images only stand before those that take batches.
        seed: number of the draws. Two views with one number have the same box and flip, at
            whatever size.
        size: height and width in pixels; None takes the configuration's `image_size`.
    """

    steps: tuple[str, ...]
    seed: int = 0
    size: int | None = None


Recipe: TypeAlias = tuple[View, ...]

_CONTRAST = ('crop', 'flip', 'color', 'blur')
_LIGHT = ('crop', 'flip')

RECIPES: dict[str, Recipe] = {
    'pretrain': (View(_CONTRAST, seed=0), View(_CONTRAST, seed=1)),
    'finetune': (View(_LIGHT),),
    'distill': (View(_LIGHT),),
    'eval': (View(('eval_crop',)),),
}


def teacher_view(kind: str, size: int) -> View:
    """The view of a teacher that does not simply see its student's.

    Args:
        kind: 'student', the student's view drawn at another size, or 'eval', the evaluation view.
        size: pixels the teacher was trained at.
    """
    steps = RECIPES['eval'][0].steps if kind == 'eval' else _LIGHT
    return View(steps, size=size)
