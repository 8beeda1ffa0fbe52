"""Shows the progress of a run: a bar in a terminal or notebook, else a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_BARS = 1.0  # in a notebook, which may keep each of them
_DAY = 86_400.0  # seconds
_LONGEST = 100 * 365  # days; longer times are shown as 'over 100 years'


def time_left(seconds: float) -> str:
    """'01:30', '27:46:40', '12 days' or 'over 100 years'."""
    days = seconds / _DAY
    if days < 3:
        return tqdm.format_interval(seconds)
    return f'{days:,.0f} days' if days < _LONGEST else 'over 100 years'


def _is_notebook(stream: TextIO) -> bool:
    """Whether what is written to `stream` appears below a cell.

    There a bar of characters needs no extension, unlike one of widgets.
    """
    return type(stream).__module__.partition('.')[0] == 'ipykernel'


class _Bar(tqdm):
    """A bar whose layout may use `left`: the `time_left`, or '?' until the rate is known."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values that the layout may use."""
        values = super().format_dict
        done = values['n'] - values['initial']
        rate = values['rate'] or done / max(values['elapsed'], 1e-9)
        left = time_left((values['total'] - values['n']) / rate) if rate else '?'
        return {**values, 'left': left}


class Progress:
    """Shows step, loss, accuracy, images per second and time left.

    Args:
        first_step: updates done before this run.
        total_steps: updates of the run.
        batch_size: images per update.
        shown: names of the metrics to show.
        stream: where to write; default: stderr, in a notebook stdout, because it shows stderr as
            errors.
        noun: what the steps are called.
    """

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        batch_size: int,
        shown: Sequence[str],
        stream: TextIO | None = None,
        noun: str = 'step',
    ) -> None:
        self._stream = stream or (sys.stdout if _is_notebook(sys.stdout) else sys.stderr)
        self._total, self._batch, self._shown = total_steps, batch_size, shown
        self._noun = noun
        self._last_line = time.monotonic()
        # The rate excludes the first call of the training function, which traces it.
        self._measured_from: tuple[float, int] | None = None
        self._bar = None
        notebook = _is_notebook(self._stream)
        if notebook or self._stream.isatty():
            layout = '{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{left} left{postfix}]'
            self._bar = _Bar(
                total=total_steps,
                initial=first_step,
                desc=noun,
                file=self._stream,
                bar_format=layout,
                dynamic_ncols=not notebook,
                mininterval=SECONDS_BETWEEN_BARS if notebook else 0.1,
            )

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the number of updates done and the latest means of the metrics."""
        now = time.monotonic()
        rate = self._rate(now, step)
        words = [f'{name} {metrics[name]:.3f}' for name in self._shown]
        if rate:
            words.append(f'{rate:.0f} images/s')
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join(words), refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = now
            if rate:
                left = (self._total - step) * self._batch / rate
                words.append(f'{time_left(left)} left')
            line = f'{self._noun} {step}/{self._total}: {", ".join(words)}'
            print(line, file=self._stream, flush=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time in the context from the rate."""
        started = time.monotonic()
        yield
        if self._measured_from is not None:
            since, step = self._measured_from
            self._measured_from = (since + time.monotonic() - started, step)

    def _rate(self, now: float, step: int) -> float | None:
        if self._measured_from is None:
            self._measured_from = (now, step)
            return None
        since, first = self._measured_from
        return (step - first) * self._batch / max(now - since, 1e-9)

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
