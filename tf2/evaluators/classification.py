"""Top-k accuracy of the classifier."""

from __future__ import annotations

import tensorflow as tf

from tf2.evaluators.base import Batch, Inputs, Result, TooFewError, labeled


def topk_correct(logits: tf.Tensor, labels: tf.Tensor, k: int) -> tf.Tensor:
    """Whether each label is among the k highest logits.

    Equal logits rank by class number, lowest first, as in `tf.math.top_k`. (In `tf.math.in_top_k`
    every tied class counts, so a constant classifier would always be right.)

    Args:
        logits: [b, c], any float type.
        labels: [b] integers; outside [0, c) they are never correct.
        k: number of guesses; k >= c accepts every valid label.

    Returns:
        [b] float32, 1 or 0. A row with a NaN is 0.
    """
    logits = tf.cast(logits, tf.float32)
    classes = tf.range(tf.shape(logits)[1], dtype=labels.dtype)  # [c]
    is_label = classes == labels[:, None]  # [b, c]
    # Masked, not multiplied, since 0 * inf would be NaN.
    own = tf.reduce_sum(tf.where(is_label, logits, 0.0), axis=1, keepdims=True)  # [b, 1]
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))  # [b, c]
    rank = tf.math.count_nonzero(ahead, axis=1, dtype=tf.int32)  # [b]
    valid = tf.reduce_any(is_label, axis=1) & ~tf.reduce_any(tf.math.is_nan(logits), axis=1)
    return tf.cast((rank < k) & valid, tf.float32)


class Classification:
    """Top-1 and top-5 accuracy over the labeled examples of the evaluation split.

    With c < 5 classes, the second is top-c and named accordingly.

    Args:
        inputs: `predict`, `batches` and `num_classes` are used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._ks = sorted({1, min(5, inputs.num_classes)})
        self._strategy = tf.distribute.get_strategy()
        self._count_global = tf.function(self._run_replicas, reduce_retracing=True, autograph=False)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there is a classifier, and there are labels."""
        return bool(inputs.predict and inputs.num_classes)

    def run(self) -> list[Result]:
        """Accuracies as ('eval/label_top_{k}_accuracy', share in [0, 1]) pairs.

        Raises:
            TooFewError: when no example has a label.
        """
        totals = tf.zeros([len(self._ks) + 1], tf.float64)
        for batch in self._inputs.batches():
            totals += tf.cast(self._count_global(batch), tf.float64)
        *hits, examples = totals.numpy().tolist()
        if not examples:
            raise TooFewError(
                'Evaluation needs labeled examples; found none in the evaluation split. '
                'Choose another --eval_split or data set.'
            )
        names = [f'eval/label_top_{k}_accuracy' for k in self._ks]
        return [(name, hit / examples) for name, hit in zip(names, hits, strict=True)]

    def _run_replicas(self, batch: Batch) -> tf.Tensor:
        """Hits for each k, then labeled examples, [len(ks) + 1] float32, over all replicas."""
        counts = self._strategy.run(self._count, args=(batch,))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, counts, axis=None)

    def _count(self, batch: Batch) -> tf.Tensor:
        logits = self._inputs.predict(batch['views'][0])  # [b, c]
        rows = tf.cast(labeled(batch), tf.float32)  # [b]
        hits = [tf.reduce_sum(rows * topk_correct(logits, batch['label'], k)) for k in self._ks]
        return tf.stack([*hits, tf.reduce_sum(rows)])
