"""Checkpoints: written while training, restored when a run goes on, loaded for evaluation."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf

from settings import UserError
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
        """Restores the newest checkpoint, all of it, and returns its path; None without one.

        Raises:
            UserError: if it is of something else.
        """
        if self.latest is not None:
            _restore(self._checkpoint, self.latest)
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

    Raises:
        UserError: if the checkpoint is of another architecture.
    """
    # The optimizer's part stays unread; every variable of the model has to be there.
    _restore(tf.train.Checkpoint(model=model), path).expect_partial()
    return step_of(path)


def _restore(checkpoint: tf.train.Checkpoint, path: str) -> Any:
    """Restores every variable of `checkpoint` from `path`, or raises UserError."""
    try:
        return checkpoint.restore(path).assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:
        cause = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path} must hold the model, objective and optimizer that the flags describe, but '
            f'does not. Choose another --model_dir, or the flags it was made with. Cause: {cause}'
        ) from error


def step_of(path: str) -> int:
    """Number of updates of checkpoint `path`, from its name."""
    return int(re.fullmatch(rf'{PREFIX}-(\d+)', path.rsplit('/', 1)[-1]).group(1))
