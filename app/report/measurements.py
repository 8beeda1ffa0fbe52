"""Results of evaluators as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.report.figures import ACCURACIES, TOP_K, label_of
from app.report.runs import percent

# What a measurement says, for those who see it for the first time. The name of another one, which
# comes from outside the project, has to speak for itself.
_MEANINGS = {
    'label_top_1_accuracy': 'Images whose most likely class, says the classifier, is the true one.',
    'knn_accuracy': 'Images classified correctly by a vote of the most similar training images; it '
    'measures the encoder alone.',
    'probe_accuracy': 'Images classified correctly by a linear classifier, fitted to what the '
    'encoder says at the end.',
    'mean_per_class_accuracy': 'Share of images classified correctly in each class, averaged over '
    'the classes: all count the same, however large they are.',
    'teacher_agreement': 'Images for which student and teacher name the same class.',
    'teacher_top_1_accuracy': 'Images that the teacher classifies correctly.',
    'alignment': 'Mean squared distance between two views of an image; lower is better, but 0 if '
    'all images look alike to the encoder.',
    'uniformity': 'How evenly the images spread over the space; lower is more even.',
    'effective_rank': 'How many directions of the space are used; near 1 the encoder has '
    'collapsed, and all images look alike to it.',
    'regularization_loss': 'Penalty for large weights, part of the loss.',
}


def rows_of(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each number in `result.json`, as text."""
    rows = []
    for key, value in result.items():
        kind, _, name = key.partition('/')
        if kind == 'eval':
            rows.append((title_of(key), formatted(key, value), _meaning(name)))
    return rows


def _meaning(name: str) -> str:
    top = TOP_K.fullmatch(name)
    several = f'Images whose true class is among the {top[1]} most likely ones.' if top else ''
    return _MEANINGS.get(name, several)


def title_of(key: str) -> str:
    """What a number in `result.json` is called: 'top-1' for 'eval/label_top_1_accuracy'."""
    return label_of(key).removesuffix(', evaluation')


def numbers(result: Mapping[str, Any]) -> str:
    """The evaluation in `result.json` as text: 'top-1 81.20%, effective rank 23.41'."""
    found = {name: v for name, v in result.items() if name.startswith('eval/') and v is not None}
    return ', '.join(
        f'{title_of(name)} {formatted(name, value)}'
        for name, value in found.items()
        if not name.endswith('regularization_loss')
    )


def by_class(details: Mapping[str, Any]) -> str:
    """Accuracies per class as text: 'cat 81.20%, dog 77.00%'; empty if there are none."""
    shares = details.get('eval/per_class_accuracy', {})
    return ', '.join(f'{name} {percent(share)}' for name, share in shares.items())


def formatted(name: str, value: float | None) -> str:
    """A number called `name` as text: shares as percentages; a dash for one that isn't finite."""
    if value is None:
        return '–'
    return percent(value) if name.endswith(ACCURACIES) else f'{value:.4g}'
