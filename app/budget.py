"""Limits an activity to a share of the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Budget:
    """Allows an activity a share of the time since this object was created.

    Its first run is not counted, because it pays one-time costs such as tracing a network.

    Args:
        share: of the time, in [0, 1].
        clock: returns seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock, self._start = share, clock, clock()
        self._spent: float | None = None

    def allows(self) -> bool:
        """Whether the activity may start: it has not used more than its share."""
        return (self._spent or 0.0) <= self._share * (self._clock() - self._start)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Counts the time within the context."""
        started = self._clock()
        try:
            yield
        finally:
            taken = self._clock() - started
            self._spent = 0.0 if self._spent is None else self._spent + taken
