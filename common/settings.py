"""Settings that become flags.

A setting stands once, as a field of a frozen dataclass made with `option`. `run.py` derives
the command line from these fields, so default, help text and permitted values never drift apart.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import UserError

LARGEST_INTEGER = 2**31 - 1  # fits TensorFlow's int32
LARGEST_FLOAT = 1e6
INFERENCE = ('embed', 'predict')  # modes that run a network over a data set and train nothing


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    modes: Iterable[str] = (),
    runs: bool = True,
    requires: Mapping[str, Iterable[Any]] = types.MappingProxyType({}),
    resume: str = 'refuse',
) -> Any:
    """Declares one setting of a frozen dataclass.

    Args:
        default: value when nothing is given; None means "decided when the program runs".
        help: one sentence for `--help`.
        choices: the only permitted values, in the order `--help` lists them. The keys of a
            registry may still become more.
        at_least: smallest permitted number.
        at_most: largest permitted number. Every number has one: `LARGEST_INTEGER` or
            `LARGEST_FLOAT` by default.
        above: exclusive lower bound.
        below: exclusive upper bound.
        modes: which of the modes that train nothing read it. They refuse other flags, eval only
            where they differ from what the run has recorded.
        runs: whether the modes that train read it.
        requires: setting -> values, without which this one is not read; no values stand for all
            that are neither None, 0 nor False.
        resume: what happens where a resumed run has another value.
            'free': nothing; the setting says where a run executes, what it shows or keeps.
            'continue': it is taken, said and recorded.
            'refuse': it would change the result, so --allow_changes has to name it; then it is
            said and recorded.
            'fixed': it is refused, for checkpoints hold nothing else.

    Returns:
        A dataclass field whose metadata `check_options`, `app.config` and `run.py` read.
    """
    if at_most is None and below is None and not isinstance(default, bool):
        at_most = {int: LARGEST_INTEGER, float: LARGEST_FLOAT}.get(type(default))
    metadata = {
        'default': default,
        'help': help,
        'choices': choices if isinstance(choices, Mapping) or not choices else tuple(choices),
        'limits': {'at_least': at_least, 'at_most': at_most, 'above': above, 'below': below},
        'modes': tuple(modes),
        'runs': runs,
        'requires': {name: tuple(values) for name, values in requires.items()},
        'resume': resume,
    }
    return dataclasses.field(default=default, metadata=metadata)


def option_type(config: type, name: str) -> type:
    """The plain type (bool, int, float or str) of option `name` of dataclass `config`.

    `int | float` (a whole number or a fraction) comes back as float, `X | None` as X.
    """
    hint = typing.get_type_hints(config)[name]
    if not isinstance(hint, types.UnionType):
        return hint
    members = [member for member in typing.get_args(hint) if member is not types.NoneType]
    return float if float in members else members[0]


def check_options(config: Any) -> None:
    """Raises UserError if a value in dataclass instance `config` is out of bounds or choices."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata:
            check_option(field.name, value, field.metadata)


def check_option(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Raises UserError if setting `name`, declared with `metadata`, does not take `value`."""
    if value is None:
        return
    choices = metadata['choices']
    if choices and value not in choices:
        listed = ', '.join(str(choice) for choice in choices)
        raise UserError(f'--{name} must be one of {listed}; found {value!r}.')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'--{name} must be a finite number; found {value}.')
    limits = metadata['limits']
    rules = (
        ('at least', limits['at_least'], lambda bound: value >= bound),
        ('at most', limits['at_most'], lambda bound: value <= bound),
        ('greater than', limits['above'], lambda bound: value > bound),
        ('less than', limits['below'], lambda bound: value < bound),
    )
    for words, bound, holds in rules:
        if bound is not None and not holds(bound):
            raise UserError(f'--{name} must be {words} {bound}; found {value}.')
