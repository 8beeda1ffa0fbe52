"""What is minimised. A method is one file here and one line in `OBJECTIVES`."""

from __future__ import annotations

from tf2.config import ObjectiveConfig
from tf2.models.encoder import SimCLRModel
from tf2.objectives.base import Logits, Objective
from tf2.objectives.distillation import Distillation
from tf2.objectives.fine_tuning import FineTuning
from tf2.objectives.nt_xent import Pretraining

OBJECTIVES = {'pretrain': Pretraining, 'finetune': FineTuning, 'distill': Distillation}


def build(model: SimCLRModel, config: ObjectiveConfig, teacher: Logits | None = None) -> Objective:
    """The objective that `config.train_mode` names.

    Args:
        model: built, within the strategy's scope.
        config: settings of the objective.
        teacher: images [b, h, w, 3] -> logits [b, c]; for distillation, and only for that.
    """
    more = () if teacher is None else (teacher,)
    return OBJECTIVES[config.train_mode](model, config, *more)
