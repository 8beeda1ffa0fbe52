"""Finds the image and the label among the features of a TFDS data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from common.errors import UserError
from data.sources.source import NO_LABEL

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# An integer feature that is not declared as the label is taken for it only if each class has at
# least this many examples on average: an image's own number would have one.
_EXAMPLES_PER_CLASS = 2
_LARGEST = 2**31 - 1  # labels are int32


@dataclasses.dataclass(frozen=True)
class Label:
    """The feature that is the label.

    Attributes:
        key: its name.
        num_classes: number of classes.
        names: of the classes; None if they have none.
        is_vector: whether it is one-hot.
    """

    key: str
    num_classes: int
    names: tuple[str, ...] | None = None
    is_vector: bool = False

    def number(self, value: tf.Tensor) -> tf.Tensor:
        """The class of one example, int32 scalar, from its feature."""
        if self.is_vector:
            chosen = tf.argmax(value, output_type=tf.int32)
            return tf.where(tf.reduce_any(tf.cast(value, tf.bool)), chosen, NO_LABEL)
        return tf.cast(value, tf.int32)


# Key of a feature → its stored values, in arrays [n] or [n, c].
Reader = Callable[[str], Iterator[np.ndarray]]


def find_image(name: str, info: tfds.core.DatasetInfo, key: str | None = None) -> str:
    """The key of the image: `key`, the supervised input, 'image', or the only image there is.

    Raises:
        UserError: if there is none, with the features that exist.
    """
    images = [key for key, feature in info.features.items() if _holds_image(feature)]
    supervised = info.supervised_keys[0] if info.supervised_keys else None
    if key is not None:
        if key not in images:
            raise _refusal(name, info, '--image_key', key, 'an image', images)
        return key
    for candidate in (supervised, 'image'):
        if candidate in images:
            return candidate
    if len(images) == 1:
        return images[0]
    if images:
        raise UserError(
            f'Data set {name!r} has several images: {", ".join(images)}. Choose one with '
            '--image_key.'
        )
    raise UserError(
        f'Data set {name!r} must have an image; its features are: {_listed(info)}. '
        'Choose a data set of images.'
    )


def find_label(
    name: str, info: tfds.core.DatasetInfo, key: str | None, read: Reader
) -> tuple[Label | None, str]:
    """The label: `key`, the supervised target, 'label', or the only candidate.

    Candidates are the features of type `ClassLabel`. If there are none, integers, with one class
    more than the highest value, and one-hot vectors are candidates too.

    Args:
        name: what the user called the data set.
        info: of the data set.
        key: the feature that the user asked for.
        read: reads the values of a feature, or enough of them.

    Returns:
        The label and '', or None and a hint at what could be the label, '' if nothing could.

    Raises:
        UserError: if `key` is not a feature that could be a label.
    """
    classes = [k for k, feature in info.features.items() if _is_class(feature)]
    others = [k for k, f in info.features.items() if _is_integer(f) or _is_vector(f)]
    if key is not None:
        if key not in (*classes, *others):
            kind = 'a class, an integer or a one-hot vector'
            raise _refusal(name, info, '--label_key', key, kind, [*classes, *others])
        return _label(name, info, key, read), ''
    declared = [info.supervised_keys[1] if info.supervised_keys else None, 'label']
    for candidate in declared:
        if candidate in (*classes, *others):
            return _label(name, info, candidate, read), ''
    if len(classes) == 1:
        return _label(name, info, classes[0], read), ''
    candidates = classes or others
    if len(candidates) != 1:
        could = ' or '.join(f'{key!r} ({_kind(info.features[key])})' for key in candidates)
        return None, f'{could} could be one: choose with --label_key' if could else ''
    return _only(name, info, candidates[0], read)


def _only(
    name: str, info: tfds.core.DatasetInfo, key: str, read: Reader
) -> tuple[Label | None, str]:
    """An undeclared feature as the label, if its values look like labels."""
    hint = f'{key!r} ({_kind(info.features[key])}) could be one: say so with --label_key={key}'
    values = list(read(key))
    try:
        label = _label(name, info, key, lambda _: iter(values))
    except UserError:
        return None, ''  # for example a vector that is not one-hot
    if not label.is_vector and label.num_classes * _EXAMPLES_PER_CLASS > sum(map(len, values)):
        return None, hint
    return label, ''


def _label(name: str, info: tfds.core.DatasetInfo, key: str, read: Reader) -> Label:
    """The feature `key` as the label; raises UserError if its values can't be labels."""
    feature = info.features[key]
    if _is_class(feature):
        # For classes without names, `names` would return their numbers.
        names = feature.names if feature._int2str is not None else None
        return Label(key, feature.num_classes, tuple(names) if names else None)
    if _is_vector(feature):
        _check_one_hot(name, key, read(key))
        return Label(key, feature.shape[0], is_vector=True)
    highest = max((int(values.max()) for values in read(key) if len(values)), default=NO_LABEL)
    if highest > _LARGEST:
        raise UserError(
            f'Labels of {name} must be whole numbers up to {_LARGEST}; found {highest} in {key!r}. '
            'Choose another --label_key.'
        )
    if highest < 0:
        raise UserError(
            f'Labels of {name} must be whole numbers from 0 on; found none in {key!r}. Choose '
            'another --label_key.'
        )
    return Label(key, highest + 1)


def _check_one_hot(name: str, key: str, arrays: Iterable[np.ndarray]) -> None:
    for values in arrays:  # [n, c]
        known = np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) <= 1)
        if not known.all():
            row = values[np.flatnonzero(~known)[0]]
            found = ', '.join(f'{value:g}' for value in row[:8]) + (', …' if len(row) > 8 else '')
            raise UserError(
                f'Feature {key!r} of {name} must be one-hot to be the label, a single 1 among 0s; '
                f'found {found}. Choose another --label_key.'
            )


def _is_class(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.ClassLabel)


def _is_integer(feature: Any) -> bool:
    return _is_plain(feature) and feature.shape == () and _dtype_kind(feature) in 'iu'


def _is_vector(feature: Any) -> bool:
    if not _is_plain(feature) or len(feature.shape) != 1:
        return False
    return (feature.shape[0] or 0) >= 2 and _dtype_kind(feature) in 'uifb'


def _is_plain(feature: Any) -> bool:
    """Whether it is a plain tensor, without a more specific type."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Tensor, tfds.features.Scalar)
    return type(feature) in kinds


def _dtype_kind(feature: Any) -> str:
    """NumPy's letter for the kind of a feature's dtype, such as 'f' or 'u'."""
    return np.dtype(feature.np_dtype).kind


def _holds_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return True
    if type(feature) is not tfds.features.Tensor or _dtype_kind(feature) not in 'uifb':
        return False
    shape = feature.shape
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] in (None, 1, 2, 3, 4))


def _refusal(
    name: str, info: tfds.core.DatasetInfo, flag: str, key: str, kind: str, there: list[str]
) -> UserError:
    found = 'no such feature' if key not in info.features else _kind(info.features[key])
    choose = f'Choose one of {", ".join(there)}.' if there else 'Leave it out.'
    return UserError(
        f'{flag}={key} must name {kind} of data set {name!r}; found {found}. Its features are: '
        f'{_listed(info)}. {choose}'
    )


def _listed(info: tfds.core.DatasetInfo) -> str:
    return ', '.join(f'{key} ({_kind(feature)})' for key, feature in info.features.items())


def _kind(feature: Any) -> str:
    if _is_integer(feature):
        return 'integer'
    if _is_vector(feature):
        return f'vector of {feature.shape[0]}'
    return type(feature).__name__
