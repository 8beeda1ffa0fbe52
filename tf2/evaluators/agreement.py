"""Teacher's accuracy, and how often student and teacher agree."""

from __future__ import annotations

import tensorflow as tf

from tf2.evaluators.base import Batch, Inputs, Result, labeled
from tf2.evaluators.classification import topk_correct


class TeacherAgreement:
    """Share of examples on which student and teacher agree, and the teacher's accuracy.

    Args:
        inputs: `predict`, `teach` and `batches` are used; the teacher sees the last view of a
            batch.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._strategy = tf.distribute.get_strategy()
        self._count_global = tf.function(self._run_replicas, reduce_retracing=True, autograph=False)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there is a teacher."""
        return inputs.teach is not None

    def run(self) -> list[Result]:
        """('eval/teacher_agreement', share) and ('eval/teacher_top_1_accuracy', share).

        The first is over all examples, the second over labeled ones; it is left out if there are
        none.
        """
        totals = tf.zeros([4], tf.float64)
        for batch in self._inputs.batches():
            totals += tf.cast(self._count_global(batch), tf.float64)
        agreed, examples, correct, known = totals.numpy().tolist()
        results = [('eval/teacher_agreement', agreed / examples)]
        return results + ([('eval/teacher_top_1_accuracy', correct / known)] if known else [])

    def _run_replicas(self, batch: Batch) -> tf.Tensor:
        """Agreements, examples, the teacher's hits, labeled examples: [4] over all replicas."""
        counts = self._strategy.run(self._count, args=(batch,))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, counts, axis=None)

    def _count(self, batch: Batch) -> tf.Tensor:
        student = self._inputs.predict(batch['views'][0])  # [b, c]
        teacher = self._inputs.teach(batch['views'][-1])  # [b, c]
        shown = tf.cast(batch.get('mask', tf.ones_like(batch['label'], tf.bool)), tf.float32)  # [b]
        rows = tf.cast(labeled(batch), tf.float32)  # [b]
        same = tf.cast(tf.argmax(student, -1) == tf.argmax(teacher, -1), tf.float32)  # [b]
        hits = topk_correct(teacher, batch['label'], 1)  # [b]
        sums = [shown * same, shown, rows * hits, rows]
        return tf.stack([tf.reduce_sum(values) for values in sums])
