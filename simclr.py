"""SimCLR for TensorFlow 2 in a notebook or another program: what run.py does, as functions.

    import simclr

    run = simclr.pretrain(data_dir='photos', model_dir='runs/photos')
    run.results['eval/knn_accuracy'], run.path
    simclr.embed(checkpoint=run.folder, data_dir='photos', model_dir='vectors')

Keywords are the flags of run.py, with the same defaults and presets; `simclr.flags()` prints all of
them. A path may be a `pathlib.Path`; several values are a list; None is as if it were left out.

Each function returns an `Outcome`. It raises `UserError`, with the line that run.py prints, for
whatever you can fix. Ctrl-C, or "interrupt" in a notebook, finishes the step, writes a checkpoint
and raises KeyboardInterrupt with the call that resumes; a second one stops at once. Other signals
that run.py handles also write a checkpoint, and then do what they would have done without the call.
Only the main thread gets signals: in other threads a call works, but can't be interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import run
from app.config.schema import OPTIONS
from app.isolation import isolated
from app.modes import Outcome
from common.errors import UserError, printable
from common.interruption import Interrupted, Stop
from common.legacy_keras import choose_keras_2

__all__ = [
    'Outcome',
    'UserError',
    'check',
    'distill',
    'embed',
    'evaluate',
    'export',
    'finetune',
    'flags',
    'pipeline',
    'predict',
    'pretrain',
    'search',
]

choose_keras_2()  # for those who import TensorFlow later

Function: TypeAlias = Callable[..., Outcome]

_busy = threading.Lock()


def _function(**own: str) -> Callable[[Function], Function]:
    """Makes a function of one that has only a name and a documentation.

    Args:
        **own: flags that the function sets itself.
    """

    def decorate(documented: Function) -> Function:
        @functools.wraps(documented)
        def call(**flags: Any) -> Outcome:
            outcome = _outcome(documented.__name__, own, flags)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return call

    return decorate


def _outcome(
    function: str, own: Mapping[str, str], flags: Mapping[str, Any]
) -> Outcome | UserError | KeyboardInterrupt:
    """Does what run.py does with the flags `own` and `flags`.

    Returns:
        The outcome, or an error to raise. The user needs only its line, and the traceback of the
        original error would keep the model in memory.
    """
    given, stop = {}, Stop(ends_process=False)
    try:
        with (
            _alone(),
            stop.handling(),
            isolated(),
            run.completed(_parsed(function, own, flags)) as given,
        ):
            return run.perform(given, stop)
    except UserError as error:
        return UserError(printable(str(error)))
    except Interrupted as error:
        line = f'Stopped by {error}. {_how_to_resume(function, own, given)}'
    if stop.number not in (None, signal.SIGINT):
        print(line, file=sys.stderr, flush=True)
        signal.raise_signal(stop.number)
    return KeyboardInterrupt(line)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Raises UserError if another thread is in the context.

    Seeds, the folder for temporary files and other settings are those of the process.
    """
    if not _busy.acquire(blocking=False):
        raise UserError(
            'A process does one thing at a time; found a call of simclr at work in another thread. '
            'Wait for it, or start another process.'
        )
    try:
        yield
    finally:
        _busy.release()


def _parsed(function: str, own: Mapping[str, str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """`own` and `flags` as the command line gives them: name -> value of the setting's type."""
    taken = [name for name in own if flags.get(name) is not None]
    if taken:
        raise UserError(
            f'simclr.{function} sets --{taken[0]}={own[taken[0]]} itself; found '
            f'{flags[taken[0]]!r}. Leave it out, or call another function.'
        )
    values = {name: value for name, value in {**own, **flags}.items() if value is not None}
    arguments = [f'--{name}={_text(name, value)}' for name, value in values.items()]
    given = run.parse(['simclr', *arguments])
    for name in values.keys() - OPTIONS.keys():  # such as noglobal_bn, which absl reads
        raise UserError(f'Unknown flag {name!r}. See simclr.flags().')
    return given


def _text(name: str, value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list | tuple):
        parts = [_text(name, part) for part in value]
        if len(parts) > 1 and any(',' in part for part in parts):
            raise UserError(
                f'--{name} must be names without commas if there are several; found {value!r}. '
                'Rename what they name, or give one.'
            )
        return ','.join(parts)
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, bool | int | float) or hasattr(value, 'item'):  # a number of NumPy
        return str(value)
    raise UserError(
        f'--{name} must be a string, a path, a number, True or False, or a list of them; found '
        f'{value!r}.'
    )


def _how_to_resume(function: str, own: Mapping[str, str], given: Mapping[str, Any]) -> str:
    keywords = ', '.join(f'{name}={value!r}' for name, value in given.items() if name not in own)
    return f'To resume: simclr.{function}({keywords})'


@_function(mode='train_then_eval', train_mode='pretrain')
def pretrain(**flags: Any) -> Outcome:
    """Pretrains on images, without labels if there are none, evaluates and exports.

    For example `data_dir`, `model_dir` (default: a new folder in runs/), `preset`, `method`,
    `train_epochs`, `train_batch_size`. A second call with the same `model_dir` resumes.

    Args:
        **flags: the flags of run.py, see `simclr.flags()`.

    Returns:
        The model folder; the results of the last evaluation, as in `result.json`; the path of the
        newest module, for `hub.load`.

    Raises:
        UserError: for whatever you can fix.
        KeyboardInterrupt: after a checkpoint, with the call that resumes.
    """


@_function(mode='train_then_eval', train_mode='finetune')
def finetune(**flags: Any) -> Outcome:
    """Fine-tunes on labels, all or a few.

    For example `checkpoint`, the folder of a pretraining, `data_dir`, `model_dir`, and
    `label_fraction` or `labels_per_class`. Otherwise as `pretrain`.
    """


@_function(mode='train_then_eval', train_mode='distill')
def distill(**flags: Any) -> Outcome:
    """Teaches another network, of the same size or a smaller one, on images without labels.

    For example `teacher`, the folder of a fine-tuning, `data_dir`, `model_dir` and
    `width_multiplier`. Otherwise as `pretrain`.
    """


@_function(mode='pipeline')
def pipeline(**flags: Any) -> Outcome:
    """Pretrains, fine-tunes, self-distills and distills into a smaller network.

    For example `data_dir`, or `preset='demo'`, and `model_dir`.

    Returns:
        The folder, below which each stage has its own; the results of each stage by its name:
        'pretrain', 'finetune', 'self_distill', 'student'; the path of `report.html`,
        None without one.
    """


@_function(mode='eval')
def evaluate(**flags: Any) -> Outcome:
    """Evaluates the checkpoints of a run, up to the end of its training, with its own settings.

    For example `model_dir`, the folder of the run, and `evaluators`, `eval_split`, `data_dir`, and
    `eval_name`, a folder for the results.

    Returns:
        The folder of the results; these, as in `result.json`; the path of the run's newest module.
    """


@_function(mode='embed')
def embed(**flags: Any) -> Outcome:
    """Writes the representation of every image. Needs `checkpoint` and `model_dir`.

    For example also `data_dir`, `output`, as 'vectors.parquet', and `layer`.

    Returns:
        The folder; 'images', 'width' and 'layer' of the embeddings; the path of their file.
    """


@_function(mode='predict')
def predict(**flags: Any) -> Outcome:
    """Writes the most likely classes of every image. Needs `checkpoint` and `model_dir`.

    For example also `data_dir` and `top_k`.

    Returns:
        The folder; 'images' and, if there are labels, 'top_1_accuracy'; the path of the CSV file.
    """


@_function(mode='search')
def search(**flags: Any) -> Outcome:
    """Finds the images most similar to one. Needs `query`, an image, and `embeddings`, a file.

    Returns:
        The folder of the page; 'matches', a list of dictionaries with 'similarity', 'file', 'split'
        and 'class_name'; the path of the page.
    """


@_function(mode='export')
def export(**flags: Any) -> Outcome:
    """Exports weights of any format as a TF-Hub module. Needs `checkpoint` and `model_dir`.

    Returns:
        The folder; 'global_step' of the weights; the path of the module.
    """


@_function(mode='check')
def check(**flags: Any) -> Outcome:
    """Reads every image once: damaged files, duplicates, classes and sizes.

    For example `data_dir`, and `model_dir` (default: a new folder in runs/).

    Returns:
        The folder; what was found, as in `check.json`; the path of the page.
    """


def flags() -> None:
    """Prints the help of run.py: all flags, methods, evaluators and presets."""
    print(run.help_text(), end='')
