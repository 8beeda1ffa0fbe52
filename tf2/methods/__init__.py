"""How a network learns. A method is one file here and one line in `METHODS`."""

from __future__ import annotations

from tf2.config import LearningConfig
from tf2.methods.base import Logits, Method
from tf2.methods.distillation import Distillation
from tf2.methods.fine_tuning import FineTuning
from tf2.methods.simclr import SimCLR
from tf2.models.encoder import SimCLRModel

METHODS = {'pretrain': SimCLR, 'finetune': FineTuning, 'distill': Distillation}


def build(model: SimCLRModel, config: LearningConfig, teacher: Logits | None = None) -> Method:
    """The method of the stage that `config.train_mode` names.

    Args:
        model: built, within the strategy's scope.
        config: settings of the method.
        teacher: images [b, h, w, 3] -> logits [b, c]; for distillation, and only for that.
    """
    more = () if teacher is None else (teacher,)
    return METHODS[config.train_mode](model, config, *more)
