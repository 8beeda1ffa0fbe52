"""The choices of `--mode`: a mode is a line in `MODES`. What each of them returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run, or anything else that the program did, has left behind.

    Attributes:
        folder: the folder that it wrote to.
        results: what was found, name -> value; see the functions of `simclr.py`.
        path: the newest module of a run, or the file or page that was written; None if there is
            none.
    """

    folder: str
    results: Mapping[str, Any]
    path: str | None


@dataclasses.dataclass(frozen=True)
class Mode:
    """One thing the program does.

    Attributes:
        action: 'module:function'; takes the `Config`, the flags that were given, and a `Stop`;
            returns an `Outcome`.
        trains: whether it trains.
        measures: whether it evaluates; if it doesn't train, with the settings that the run in the
            folder recorded.
        needs_data: whether it opens a data set.
        several: whether it consists of several runs, each with settings of its own.
        needs: settings that have to be given.
        output: name of the file that it writes; empty if it writes a folder.
        formats: extensions that a file of another name, `--output`, may have.
        new_folder: whether a folder is made if none is named.
    """

    action: str
    trains: bool = False
    measures: bool = False
    needs_data: bool = True
    several: bool = False
    needs: tuple[str, ...] = ()
    output: str = ''
    formats: tuple[str, ...] = ()
    new_folder: bool = False

    @property
    def follows_run(self) -> bool:
        """Whether it trains or evaluates a run; if not, it reads few settings."""
        return self.trains or self.measures


MODES = {
    'train': Mode('app.train:run', trains=True, new_folder=True),
    'eval': Mode('app.evaluate:follow', measures=True),
    'train_then_eval': Mode('app.train:run', trains=True, measures=True, new_folder=True),
    'export': Mode('app.export:export_checkpoint', needs_data=False),
    'embed': Mode(
        'app.inference.embed:run',
        needs=('checkpoint', 'model_dir'),
        output='embeddings.npz',
        formats=('.npz', '.parquet', '.csv'),
    ),
    'predict': Mode(
        'app.inference.predict:run',
        needs=('checkpoint', 'model_dir'),
        output='predictions.csv',
        formats=('.csv',),
    ),
    'search': Mode(
        'app.inference.search:run',
        needs_data=False,
        needs=('query', 'embeddings'),
        output='search.html',
        formats=('.html',),
    ),
    'pipeline': Mode(
        'app.pipeline:run_pipeline', trains=True, measures=True, several=True, new_folder=True
    ),
    'check': Mode('app.check.command:check', new_folder=True),
}
