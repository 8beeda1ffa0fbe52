"""Figures of the report, drawn with matplotlib without its global state."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from app.evaluate import SAMPLED
from app.report.predictions import Confusion
from common.errors import printable

LOSSES = ('_loss',)
ACCURACIES = ('_acc', '_accuracy', '_agreement')
RATES, SPEEDS = ('learning_rate',), ('images_per_second',)
_POINTS = 1000  # of a curve, at most; a screen shows no more
# Not a loss of predictions, and tiny beside those.
_LEFT_OUT = ('eval/regularization_loss',)
MAX_NUMBERED_CLASSES = 20  # with more, numbers in the confusion matrix would be illegible
_MAX_NAMED_CLASSES = 40

_NAMES = {
    'total_loss': 'total',
    'contrast_loss': 'contrastive',
    'supervised_loss': 'classifier',
    'distill_loss': 'distillation',
    'contrast_acc': 'contrastive',
    'supervised_acc': 'classifier',
    'knn_accuracy': 'neighbors',
    'probe_accuracy': 'linear probe',
    'mean_per_class_accuracy': 'class mean',
    'teacher_agreement': 'agreement',
    'teacher_top_1_accuracy': "teacher's top-1",
}
TOP_K = re.compile(r'label_top_(\d+)_accuracy')
# Okabe and Ito's palette, which color-blind people can distinguish.
_COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#1f2328')
# Of text, lines of a grid, and dark or pale curves: on a light page → on a dark one.
_INK, _GRID, _PALE = '#1f2328', '#d0d7de', '#c4ccd4'
_ON_DARK = {_INK: '#e6edf3', _GRID: '#3d444d', _PALE: '#6e7681', '#0072b2': '#3d8fd6'}
_STYLE = {
    **dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor'), _INK),
    **dict.fromkeys(('xtick.color', 'ytick.color'), _INK),
    'svg.fonttype': 'none',
    'svg.hashsalt': 'report',
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A measurement over the steps of a run.

    Attributes:
        label: for the legend.
        points: step -> value, steps ascending.
        evaluated: whether it was measured on the evaluation split.
    """

    label: str
    points: Mapping[int, float]
    evaluated: bool

    @property
    def name(self) -> str:
        """What was measured, whatever the images."""
        return self.label.partition(', ')[0]

    @property
    def sampled(self) -> bool:
        """Whether it was measured on a sample of the evaluation split."""
        return self.label.endswith(', sample')


def curves(scalars: Mapping[str, Mapping[int, float]], endings: Sequence[str]) -> list[Curve]:
    """The curves of all scalars of training and evaluation whose tag has one of `endings`."""
    found = []
    for tag, points in scalars.items():
        kind, _, name = tag.rpartition('/')
        wanted = kind.startswith(('train', 'eval')) or tag in RATES
        if wanted and name.endswith(tuple(endings)) and tag not in _LEFT_OUT:
            found.append(Curve(label_of(tag), _thinned(points), kind.startswith('eval')))
    return found


def _thinned(points: Mapping[int, float]) -> Mapping[int, float]:
    """At most about _POINTS of the points, evenly chosen, and the last one."""
    steps = list(points)
    chosen = steps[:: max(1, len(steps) // _POINTS)]
    return {step: points[step] for step in dict.fromkeys([*chosen, *steps[-1:]])}


def label_of(tag: str) -> str:
    """A label such as 'top-1, evaluation' for 'eval/label_top_1_accuracy'."""
    if tag in RATES:
        return 'learning rate'
    kind, _, name = tag.partition('/')
    where = 'evaluation' if kind == 'eval' else 'training'
    if tag.startswith(SAMPLED):
        name, where = tag.removeprefix(SAMPLED), 'sample'
    top = TOP_K.fullmatch(name)
    shown = f'top-{top[1]}' if top else _NAMES.get(name, name.replace('_', ' '))
    return f'{shown}, {where}'


@matplotlib.rc_context(_STYLE)
def curve_figure(drawn: Sequence[Curve], *, title: str, share: bool) -> Figure:
    """A plot of curves over steps.

    Args:
        drawn: the curves, at least one.
        title: of the vertical axis.
        share: whether to format values as percentages.
    """
    columns = 2 if max(len(curve.label) for curve in drawn) <= 27 else 1
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.7, 3.4 + 0.2 * rows), layout='constrained')
    axes = figure.add_subplot()
    # What is measured has a color, on whatever images.
    names = list(dict.fromkeys(curve.name for curve in drawn))
    for curve in drawn:
        alone, total = len(curve.points) == 1, curve.label.startswith('total')
        axes.plot(
            list(curve.points.keys()),
            list(curve.points.values()),
            label=curve.label,
            # The total may coincide with its largest term, so it is a broad, pale line.
            color=_PALE if total else _COLORS[names.index(curve.name) % len(_COLORS)],
            linestyle=(':' if curve.sampled else '--') if curve.evaluated else '-',
            linewidth=5 if total else 1.6,
            marker='o' if curve.evaluated or alone else None,
            markersize=6 if alone else 3.5,
        )
    axes.set_xlabel('step', fontsize=11)
    axes.set_ylabel(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
    axes.tick_params(labelsize=10)
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol='%'))
    axes.grid(color=_GRID, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=columns, fontsize=9.5, frameon=False)
    return figure


@matplotlib.rc_context(_STYLE)
def confusion_figure(confusion: Confusion) -> Figure:
    """The confusion matrix: true classes are rows, colored by share; predicted ones are columns."""
    counts, classes = confusion.counts, len(confusion.names)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = min(9.0, max(5.0, 2 + 0.36 * classes))
    figure = Figure(figsize=(side, side * 0.96), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    if classes <= MAX_NUMBERED_CLASSES:
        for (row, column), count in _cells(counts):
            # Cells are light on a dark page too, and so are not drawn in _INK.
            color = '#ffffff' if shares[row, column] > 0.5 else '#101418' if count else '#afb8c1'
            axes.text(column, row, str(count), ha='center', va='center', fontsize=9, color=color)
    every = math.ceil(classes / _MAX_NAMED_CLASSES)
    ticks, names = range(0, classes, every), [_short(name) for name in confusion.names[::every]]
    size = 10 if classes <= MAX_NUMBERED_CLASSES else 7
    # A dollar sign in a name must not start a formula.
    axes.set_xticks(ticks, names, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    for label in axes.get_xticklabels():
        label.set(rotation=45, ha='right', rotation_mode='anchor')
    axes.set_xlabel('predicted class', fontsize=11)
    axes.set_ylabel('true class', fontsize=11)
    return figure


def _cells(counts: Sequence[Sequence[int]]) -> list[tuple[tuple[int, int], int]]:
    return [
        ((row, column), int(count))
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
    ]


def _short(name: str, limit: int = 18) -> str:
    name = printable(name)
    return name if len(name) <= limit else f'{name[: limit - 1]}…'


@matplotlib.rc_context(_STYLE)
def to_svg(figure: Figure) -> str:
    """The figure as SVG, on any ground: it has other colors where the reader prefers dark pages.

    Text stays text, so that the browser's fonts can show any script.
    """
    written = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(
        written, format='svg', transparent=True, metadata={'Date': None, 'Creator': None}
    )
    drawing = written.getvalue()
    for light in _ON_DARK:
        drawing = drawing.replace(light, f'var(--{light[1:]})')
    on_light = ''.join(f'--{light[1:]}: {light};' for light in _ON_DARK)
    on_dark = ''.join(f'--{light[1:]}: {dark};' for light, dark in _ON_DARK.items())
    style = f':root {{{on_light}}} @media (prefers-color-scheme: dark) {{:root {{{on_dark}}}}}'
    return drawing.replace('<defs>', f'<style>{style}</style><defs>', 1)
