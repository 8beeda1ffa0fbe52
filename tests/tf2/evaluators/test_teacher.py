"""Agreement with a teacher, and the teacher's own accuracy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored
from tf2.evaluators.agreement import TeacherAgreement
from tf2.evaluators.base import Inputs


def inputs(labels: list[int], mask: list[bool]) -> tuple[Inputs, np.ndarray, np.ndarray]:
    """'Images' are logits; student and teacher each have a view of their own."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=[2, len(labels), 3]).astype(np.float32)
    parts = {'views': (student, teacher), 'label': np.array(labels, np.int32), 'mask': mask}
    batches = tf.data.Dataset.from_tensor_slices(parts).batch(4)
    given = Inputs(lambda: batches, 3, predict=lambda view: view, teach=lambda view: view)
    return given, student.argmax(1), teacher.argmax(1)


LABELS = [0, 1, 2, -1, 0, 1, 2, 2, 1, -1, 0, 0]
MASK = [True] * 10 + [False] * 2


@pytest.mark.parametrize('replicas', [1, 2])
def test_both_figures_count_what_they_should(replicas: int) -> None:
    given, student, teacher = inputs(LABELS, MASK)
    strategy = mirrored(replicas)
    with strategy.scope():
        batches = given.batches()
        shared = lambda: strategy.experimental_distribute_dataset(batches)  # noqa: E731
        results = dict(TeacherAgreement(dataclasses.replace(given, batches=shared)).run())
    shown, known = np.array(MASK), (np.array(LABELS) >= 0) & MASK
    np.testing.assert_allclose(
        results['eval/teacher_agreement'], (student == teacher)[shown].mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
        results['eval/teacher_top_1_accuracy'], (teacher == LABELS)[known].mean(), rtol=1e-6
    )


def test_without_labels_there_is_only_agreement() -> None:
    given, student, teacher = inputs([-1] * 5, [True] * 5)
    results = dict(TeacherAgreement(given).run())
    assert list(results) == ['eval/teacher_agreement']
    np.testing.assert_allclose(results['eval/teacher_agreement'], (student == teacher).mean())
