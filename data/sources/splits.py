"""TFDS split notation, for all sources: 'train', 'train[:10%]', 'train+test[5:]'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import UserError, printable


def check_split(dataset: str, split: str, available: Iterable[str]) -> None:
    """Checks that every split named in `split` exists.

    Args:
        dataset: name of the data set, for the message.
        split: TFDS split notation.
        available: names of the splits that exist.

    Raises:
        UserError: if one doesn't exist.
    """
    available = sorted(available)
    for name in split_names(split):
        if name not in available:
            listed = ', '.join(map(printable, available)) or 'none'
            raise UserError(
                f'Data set {dataset} has no split {name!r}; its splits are: {listed}. '
                'Choose with --train_split and --eval_split.'
            )


def split_names(split: str) -> list[str]:
    """The splits that `split`, TFDS split notation, is made of."""
    return [re.sub(r'\[.*\]\s*$', '', part).strip() for part in split.split('+')]


def distinct(splits: Mapping[str, Any]) -> list[str]:
    """Names of the splits, each once, by its first name if it goes by a usual one too."""
    named = {id(split): name for name, split in reversed(splits.items())}
    return list(named.values())[::-1]


def malformed_split(dataset: str, split: str) -> UserError:
    """The error for a slice that cannot be read, such as 'train[:x]'."""
    return UserError(
        f'Cannot read split {split!r} of data set {dataset}; '
        "write it like 'train', 'train[:10%]' or 'train[100:200]'."
    )


def parts_of(dataset: str, split: str, infos: Mapping[str, Any]) -> list[tuple[str, range]]:
    """The parts of splits that `split` consists of.

    Args:
        dataset: name of the data set, for messages.
        split: TFDS split notation.
        infos: the splits that exist, name → `tfds.core.SplitInfo`.

    Returns:
        Pairs of a split's name and the numbers of its examples, in reading order.

    Raises:
        UserError: if there is no such split, it is malformed, or a slice ends before it starts.
    """
    import tensorflow_datasets as tfds

    check_split(dataset, split, infos)
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, AssertionError, KeyError) as error:
        raise malformed_split(dataset, split) from error
    found = []
    for part in parts:
        count = infos[part.splitname].num_examples
        start = 0 if part.from_ is None else part.from_
        stop = count if part.to is None else part.to
        if stop < start:
            raise UserError(
                f'A slice must not end before it starts; found {split!r} of data set {dataset}, '
                f'which asks for examples {start} to {stop} of the {count} in '
                f'{part.splitname!r}. Swap the two.'
            )
        found.append((part.splitname, range(start, stop)))
    return found
