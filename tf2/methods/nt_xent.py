"""NT-Xent, the normalized temperature-scaled cross-entropy of SimCLR (arXiv:2002.05709)."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf2 import distribution
from tf2.config import LOGITS_AT_A_TIME

ABSENT = -1e9  # stands for minus infinity, whose differences would not be numbers


class Contrast(typing.NamedTuple):
    """NT-Xent on one replica: float32 scalars, means over local examples.

    Attributes:
        loss: the losses of both views, added up.
        accuracy: how often the partner of a first view is the nearest of all second views.
        entropy: in nats, of a first view's softmax over all second views.
    """

    loss: tf.Tensor
    accuracy: tf.Tensor
    entropy: tf.Tensor


class _Negatives(typing.NamedTuple):
    """Rows [m, d] float32, of which only the first `filled` count."""

    rows: tf.Tensor
    filled: tf.Tensor | int


def nt_xent(
    view_a: tf.Tensor,
    view_b: tf.Tensor,
    temperature: float,
    *,
    hidden_norm: bool = True,
    negatives: tf.Tensor | None = None,
    filled: tf.Tensor | int | None = None,
    block: int = LOGITS_AT_A_TIME,
) -> Contrast:
    """Equation 1 of SimCLR (arXiv:2002.05709) over the views of all replicas.

    Every view is to be told apart from the other views of the global batch, as the partner of
    the second view of its image. To be called in a replica context, with as many rows on each.

    The gradient is computed along with the loss, some rows after the others, so that no matrix of
    logits outlives its block. Only the loss has one, and only a first one.

    Args:
        view_a: [n, d] float32, projections of the first views of this replica's n images.
        view_b: [n, d] float32, projections of the second views.
        temperature: divides the similarities.
        hidden_norm: whether projections are scaled to length 1 first.
        negatives: [m, d] float32, further rows that every view is to be told apart from
            (SimCLRv2 section 3, arXiv:2006.10029). They are compared as they are, and get no
            gradient. The same on every replica.
        filled: how many of `negatives` there are, the first ones; the others do not count. None
            means all.
        block: at most so many logits are computed at a time, but always a row's.

    Returns:
        Loss and metrics over n * replicas images.
    """
    if hidden_norm:
        view_a, view_b = (tf.math.l2_normalize(view, -1) for view in (view_a, view_b))
    (all_a, offset), (all_b, _) = (distribution.all_gather(view) for view in (view_a, view_b))
    memory = None
    if negatives is not None:
        rows = tf.convert_to_tensor(negatives)
        memory = _Negatives(rows, rows.shape[0] if filled is None else filled)

    @tf.custom_gradient
    def contrast(*views: tf.Tensor) -> tuple[Contrast, Callable[..., list[tf.Tensor]]]:
        found, gradients = _loss_and_gradients(*views, offset, temperature, memory, block)

        def backward(by_loss: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            by_example = by_loss / tf.cast(_rows(view_a), tf.float32)
            return [by_example * gradient for gradient in gradients]

        return found, backward

    return contrast(view_a, view_b, all_a, all_b)


def _loss_and_gradients(
    view_a: tf.Tensor,
    view_b: tf.Tensor,
    all_a: tf.Tensor,
    all_b: tf.Tensor,
    offset: tf.Tensor | int,
    temperature: float,
    memory: _Negatives | None,
    block: int,
) -> tuple[Contrast, list[tf.Tensor]]:
    """Of local views [n, d] against all [N, d].

    Returns:
        Loss and metrics; gradients of n times the loss with respect to the first four arguments.
    """
    columns = 2 * _rows(all_a) + (memory.rows.shape[0] if memory else 0)

    def compare(
        rows_a: tf.Tensor, rows_b: tf.Tensor, places: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        a = _compare(rows_a, places, all_b, all_a, memory)
        b = _compare(rows_b, places, all_a, all_b, memory)
        rowwise = [a.log_sum + b.log_sum, a.mean, b.mean, a.hits, a.entropy]
        return rowwise, [a.alike + b.partners, b.alike + a.partners]

    (log_sums, mean_a, mean_b, hits, entropies), by_columns = _in_blocks(
        compare,
        [view_a / temperature, view_b / temperature, tf.range(_rows(view_a)) + offset],
        block // (2 * columns),
    )
    positives = tf.reduce_sum(view_a * view_b, -1) / temperature  # [n]
    found = (log_sums - 2 * positives, hits, entropies)
    by_rows = [(mean_a - 2 * view_b) / temperature, (mean_b - 2 * view_a) / temperature]
    return Contrast(*map(tf.reduce_mean, found)), [*by_rows, *by_columns]


class _Compared(typing.NamedTuple):
    """Some views [k, d], divided by the temperature, against N partners and all else.

    Attributes:
        log_sum: [k], logarithm of the sum of the exponentials of all similarities.
        mean: [k, d], of what it was compared with, weighted by the softmax; times 1 / temperature
            the gradient of `log_sum`.
        hits: [k], 1 where the partner is the nearest of the other views, else 0.
        entropy: [k], of the softmax over the other views.
        partners: [N, d], gradient of the sum of `log_sum` with respect to the other views.
        alike: [N, d], its gradient with respect to same-view embeddings.
    """

    log_sum: tf.Tensor
    mean: tf.Tensor
    hits: tf.Tensor
    entropy: tf.Tensor
    partners: tf.Tensor
    alike: tf.Tensor


def _compare(
    rows: tf.Tensor,
    places: tf.Tensor,
    partners: tf.Tensor,
    alike: tf.Tensor,
    memory: _Negatives | None,
) -> _Compared:
    """Compares `rows` [k, d], number `places` [k] among `alike` [N, d], with everything else."""
    logits = tf.matmul(rows, partners, transpose_b=True)  # [k, N]
    # A minimum costs a third of tf.where, whose condition had to be computed apart.
    but_own = tf.one_hot(places, _rows(alike), ABSENT, tf.float32.max)  # [k, N]
    others = tf.minimum(tf.matmul(rows, alike, transpose_b=True), but_own)  # [k, N]
    parts = [_Part.of(logits, partners), _Part.of(others, alike)]
    if memory is not None:
        columns = tf.range(memory.rows.shape[0])
        only_filled = tf.where(columns < tf.cast(memory.filled, tf.int32), tf.float32.max, ABSENT)
        remembered = tf.matmul(rows, memory.rows, transpose_b=True)  # [k, m]
        parts.append(_Part.of(tf.minimum(remembered, only_filled), memory.rows))
    highest = functools.reduce(tf.maximum, [part.highest for part in parts])  # [k, 1]
    scales = [tf.exp(part.highest - highest) for part in parts]  # [k, 1] each
    total = tf.add_n([scale * part.total for part, scale in zip(parts, scales)])  # [k, 1]
    shares = [scale / total for scale in scales]  # what makes exponentials a softmax over all
    by_partners, by_alike = (
        tf.matmul(part.exponentials, share * rows, transpose_a=True)
        for part, share in zip(parts[:2], shares)
    )
    return _Compared(
        log_sum=(highest + tf.math.log(total))[:, 0],
        mean=tf.add_n([share * part.product for part, share in zip(parts, shares)]),
        hits=tf.cast(tf.argmax(logits, -1, tf.int32) == places, tf.float32),
        entropy=parts[0].entropy(rows),
        partners=by_partners,
        alike=by_alike,
    )


class _Part(typing.NamedTuple):
    """Exponentials of the similarities of k rows to some c columns.

    Attributes:
        highest: [k, 1], of a row's similarities.
        exponentials: [k, c], of the similarities less `highest`.
        total: [k, 1], their sums.
        product: [k, d], with the columns.
    """

    highest: tf.Tensor
    exponentials: tf.Tensor
    total: tf.Tensor
    product: tf.Tensor

    @classmethod
    def of(cls, logits: tf.Tensor, columns: tf.Tensor) -> _Part:
        """Of `logits` [k, c], similarities to `columns` [c, d]."""
        highest = tf.reduce_max(logits, -1, keepdims=True)
        exponentials = tf.exp(logits - highest)
        total = tf.reduce_sum(exponentials, -1, keepdims=True)
        return cls(highest, exponentials, total, tf.matmul(exponentials, columns))

    def entropy(self, rows: tf.Tensor) -> tf.Tensor:
        """[k], of the softmax over these columns alone, whose similarities to `rows` they are.

        Minus the mean logarithm of the softmax, where the mean similarity is that to the mean.
        """
        mean = tf.reduce_sum(rows * self.product, -1, keepdims=True) / self.total
        return (self.highest + tf.math.log(self.total) - mean)[:, 0]


def _in_blocks(
    function: Callable[..., tuple[list[tf.Tensor], list[tf.Tensor]]],
    rows: Sequence[tf.Tensor],
    size: int | tf.Tensor,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Calls `function` on `size` rows or fewer at a time, one block after the other.

    Args:
        function: blocks of `rows` -> float32 results row by row, and sums over the rows, to which
            rows of zeros must add nothing.
        rows: each [n, …].
        size: rows of a block; below 1 it is 1.

    Returns:
        What `function` would return for all rows at once.
    """
    count = _rows(rows[0])
    # Blocks as even as can be, so that little is filled up.
    if tf.is_tensor(count) or tf.is_tensor(size):
        blocks = tf.maximum(1, -(-count // tf.maximum(1, size)))
    else:
        blocks = -(-count // max(1, size))
        if blocks == 1:
            return function(*rows)
    shares = [_split_and_fill(values, blocks) for values in rows]  # [blocks, size, …] each
    first, sums = function(*(share[0] for share in shares))
    arrays = [
        tf.TensorArray(tf.float32, blocks, element_shape=result.shape).write(0, result)
        for result in first
    ]

    def step(
        index: tf.Tensor, arrays: list[tf.TensorArray], sums: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.TensorArray], list[tf.Tensor]]:
        results, more = function(*(tf.gather(share, index) for share in shares))
        arrays = [array.write(index, result) for array, result in zip(arrays, results)]
        return index + 1, arrays, [total + addend for total, addend in zip(sums, more)]

    _, arrays, sums = tf.while_loop(
        lambda index, *_: index < blocks,
        step,
        (tf.constant(1), arrays, sums),
        parallel_iterations=1,  # memory for one block
    )
    return [_join(array.stack(), count) for array in arrays], sums


def _split_and_fill(values: tf.Tensor, blocks: int | tf.Tensor) -> tf.Tensor:
    """[n, …] in [blocks, size, …], filled up with zeros."""
    count = _rows(values)
    size = -(-count // blocks)
    filling = tf.zeros([blocks * size - count, *values.shape[1:]], values.dtype)
    return tf.reshape(tf.concat([values, filling], 0), [blocks, size, *values.shape[1:]])


def _join(blocks: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """The first `count` rows in [blocks, size, …]."""
    return tf.reshape(blocks, [-1, *blocks.shape[2:]])[:count]


def _rows(values: tf.Tensor) -> int | tf.Tensor:
    """How many; not static where several workers share a batch."""
    return tf.shape(values)[0] if values.shape[0] is None else values.shape[0]
