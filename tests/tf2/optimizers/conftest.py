"""Two replicas, with both ways in which TensorFlow reduces."""

from __future__ import annotations

import itertools

import pytest
import tensorflow as tf

from tests.support import mirrored

# Collective groups are per process and numbered by strategy; numbers that no other strategy of
# the test run has keep it from clashing with others.
_GROUPS = itertools.count(1000, 1000)


@pytest.fixture(params=['collective', 'one device'])
def two_replicas(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tf.distribute.Strategy:
    """A mirrored strategy that reduces with collectives (as it does by default), or on one device.

    With collectives each replica updates its copies itself; without, a cross-replica context does.
    """
    if request.param == 'one device':
        return mirrored(2)
    monkeypatch.setattr(tf.distribute.MirroredStrategy, '_collective_key_base', next(_GROUPS))
    return tf.distribute.MirroredStrategy(['/cpu:0', '/cpu:1'])
