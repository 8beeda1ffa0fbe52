"""Reads our own JSON files and checks their contents."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from common.errors import UserError, one_line
from common.file_names import CHECKPOINT_LIST
from common.settings import check_option, option_type
from tf2.config import LearningConfig, ModelConfig

_WORDS = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'a string',
    list: 'a list',
    dict: 'an object',
}


@dataclasses.dataclass(frozen=True)
class Value:
    """What a JSON value must be.

    Attributes:
        kind: bool, int, float (which takes whole numbers too), str, list or dict.
        nullable: whether it may be null.
        required: whether its key must exist.
        items: of each element of a list, or of the values of a dict that `keys` doesn't name. None
            doesn't check these: a newer release may have written them.
        keys: of the values of a dict, by key.
        check: raises UserError for a wrong value of the right kind.
    """

    kind: type
    nullable: bool = False
    required: bool = False
    items: Value | None = None
    keys: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    check: Callable[[Any], None] | None = None


def of_options(config: type) -> dict[str, Value]:
    """Name -> allowed value of each setting in dataclass `config`; none is required."""

    def value(field: dataclasses.Field) -> Value:
        def check(found: Any) -> None:
            check_option(field.name, found, field.metadata)

        nullable = field.default is None
        return Value(option_type(config, field.name), nullable=nullable, check=check)

    return {field.name: value(field) for field in dataclasses.fields(config)}


def at_least(bound: int) -> Callable[[Any], None]:
    """A check for `Value`."""

    def check(found: Any) -> None:
        if found < bound:
            raise UserError(f'it must be at least {bound}')

    return check


RESULT = Value(
    dict, items=Value(float, nullable=True), keys={'global_step': Value(int, required=True)}
)
METHOD = of_options(LearningConfig)['method']
DETAILS = Value(
    dict,
    keys={
        'global_step': Value(int, required=True),
        'eval/per_class_accuracy': Value(dict, items=Value(float)),
        'eval/confusion_matrix': Value(list, items=Value(list, items=Value(int))),
    },
)
CLASS_NAMES = Value(list, nullable=True, items=Value(str))
MODULE = Value(
    dict,
    keys={
        'model': Value(dict, keys=of_options(ModelConfig), required=True),
        'image_size': Value(int, required=True, check=at_least(1)),
        'num_classes': Value(int, nullable=True, required=True, check=at_least(1)),
        'step': Value(int, required=True, check=at_least(0)),
        'class_names': CLASS_NAMES,
        'method': METHOD,
    },
)


def read_json(path: str, value: Value, advice: str) -> dict[str, Any] | None:
    """The JSON object in the file `path`; None if there is no such file.

    Args:
        path: on any file system TensorFlow knows.
        value: what the object must be; a dict.
        advice: a sentence that says what to do if it is something else.

    Raises:
        UserError: if it is something else; names file, key, and what was expected and found.
    """
    text = read_text(path, advice)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(
            path, 'should be JSON as this program writes it', str(error), advice
        ) from error
    _check(path, '', value, found, advice)
    return found


def model_config(path: str, values: Mapping[str, Any], advice: str) -> ModelConfig:
    """The architecture in `values`, from the file `path`; missing settings have their defaults.

    Raises:
        UserError: if they contradict each other.
    """
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name in values]
    try:
        return ModelConfig(**{name: values[name] for name in names})
    except UserError as error:
        raise UserError(
            f'{path} should hold settings that go together. {error} {advice}'
        ) from error


def read_text(path: str, advice: str) -> str | None:
    """The text in the file `path`; None if there is no such file.

    Raises:
        UserError: if it can't be read, or isn't UTF-8.
    """
    import tensorflow as tf

    try:
        if not tf.io.gfile.exists(path):
            return None
        with tf.io.gfile.GFile(path, 'rb') as file:
            return file.read().decode()
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise _wrong(path, 'should be a text file in UTF-8', str(error), advice) from error


def newest_in(folder: str, advice: str) -> str | None:
    """The newest checkpoint according to the file `checkpoint` in `folder`.

    Returns:
        A name, or the path that the checkpoint once had; None if there is no such file.

    Raises:
        UserError: if the file names none.
    """
    from google.protobuf import text_encoding

    path = os.path.join(folder, CHECKPOINT_LIST)
    text = read_text(path, advice)
    if text is None:
        return None
    match = re.search(r'^\s*model_checkpoint_path:\s*"((?:[^"\\\n]|\\.)+)"', text, re.MULTILINE)
    try:
        name = text_encoding.CUnescape(match[1]).decode() if match else ''
    except ValueError:
        name = ''
    if not name or '\0' in name:
        expected = 'should say model_checkpoint_path: "NAME" of the newest checkpoint'
        raise _wrong(path, expected, _shown(text), advice)
    return name


def _check(path: str, key: str, value: Value, found: Any, advice: str) -> None:
    """Raises UserError unless `found`, the value of `key`, is as `value` says."""
    if found is None and value.nullable:
        return
    if not _is_of(value.kind, found):
        expected = f'{_WORDS[value.kind]}{" or null" if value.nullable else ""}'
        raise _wrong(path, f'should hold {expected}{_at(key)}', _shown(found), advice)
    if value.check is not None:
        _check_rule(path, key, value.check, found, advice)
    for name, inner in _inner(value, found):
        where = f'{key}.{name}' if key else str(name)
        if isinstance(found, list) or name in found:
            _check(path, where, inner, found[name], advice)
        elif inner.required:
            listed = ', '.join(sorted(found)) or 'no key'
            raise _wrong(path, f'should have the key {where!r}', _shown_text(listed), advice)


def _inner(value: Value, found: Any) -> Iterable[tuple[Any, Value]]:
    """Keys or positions in a value, and what the values there must be."""
    if value.kind not in (dict, list):
        return []
    places = range(len(found)) if value.kind is list else found.keys() - value.keys.keys()
    return [*value.keys.items(), *((place, value.items) for place in places if value.items)]


def _is_of(kind: type, found: Any) -> bool:
    if isinstance(found, bool):
        return kind is bool
    if kind is float:
        return isinstance(found, int) or (isinstance(found, float) and math.isfinite(found))
    return isinstance(found, kind)


def _check_rule(path: str, key: str, check: Callable[[Any], None], found: Any, advice: str) -> None:
    try:
        check(found)
    except UserError as error:
        rule = str(error).removeprefix('--').partition('; found')[0]
        raise _wrong(
            path, f'should hold a valid value{_at(key)}: {rule}', _shown(found), advice
        ) from error


def _at(key: str) -> str:
    return f' at {key!r}' if key else ''


def _shown(found: Any) -> str:
    return _shown_text(repr(found))


def _shown_text(text: str) -> str:
    return one_line(text, 80)


def _wrong(path: str, expected: str, found: str, advice: str) -> UserError:
    return UserError(f'{path} {expected}; found {_shown_text(found)}. {advice}')
