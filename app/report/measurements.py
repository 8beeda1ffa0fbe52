"""Results of evaluators as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.report.figures import ACCURACIES, label_of
from app.report.runs import percent


def numbers(result: Mapping[str, Any]) -> str:
    """The evaluation in `result.json` as text: 'top-1 81.20%, effective rank 23.41'."""
    found = {name: v for name, v in result.items() if name.startswith('eval/') and v is not None}
    return ', '.join(
        f'{label_of(name).removesuffix(", evaluation")} {_formatted(name, value)}'
        for name, value in found.items()
        if not name.endswith('regularization_loss')
    )


def by_class(details: Mapping[str, Any]) -> str:
    """Accuracies per class as text: 'cat 81.20%, dog 77.00%'; empty if there are none."""
    shares = details.get('eval/per_class_accuracy', {})
    return ', '.join(f'{name} {percent(share)}' for name, share in shares.items())


def _formatted(name: str, value: float) -> str:
    return percent(value) if name.endswith(ACCURACIES) else f'{value:.4g}'
