"""One pass over each split feeds all evaluators; their names are checked."""

from __future__ import annotations

import pytest
import tensorflow as tf

from common.errors import UserError
from tf2 import evaluators
from tf2.evaluators.base import Batch, Inputs, run_all

ROWS = 8


def counting(passes: dict[str, int], **changes: object) -> tuple[Inputs, tf.Variable]:
    """Inputs that count passes by split, and the factor on the embeddings."""
    scale = tf.Variable(1.0)
    labels = tf.range(ROWS) % 2
    images = (
        tf.random.stateless_normal([ROWS, 3], [0, 1]) + 9.0 * tf.cast(labels, tf.float32)[:, None]
    )

    def batches(split: str) -> list[Batch]:
        passes[split] = passes.get(split, 0) + 1
        return [{'views': (images,) * 2, 'label': labels}] * 3

    def endpoints(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        return {'final_avg_pool': scale * rows, 'logits_sup': scale * rows[:, :2]}

    inputs = Inputs(
        lambda: batches('eval'),
        2,
        predict=tf.identity,
        embed=tf.identity,
        endpoints=endpoints,
        train_batches=lambda: batches('train'),
        neighbors=3,
        **changes,
    )
    return inputs, scale


SHARING = 'knn,probe,per_class,confusion,uniformity,rank'


def test_one_pass_over_each_split_feeds_all() -> None:
    passes: dict[str, int] = {}
    inputs, scale = counting(passes)
    built = evaluators.build(inputs, SHARING)
    assert len(built) == 6
    first = run_all(inputs, built)
    assert passes == {'eval': 1, 'train': 1}
    # Another model is looked at anew.
    scale.assign(0.0)
    second = run_all(inputs, built)
    assert passes == {'eval': 2, 'train': 2}
    assert first['eval/knn_accuracy'] == 1 and first['eval/effective_rank'] > 1
    assert second['eval/effective_rank'] == 0


def test_each_has_as_many_training_rows_as_it_asks_for() -> None:
    inputs, _ = counting({}, neighbor_examples=5)
    built = evaluators.build(inputs, 'knn,probe')
    assert len(built) == 2
    with inputs.samples.kept():
        assert [len(inputs.samples.train(limit)) for limit in (5, 5000, 7)] == [5, 24, 7]


def test_logits_are_kept_for_those_who_ask() -> None:
    inputs, _ = counting({})
    evaluators.build(inputs, 'knn,rank')
    assert inputs.samples.evaluation().logits is None
    inputs, _ = counting({})
    evaluators.build(inputs, 'knn,confusion')
    assert inputs.samples.evaluation().logits.shape == (24, 2)


@pytest.mark.parametrize('text', ['', ' , ', 'knn,nothing', 'KNN', 'knn;rank'])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(UserError, match='--evaluators must name some of classification, knn'):
        evaluators.names_in(text)


def test_names_come_in_the_order_of_the_table() -> None:
    assert evaluators.names_in('rank, knn,rank,') == ['knn', 'rank']
    assert evaluators.names_in(evaluators.DEFAULT) == ['classification', 'knn', 'teacher']
    assert evaluators.fitting('rank,teacher,knn', ['teacher', 'neighbors']) == 'rank'
