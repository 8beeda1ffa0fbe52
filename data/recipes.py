"""Named chains of augmentations (SimCLR appendix A and B.5; SimCLRv2, arXiv:2006.10029)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the views of an example are made.

    Attributes:
        steps: names in AUGMENTATIONS, in order. The first brings every image to one size; those
            that take single images only stand before those that take batches.
        views: how many views, each with its own seed.
    """

    steps: tuple[str, ...]
    views: int = 1


RECIPES: dict[str, Recipe] = {
    'pretrain': Recipe(('crop', 'flip', 'color', 'blur'), views=2),
    'finetune': Recipe(('crop', 'flip')),
    'eval': Recipe(('eval_crop',)),
}
