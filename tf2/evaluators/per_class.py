"""Accuracy of the classifier per class."""

from __future__ import annotations

import numpy as np

from tf2.evaluators.base import Inputs, Result
from tf2.evaluators.confusion import counts_of
from tf2.features import LOGITS


class PerClass:
    """Top-1 accuracy per class on the evaluation split, and its mean over the classes.

    Args:
        inputs: `samples` and `class_names` are used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        inputs.samples.expect(LOGITS)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there are a classifier, features, and labels."""
        return bool(inputs.predict and inputs.embed and inputs.num_classes)

    def run(self) -> list[Result]:
        """('eval/mean_per_class_accuracy', share), ('eval/per_class_accuracy', name -> share).

        Both skip classes without examples. Classes without names go by their numbers.

        Raises:
            UserError: when no example has a label.
        """
        counts = counts_of(self._inputs.samples.evaluation(labeled=True))  # [c, c]
        examples = counts.sum(axis=1)  # [c]
        names = self._inputs.class_names or [str(label) for label in range(len(counts))]
        shares = {
            names[label]: float(counts[label, label] / examples[label])
            for label in np.flatnonzero(examples)
        }
        mean = float(np.mean(list(shares.values())))
        return [('eval/mean_per_class_accuracy', mean), ('eval/per_class_accuracy', shares)]
