"""Starts small runs of the program as processes, and reads what they leave behind.

A run is forked from a process that has imported TensorFlow without using it, so it starts at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from common.legacy_keras import choose_keras_2

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
    '--resnet_depth=18',
    '--width_multiplier=0.125',
    '--image_size=8',
    '--train_batch_size=16',
    '--eval_batch_size=40',
    '--knn_neighbors=0',
    '--train_summary_steps=5',
    '--deterministic',
    '--mixed_precision=float32',
)
BUNDLED = ('--dataset=bundled', '--train_split=train[:64]', '--eval_split=test[:40]')
LEFTOVERS = re.compile(r'.*\.(partial|replaced)|ckpt-.*(_temp|tempstate.*)|run\.lock')
TIMEOUT = 600.0  # seconds, after which a run is taken to hang

State = dict[str, Any]


def context() -> multiprocessing.context.BaseContext:
    """A multiprocessing context whose processes start with TensorFlow imported."""
    choose_keras_2()
    os.environ.update(TF_CPP_MIN_LOG_LEVEL='3', CUDA_VISIBLE_DEVICES='-1')
    chosen = multiprocessing.get_context('forkserver')
    chosen.set_forkserver_preload(['run', 'app.train', 'app.pipeline', 'tf2.models.resnet'])
    return chosen


def program(
    arguments: Sequence[str], log: str, *, checked: bool, pace: float | None = None
) -> None:
    """Runs `run.py` in this process, with one block per group of ResNet-18.

    Args:
        arguments: of the command line.
        log: file to which everything is printed.
        checked: whether an exported module is checked in a separate process, as it always is
            outside of these trials.
        pace: overrides `tf2.trainer.SECONDS_PER_CALL`, if given.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    # A killed process leaves TensorFlow's temporary files there.
    tempfile.tempdir = os.path.dirname(log)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # even if these trials run under nohup
    choose_keras_2()
    import run
    from hub_export import publish
    from tf2.models import resnet

    resnet.BLOCKS_PER_GROUP[18] = (1, 1, 1, 1)
    if pace is not None:
        from tf2 import trainer

        trainer.SECONDS_PER_CALL = pace
    if not checked:
        publish._checker = lambda: contextlib.nullcontext(lambda path, reference: None)
    sys.exit(run.main(['run.py', *arguments]))


class Run:
    """A started run.

    Args:
        arguments: of the command line.
        log: file to which everything is printed.
        checked: see `program`.
        cluster: TF_CONFIG. The run is then a new Python process instead of a fork, because
            TensorFlow's servers don't survive one.
        pace: see `program`; with `cluster` only.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: pathlib.Path,
        *,
        checked: bool = False,
        cluster: Mapping[str, Any] | None = None,
        pace: float | None = None,
    ) -> None:
        self.log, self.started, self.arguments = log, time.monotonic(), tuple(arguments)
        log.write_text('')
        self._process: Any = None
        if cluster is None:
            options = {'checked': checked}
            self._process = context().Process(
                target=program, args=(tuple(arguments), str(log)), kwargs=options
            )
            self._process.start()
            return
        options = f'checked={checked}, pace={pace}'
        call = f'program({tuple(arguments)!r}, {str(log)!r}, {options})'
        self._process = subprocess.Popen(
            [sys.executable, '-c', f'from benchmarks.runs import program; {call}'],
            cwd=ROOT,
            env={
                **os.environ,
                'TF_CONFIG': json.dumps(cluster),
                'TF_CPP_MIN_LOG_LEVEL': '3',
                'CUDA_VISIBLE_DEVICES': '-1',
            },
        )

    @property
    def status(self) -> int | None:
        """Exit status, negative after a signal that was not handled; None while it runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def shown(self) -> str:
        """The output so far."""
        return self.log.read_text(errors='replace')

    def send(self, number: int) -> None:
        """Sends a signal if the run is alive."""
        if self.status is None:
            os.kill(self._process.pid, number)

    def wait(self, seconds: float = TIMEOUT) -> int | None:
        """Waits for the exit status; after `seconds`, kills the run and returns None."""
        ends = time.monotonic() + seconds
        while self.status is None and time.monotonic() < ends:
            time.sleep(0.005)
        found = self.status
        if found is None:
            self.send(signal.SIGKILL)
            while self.status is None:
                time.sleep(0.005)
        return found

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.001) -> bool:
        """Whether `condition` became true before the run ended or TIMEOUT passed."""
        ends = time.monotonic() + TIMEOUT
        while self.status is None and time.monotonic() < ends:
            if condition():
                return True
            time.sleep(pause)
        return condition()

    def wait_for(self, text: str) -> bool:
        """Whether `text` was printed before the run ended."""
        return self.wait_until(lambda: text in self.shown, 0.01)

    def wait_for_file(self, folder: pathlib.Path, pattern: str) -> bool:
        """Whether something in `folder` matched `pattern` before the run ended."""
        return self.wait_until(lambda: any(folder.glob(pattern)), 0.0005)

    def problems(self, status: int) -> list[str]:
        """Waits for the end; what is wrong with it, if it should have ended with `status`."""
        found, shown = self.wait(), self.shown
        wrong = [] if found == status else [f'status {found}, expected {status}']
        errors = len(re.findall(r'^run\.py: error: ', shown, re.MULTILINE))
        if 'Traceback' in shown:
            raised = re.findall(r'^[\w.]+: .*', shown[shown.index('Traceback') :], re.MULTILINE)
            wrong.append(f'a traceback: {raised[:1]}')
        if status == 2 and errors != 1:
            wrong.append(f'{errors} lines of error, expected one')
        return wrong

    def command_to_resume(self) -> list[str]:
        """Arguments of the command to resume that was printed; empty if there was none."""
        line = re.search(r'To resume: python run\.py (.*)', self.shown)
        return shlex.split(line[1]) if line else []


@contextlib.contextmanager
def workers(
    count: int, arguments: Sequence[str], place: pathlib.Path, paces: Sequence[float] = ()
) -> Iterator[list[Run]]:
    """Runs the same command in `count` processes that train together, on this machine.

    All of them are killed at the end.

    Args:
        count: number of processes; a single one gets no TF_CONFIG.
        arguments: of the command line.
        place: existing folder for their output, 'log of worker N'.
        paces: of each process, see `program`.
    """
    hosts = [f'127.0.0.1:{_free_port()}' for _ in range(count)]
    started: list[Run] = []
    try:
        for index in range(count):
            task = {'cluster': {'worker': hosts}, 'task': {'type': 'worker', 'index': index}}
            log, pace = place / f'log of worker {index}', paces[index] if paces else None
            started.append(Run(arguments, log, cluster=task if count > 1 else None, pace=pace))
        yield started
    finally:
        for run in started:
            run.wait(0.0)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@dataclasses.dataclass
class Reader:
    """Reads folders of runs in a separate process, so that this one never starts TensorFlow."""

    def __enter__(self) -> Reader:
        self._pool = ProcessPoolExecutor(1, mp_context=context())
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def state(self, folder: pathlib.Path) -> State:
        """`state_of(folder)`."""
        return self._pool.submit(state_of, folder).result()

    def damage(self, folder: pathlib.Path) -> list[str]:
        """`damage_in(folder)`."""
        return self._pool.submit(damage_in, folder).result()


def folders_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """The model folders in `folder`: itself for a run, one per stage for a pipeline."""
    below = sorted(path for path in folder.glob('*') if (path / 'flags.json').exists())
    return below if (folder / 'pipeline.json').exists() else [folder]


def state_of(folder: pathlib.Path) -> State:
    """Everything that a finished run leaves, name -> value.

    Variables of the last checkpoint (weights, optimizer, memory, unfinished means) and of the
    exported module, results, and every scalar of TensorBoard except the speed. Evaluations on
    samples are left out too: how many there are depends on the time they take.
    """
    found: State = {}
    for run in folders_of(folder):
        for name, value in {**_variables(run), **_results(run), **_scalars(run)}.items():
            found[f'{run.name if run != folder else ""}:{name}'] = value
    if (folder / 'pipeline.json').exists():
        found['report.html'] = (folder / 'report.html').exists()
    return found


def _read(prefix: str) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint; raises if it is damaged."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _variables(run: pathlib.Path) -> State:
    import tensorflow as tf

    prefixes = {'checkpoint': tf.train.latest_checkpoint(str(run))}
    for module in sorted(run.glob('*saved_model/*')):
        prefixes[str(module.relative_to(run))] = str(module / 'variables' / 'variables')
    values = {
        f'{name} {key}': value for name, at in prefixes.items() for key, value in _read(at).items()
    }
    # The object graph holds only names, in an order that may differ.
    graphs = [name for name in values if '_CHECKPOINTABLE_OBJECT_GRAPH' in name]
    kept = {name: value for name, value in values.items() if name not in graphs}
    return {**kept, 'checkpoint': os.path.basename(prefixes['checkpoint'])}


def _results(run: pathlib.Path) -> State:
    found = {file.name: json.loads(file.read_text()) for file in run.glob('result*.json')}
    lists = {file.name: file.read_text() for file in run.glob('skipped_files*.txt')}
    return {**{name: x for name, x in found.items() if not any(map(_varies, x))}, **lists}


def _varies(name: str) -> bool:
    """Whether a measurement, or its presence, depends on how fast the machine is."""
    return 'images_per_second' in name or name.startswith('eval/sample/')


def _scalars(run: pathlib.Path) -> State:
    """'TAG at STEP' -> the value that was written last; ignores events that a kill cut off."""
    import tensorflow as tf
    from tensorflow.python.summary.summary_iterator import summary_iterator

    written: dict[str, tuple[float, float]] = {}
    for file in run.glob('events.*'):
        try:
            for event in summary_iterator(str(file)):
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name != 'scalars':
                        continue
                    name = f'{value.tag} at {event.step}'
                    entry = (event.wall_time, float(tf.make_ndarray(value.tensor)))
                    written[name] = max(entry, written.get(name, entry))
        except tf.errors.DataLossError:
            continue
    return {name: value for name, (_, value) in written.items() if not _varies(name)}


def damage_in(folder: pathlib.Path) -> list[str]:
    """Names and causes of unreadable files that a stopped run left; usually none."""
    found = []
    for file in folder.rglob('*.json'):
        try:
            json.loads(file.read_text())
        except ValueError as error:
            found.append(f'{file.name}: {error}')
    for run in folders_of(folder):
        found += _unreadable(run)
    return found


def _unreadable(run: pathlib.Path) -> list[str]:
    """The newest checkpoint, as TensorFlow finds it, and the modules, if they can't be read."""
    import tensorflow as tf

    found = []
    latest = tf.train.latest_checkpoint(str(run))
    modules = [path for path in run.glob('*saved_model/*') if not path.name.startswith('.')]
    if latest is None and (run / 'checkpoint').exists():
        found.append(f'{run.name}/checkpoint names none')
    for path, read in [(latest, _read)] * bool(latest) + [
        (str(module), tf.saved_model.load) for module in modules
    ]:
        try:
            read(path)
        except Exception as error:  # every kind of failure is reported
            found.append(f'{path}: {error}'[:200])
    return found


def leftovers(folder: pathlib.Path) -> list[str]:
    """Leftover files of interrupted writes."""
    paths = [path for path in folder.rglob('*') if LEFTOVERS.fullmatch(path.name)]
    data = [path for path in folder.rglob('ckpt-*.data-?????-of-?????') if not _has_index(path)]
    return sorted(str(path.relative_to(folder)) for path in {*paths, *data})


def _has_index(data: pathlib.Path) -> bool:
    return data.with_name(f'{data.name.split(".")[0]}.index').exists()


def differences(found: State, expected: State, tolerance: float = 0.0) -> list[str]:
    """Names of what differs; floats and arrays by more than `tolerance` of their largest value."""
    names = sorted(found.keys() ^ expected.keys())
    missing = [f'{name} {"not expected" if name in found else "missing"}' for name in names]
    common = sorted(found.keys() & expected.keys())
    return missing + [n for n in common if not _equal(found[n], expected[n], tolerance)]


def _equal(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            _equal(found[key], expected[key], tolerance) for key in expected
        )
    one, other = np.asarray(found), np.asarray(expected)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if tolerance and np.issubdtype(one.dtype, np.floating):
        return bool(np.max(np.abs(one - other), initial=0) <= tolerance * np.max(np.abs(other)))
    return one.tobytes() == other.tobytes()


def make_images(folder: pathlib.Path, train: int = 64, test: int = 40) -> None:
    """Writes a data set of noise as PNG files of 8 x 8 pixels, in two classes."""
    from PIL import Image

    random = np.random.RandomState(0)
    for split, count in (('train', train), ('test', test)):
        for number in range(count):
            path = folder / split / f'class {number % 2}' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.randint(256, size=[8, 8, 3]).astype(np.uint8)).save(path)
