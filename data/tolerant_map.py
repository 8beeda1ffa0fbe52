"""Maps a function over examples whose images may be damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import UserError, line_for_graph
from data.sources.source import NO_LABEL

Parts = tuple[Any, ...]  # what an element of a dataset is made of; an example comes last
Replace = Callable[[Sequence[bytes]], tuple[np.ndarray, np.ndarray]]


def tolerant_map(
    dataset: tf.data.Dataset,
    function: Callable[..., dict[str, Any]],
    read: Callable[[dict[str, Any]], dict[str, Any]],
    replace: Replace,
    *,
    group: int,
) -> tf.data.Dataset:
    """Maps `function` over examples, and does without images that can't be read or decoded.

    Failures are caught for a group of examples at a time: to catch one costs about as much as to
    decode a small image.

    Args:
        dataset: of (..., example).
        function: (..., example as `read` returns it) → dictionary with 'label'.
        read: example → example with contents as 'image' and as 'path' the path or name that
            `replace` knows it by.
        replace: paths [n] of images for which `function` failed → contents [n], and whether they
            fit the label [n]. Where they don't, 'label' becomes -1 and 'mask', if there is one,
            False.
        group: examples at a time.

    Returns:
        Dataset of what `function` returns, in the order of `dataset`.
    """
    function = tf.function(function, autograph=False)  # traced once for both of its uses

    def attempt(rows: tf.Tensor, parts: Parts) -> tuple[tf.Tensor, dict[str, Any]]:
        return _succeeded(lambda *parts: function(*parts[:-1], read(parts[-1])), rows, parts)

    def complete(
        rows: tf.Tensor, parts: Parts, done: tf.Tensor, made: dict[str, Any]
    ) -> dict[str, Any]:
        is_done = tf.scatter_nd(done[:, None], tf.ones_like(done), tf.shape(rows)) > 0
        failed = tf.boolean_mask(rows, ~is_done)
        rest = tf.nest.map_structure(lambda part: tf.gather(part, failed), parts)
        order = tf.argsort(tf.concat([done, failed], 0))
        return tf.nest.map_structure(
            lambda first, second: tf.gather(tf.concat([first, second], 0), order),
            made,
            _with_replacements(function, rest, replace),
        )

    def map_group(*parts: Any) -> dict[str, Any]:
        rows = tf.range(tf.size(parts[-1]['image']))
        done, made = attempt(rows, parts)
        is_whole = tf.size(done) == tf.size(rows)
        return tf.cond(is_whole, lambda: made, lambda: complete(rows, parts, done, made))

    plain = tf.autograph.experimental.do_not_convert(map_group)
    groups = dataset.batch(group)
    return groups.map(plain, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).unbatch()


def _succeeded(
    function: Callable[..., dict[str, Any]], rows: tf.Tensor, parts: Parts
) -> tuple[tf.Tensor, dict[str, Any]]:
    """Those `rows` [m] for which `function` doesn't fail, and what it returns for them."""

    def of_row(row: tf.Tensor, parts: Parts) -> tuple[tf.Tensor, dict[str, Any]]:
        return row, function(*parts)

    made = tf.data.Dataset.from_tensor_slices((rows, parts)).map(_plain(of_row))
    # There must be one to take, even if all fail.
    spare = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), made.element_spec)
    made = made.ignore_errors().concatenate(tf.data.Dataset.from_tensors(spare))
    made = made.batch(tf.size(rows, tf.int64) + 1).get_single_element()
    return tf.nest.map_structure(lambda part: part[:-1], made)


def _with_replacements(
    function: Callable[..., dict[str, Any]], parts: Parts, replace: Replace
) -> dict[str, Any]:
    """What `function` returns for other contents of the files."""

    def of_contents(parts: Parts, contents: tf.Tensor, fits: tf.Tensor) -> dict[str, Any]:
        *others, example = parts
        path = example.get('path', example['image'])
        made = function(*others, {**example, 'image': contents, 'path': path})
        made['label'] = tf.where(fits, made['label'], NO_LABEL)
        return {**made, 'mask': made['mask'] & fits} if 'mask' in made else made

    paths = parts[-1].get('path', parts[-1]['image'])
    examples = tf.data.Dataset.from_tensor_slices((parts, *_from_python(replace, paths)))
    made = examples.map(_plain(of_contents)).batch(tf.size(paths, tf.int64))
    return made.get_single_element()


def _from_python(replace: Replace, paths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    def replace_for_graph(paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return replace(paths.tolist())
        except UserError as error:
            raise ValueError(line_for_graph(str(error))) from error

    contents, fit = tf.numpy_function(replace_for_graph, [paths], (tf.string, tf.bool))
    return tf.ensure_shape(contents, [None]), tf.ensure_shape(fit, [None])


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.autograph.experimental.do_not_convert(function)
