"""Times several functions in turns, so that a slow spell of the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]
Clock = Callable[[], float]


def clock(call: Call) -> Clock:
    """A function that runs `call` and returns the seconds that it took."""

    def timed() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return timed


def in_turns(clocks: Mapping[str, Clock], rounds: int, count: int) -> dict[str, float]:
    """Name -> median seconds; each round calls each clock `count` times."""
    for timed in clocks.values():
        timed(), timed()  # the first ones compile
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, timed in clocks.items():
            seconds[name] += [timed() for _ in range(count)]
    return {name: statistics.median(values) for name, values in seconds.items()}
