"""One of several processes that train a model together, and its part of the data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process of a training run.

    Attributes:
        index: from 0 to count - 1.
        count: number of workers.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f'A worker must have an index from 0 to count - 1; found index={self.index}, '
                f'count={self.count}.'
            )

    def part(self, total: int) -> range:
        """This worker's part of range(total).

        The parts are consecutive, and their lengths differ by one at most.
        """
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)
