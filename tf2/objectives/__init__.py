"""What is minimised. A method is one file here and one line in `OBJECTIVES`."""

from __future__ import annotations

from tf2.objectives.fine_tuning import FineTuning
from tf2.objectives.nt_xent import Pretraining

OBJECTIVES = {'pretrain': Pretraining, 'finetune': FineTuning}
