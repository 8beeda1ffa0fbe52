"""Settings that become flags.

A setting is defined once, as a field of a frozen dataclass made with `option`. `run.py` derives
the command line from these fields, so defaults, help and permitted values never drift apart.
"""

from __future__ import annotations

import dataclasses
import functools
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
        default: value if nothing is given; None means "decided when the program runs".
        help: one sentence for `--help`.
        choices: the only permitted values, in the order of `--help`. They may be a registry, to
            which entries are added later.
        at_least: smallest permitted number.
        at_most: largest permitted number. Every number has one: `LARGEST_INTEGER` or
            `LARGEST_FLOAT` by default.
        above: exclusive lower bound.
        below: exclusive upper bound.
        modes: those modes without training that read it. They refuse other flags, eval only if they
            differ from what the run has recorded.
        runs: whether the modes that train read it.
        requires: setting -> values, one of which it must have for this one to be read; an empty
            collection stands for all values except None, 0 and False.
        resume: what happens if a resumed run has another value.
            'free': nothing; the setting says where a run executes, what it prints or keeps.
            'continue': the new value is used, printed and recorded.
            'refuse': it would change the result, so --allow_changes must name it; then the new
            value is used, printed and recorded.
            'fixed': it is refused, because checkpoints fit one value only.

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
    hint = _type_hints(config)[name]
    if not isinstance(hint, types.UnionType):
        return hint
    members = [member for member in typing.get_args(hint) if member is not types.NoneType]
    return float if float in members else members[0]


_type_hints = functools.cache(typing.get_type_hints)


def check_options(config: Any) -> None:
    """Raises UserError if a value in dataclass instance `config` is not permitted."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata:
            check_option(field.name, value, field.metadata)


def check_option(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Raises UserError if `value` is not permitted for setting `name`, declared with `metadata`."""
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
