"""Which variables were loaded, left out or missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

Reasons = Mapping[str, tuple[str, ...]]  # reason -> names

NOT_WEIGHTS = 'not weights'


@dataclasses.dataclass(frozen=True)
class Report:
    """What was loaded, what was left out and what was missing.

    Attributes:
        path: of the weights.
        loaded: names of the model's variables that were assigned.
        left_out: reason -> keys in the file that were not used.
        missing: reason -> names of the model's variables that are not in the file; they keep
            their values.
    """

    path: str
    loaded: tuple[str, ...]
    left_out: Reasons
    missing: Reasons

    def line(self) -> str:
        """One line: the three counts, with reasons."""
        return (
            f'Loaded {len(self.loaded)} variables, left out {_counted(self.left_out)}, '
            f'missing {_counted(self.missing)}'
        )

    def details(self) -> str:
        """All names, one per line, under headings."""
        lines = [f'{self.line()}, from {self.path}', f'loaded ({len(self.loaded)}):']
        lines += [f'  {name}' for name in self.loaded]
        for heading, reasons in (('left out', self.left_out), ('missing', self.missing)):
            for reason, names in reasons.items():
                lines += [f'{heading} ({len(names)}), {reason}:', *(f'  {name}' for name in names)]
        return '\n'.join(lines)


def _counted(reasons: Reasons) -> str:
    """'2 (why)', or '5 (2 why; 3 why else)'."""
    if len(reasons) == 1:
        ((reason, names),) = reasons.items()
        return f'{len(names)} ({reason})'
    each = '; '.join(f'{len(names)} {reason}' for reason, names in reasons.items())
    total = sum(map(len, reasons.values()))
    return f'{total} ({each})' if each else f'{total}'
