"""How views of an image are made: chains of operations that carry their own arguments."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of a view.

    Attributes:
        name: a key of `data.augmentations.AUGMENTATIONS`.
        arguments: those it has of its own, as (name, value). The others come from the settings of
            the command line.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()


def op(name: str, **arguments: Any) -> Op:
    """`Op`, such as op('crop', area=(0.05, 0.14)) or op('blur', probability=0.1)."""
    return Op(name, tuple(sorted(arguments.items())))


@dataclasses.dataclass(frozen=True)
class View:
    """How one view of an example is made.

    Attributes:
        ops: in order. The first brings every image to one size; those that take single images only
            stand before those that take batches.
        size: height and width in pixels; None takes the setting `image_size`. Views of one batch
            may differ in it.
        draw: number of the draws. Two views with one number have the same box and flip, at
            whatever size.
    """

    ops: tuple[Op, ...]
    size: int | None = None
    draw: int = 0


_STRONG = (op('crop'), op('flip'), op('color'), op('blur'))
_WEAK = (op('crop'), op('flip'))

# SimCLR, appendix A (arXiv:2002.05709): two draws of one chain.
CONTRAST = (View(_STRONG, draw=0), View(_STRONG, draw=1))
# SimCLR, appendix B.5, for fine-tuning.
SUPERVISED = (View(_WEAK),)
EVALUATION = (View((op('eval_crop'),)),)


def teacher_view(kind: str, size: int) -> View:
    """The view of a teacher that does not simply see its student's.

    Args:
        kind: 'student', the student's view drawn at another size, or 'eval', the evaluation view.
        size: pixels the teacher was trained at.
    """
    return View(EVALUATION[0].ops if kind == 'eval' else _WEAK, size)
