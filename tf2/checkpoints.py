"""Checkpoints: written while training, restored when a run goes on, loaded for evaluation."""

from __future__ import annotations

import re

import tensorflow as tf

from tf2.models.encoder import SimCLRModel
from tf2.objectives.base import Objective

PREFIX = 'ckpt'


class Checkpoints:
    """The checkpoints `ckpt-N` of a training run, N the number of updates.

    Args:
        model_dir: folder they are in.
        model: built model.
        objective: whatever state it has besides the model's.
        optimizer: built, so that its variables exist.
        keep: how many of the newest to keep; 0 keeps all.
    """

    def __init__(
        self,
        model_dir: str,
        model: SimCLRModel,
        objective: Objective,
        optimizer: tf.keras.optimizers.Optimizer,
        keep: int,
    ) -> None:
        self._checkpoint = tf.train.Checkpoint(
            model=model, objective=objective, optimizer=optimizer
        )
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, model_dir, max_to_keep=keep or None, checkpoint_name=PREFIX
        )

    @property
    def latest(self) -> str | None:
        """Path prefix of the newest checkpoint, None before the first."""
        return self._manager.latest_checkpoint

    def resume(self) -> str | None:
        """Restores the newest checkpoint, all of it, and returns its path; None without one."""
        if self.latest is not None:
            status = self._checkpoint.restore(self.latest)
            status.assert_existing_objects_matched()
        return self.latest

    def save(self, step: int) -> str:
        """Writes a checkpoint and returns its path."""
        return self._manager.save(checkpoint_number=step)


def load_model(path: str, model: SimCLRModel) -> int:
    """Loads the weights of the built `model` from a checkpoint, and nothing else.

    Args:
        path: prefix of a checkpoint, such as '.../ckpt-100'.
        model: of the same architecture.

    Returns:
        The number of updates the weights have had.
    """
    status = tf.train.Checkpoint(model=model).restore(path)
    # The optimizer's part stays unread; every variable of the model has to be there.
    status.assert_existing_objects_matched().expect_partial()
    return step_of(path)


def step_of(path: str) -> int:
    """Number of updates of checkpoint `path`, from its name."""
    return int(re.fullmatch(rf'{PREFIX}-(\d+)', path.rsplit('/', 1)[-1]).group(1))
