"""Split notation shared by all sources: 'train', 'train[:10%]', 'train+test[5:]'."""

from __future__ import annotations

import re
from collections.abc import Iterable

from settings import UserError


def check_split(dataset: str, split: str, available: Iterable[str]) -> None:
    """Checks that every split which `split` names exists.

    Args:
        dataset: name of the data set, for the message.
        split: TFDS split notation.
        available: names of the splits that exist.

    Raises:
        UserError: if one doesn't exist.
    """
    available = sorted(available)
    for part in split.split('+'):
        name = re.sub(r'\[.*\]\s*$', '', part).strip()
        if name not in available:
            listed = ', '.join(available) or 'none'
            raise UserError(
                f'Data set {dataset} has no split {name!r}; its splits are: {listed}. '
                'Choose with --train_split and --eval_split.'
            )


def malformed_split(dataset: str, split: str) -> UserError:
    """The error for a slice that cannot be read, such as 'train[:x]'."""
    return UserError(
        f'Cannot read split {split!r} of data set {dataset}; '
        "write it like 'train', 'train[:10%]' or 'train[100:200]'."
    )
