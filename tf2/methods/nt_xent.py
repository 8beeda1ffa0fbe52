"""NT-Xent, the normalized temperature-scaled cross-entropy of SimCLR (arXiv:2002.05709)."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf2 import collectives
from tf2.config import LOGITS_AT_A_TIME

ABSENT = -1e9  # a logit of minus infinity would give NaN differences


class Contrast(typing.NamedTuple):
    """NT-Xent on one replica: float32 scalars, means over local examples.

    Attributes:
        loss: the sum of both views' losses.
        accuracy: how often a first view's partner is the nearest of all second views.
        entropy: of a first view's softmax over all second views, in nats.
    """

    loss: tf.Tensor
    accuracy: tf.Tensor
    entropy: tf.Tensor


class _Negatives(typing.NamedTuple):
    """Rows [m, d] float32, only the first `filled` of which are valid."""

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

    For every view, the softmax over all other views of the global batch should pick the other view
    of its image. Call in replica context, with the same number of rows on each replica.

    The gradient is computed along with the loss, block by block of rows, so that no logits are kept
    for the backward pass. Only the loss has a gradient, and no second derivative.

    Args:
        view_a: [n, d] float32, projections of the first views of this replica's n images.
        view_b: [n, d] float32, projections of the second views.
        temperature: divides the similarities.
        hidden_norm: whether to scale projections to length 1 first.
        negatives: [m, d] float32, additional negatives (SimCLRv2 section 3, arXiv:2006.10029), the
            same on every replica. They are not scaled and get no gradient.
        filled: number of valid rows in `negatives`, the first ones; None means all.
        block: maximum number of logits that are computed at a time, but at least one row of them.

    Returns:
        Loss and metrics over n * replicas images.
    """
    if hidden_norm:
        view_a, view_b = (tf.math.l2_normalize(view, -1) for view in (view_a, view_b))
    (all_a, offset), (all_b, _) = (collectives.all_gather(view) for view in (view_a, view_b))
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
    """Compares local views [n, d] with all [N, d].

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
    """Results for k views, divided by the temperature: first views, or second ones.

    Attributes:
        log_sum: [k], log-sum-exp of all logits of a view.
        mean: [k, d], mean of all rows that a view was compared with, weighted by the softmax;
            `mean` / temperature is the gradient of `log_sum` with respect to the undivided view.
        hits: [k], 1 if the partner is the nearest of the views of the other kind, else 0.
        entropy: [k], of the softmax over the views of the other kind.
        partners: [N, d], gradient of the sum of `log_sum` with respect to views of the other kind.
        alike: [N, d], the same with respect to views of the same kind.
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
    """Compares `rows` [k, d], at positions `places` [k] in `alike` [N, d], with all other rows."""
    logits = tf.matmul(rows, partners, transpose_b=True)  # [k, N]
    # A minimum takes a third of the time of tf.where, whose condition is a separate operation.
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
    shares = [scale / total for scale in scales]  # turn exponentials into a softmax over all logits
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
    """Exponentials of the logits of k rows and c columns.

    Attributes:
        highest: [k, 1], largest logit of each row.
        exponentials: [k, c], of the logits minus `highest`.
        total: [k, 1], sums of `exponentials`.
        product: [k, d], `exponentials` times the columns.
    """

    highest: tf.Tensor
    exponentials: tf.Tensor
    total: tf.Tensor
    product: tf.Tensor

    @classmethod
    def of(cls, logits: tf.Tensor, columns: tf.Tensor) -> _Part:
        """From `logits` [k, c], products of the rows with `columns` [c, d]."""
        highest = tf.reduce_max(logits, -1, keepdims=True)
        exponentials = tf.exp(logits - highest)
        total = tf.reduce_sum(exponentials, -1, keepdims=True)
        return cls(highest, exponentials, total, tf.matmul(exponentials, columns))

    def entropy(self, rows: tf.Tensor) -> tf.Tensor:
        """Entropy [k] of the softmax over these columns alone; `rows` [k, d] gave the logits.

        It is the log-sum-exp minus the mean logit, which is the logit of the mean column.
        """
        mean = tf.reduce_sum(rows * self.product, -1, keepdims=True) / self.total
        return (self.highest + tf.math.log(self.total) - mean)[:, 0]


def _in_blocks(
    function: Callable[..., tuple[list[tf.Tensor], list[tf.Tensor]]],
    rows: Sequence[tf.Tensor],
    size: int | tf.Tensor,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Calls `function` on blocks of at most `size` rows, one after the other.

    Args:
        function: a block of each of `rows` -> float32 results per row, and sums over the rows, to
            which rows of zeros add nothing.
        rows: each [n, …].
        size: most rows in a block; values below 1 mean 1.

    Returns:
        What `function` would return for all rows at once.
    """
    count = _rows(rows[0])
    # Blocks of nearly equal size need little padding.
    if tf.is_tensor(count) or tf.is_tensor(size):
        blocks = tf.maximum(1, -(-count // tf.maximum(1, size)))
    else:
        blocks = -(-count // max(1, size))
        if blocks == 1:
            return function(*rows)
    shares = [_split_and_pad(values, blocks) for values in rows]  # [blocks, size, …] each
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
        parallel_iterations=1,  # so that one block is in memory
    )
    return [_join(array.stack(), count) for array in arrays], sums


def _split_and_pad(values: tf.Tensor, blocks: int | tf.Tensor) -> tf.Tensor:
    """Reshapes [n, …] to [blocks, size, …], padded with zeros."""
    count = _rows(values)
    size = -(-count // blocks)
    padding = tf.zeros([blocks * size - count, *values.shape[1:]], values.dtype)
    return tf.reshape(tf.concat([values, padding], 0), [blocks, size, *values.shape[1:]])


def _join(blocks: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """The first `count` rows of [blocks, size, …]."""
    return tf.reshape(blocks, [-1, *blocks.shape[2:]])[:count]


def _rows(values: tf.Tensor) -> int | tf.Tensor:
    """Number of rows; not static if several workers share a batch."""
    return tf.shape(values)[0] if values.shape[0] is None else values.shape[0]
