"""Time that may be spent beside something else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Budget:
    """A share of the time since this was made.

    What is done first is not counted: it pays for preparations, such as tracing a network, that
    serve what is done later.

    Args:
        share: of the time, in [0, 1].
        clock: seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock, self._start = share, clock, clock()
        self._spent: float | None = None

    def allows(self) -> bool:
        """Whether no more than the share is spent, so that something may be begun."""
        return (self._spent or 0.0) <= self._share * (self._clock() - self._start)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Counts the time within it."""
        started = self._clock()
        try:
            yield
        finally:
            taken = self._clock() - started
            self._spent = 0.0 if self._spent is None else self._spent + taken
