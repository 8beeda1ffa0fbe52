"""Fault injection: compares the results of disturbed runs with those of undisturbed ones.

`python -m benchmarks.faults --kills=50 --signals=20 --workers=10 --write` writes the table of
docs/reliability.md. Full disks and read-only folders need root on Linux.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks import runs
from benchmarks.runs import BUNDLED, ROOT, SMALL, Run, State

DOCUMENT = ROOT / 'docs' / 'reliability.md'
MARKS = ('<!-- table: python -m benchmarks.faults -->', '<!-- end of the table -->')
ATTEMPTS = 3  # to send a signal before the run ends
BOUND = 60.0  # seconds within which a worker has to notice that another one died
TOLERANCE = 1e-3  # for sums over workers, whose order the program doesn't control
PRETRAIN = (
    '--mode=train_then_eval',
    '--train_mode=pretrain',
    '--train_steps=16',
    '--memory_size=64',
    '--report=False',
)
KINDS = {
    'pretrain': (*PRETRAIN, *BUNDLED, '--checkpoint_steps=4'),
    'pretrain, a checkpoint a step': (*PRETRAIN, *BUNDLED, '--checkpoint_steps=1'),
    'finetune': (
        '--mode=train_then_eval',
        '--train_mode=finetune',
        '--train_steps=16',
        '--labels_per_class=2',
        '--checkpoint_steps=4',
        '--report=False',
        *BUNDLED,
    ),
    'pipeline': (
        '--mode=pipeline',
        '--preset=demo',
        '--labels_per_class=2',
        '--train_steps=6',
        '--checkpoint_steps=2',
        '--memory_size=32',
        *BUNDLED,
    ),
}
# When a process is killed: at any moment, or once a file of an unfinished write appears.
AIMS = {
    'any moment': None,
    'checkpoint write': 'ckpt-*_temp*',
    'export write': 'saved_model/.*.partial',
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one disturbed run ended.

    Attributes:
        fault: what was done to it, a row of the table.
        kind: key of KINDS.
        seconds: from its first start to its last end.
        problems: violated guarantees; empty if it ended like the undisturbed run.
        note: other observations.
        times: number of faults.
    """

    fault: str
    kind: str
    seconds: float
    problems: Sequence[str]
    note: str = ''
    times: int = 1


class Trials:
    """Disturbed runs, each in its own folder, and the results of undisturbed ones.

    Args:
        folder: for everything that is written.
        reader: reads the folders of runs.
        seed: of random times and choices.
        checked: number of killed runs that check their exported modules, in a separate process;
            the others skip the check.
    """

    def __init__(
        self, folder: pathlib.Path, reader: runs.Reader, seed: int = 0, checked: int = 0
    ) -> None:
        self.folder, self.reader, self.checked = folder, reader, checked
        self.random = random.Random(seed)
        self._references: dict[str, tuple[State, float]] = {}
        self._number = 0

    def reference(self, kind: str) -> tuple[State, float]:
        """The result of an undisturbed run, and its duration in seconds."""
        if kind not in self._references:
            run = self.start(kind, self.folder / f'reference {kind}')
            problems = run.problems(0)
            if problems:
                raise RuntimeError(f'The undisturbed run failed: {problems}\n{run.shown}')
            seconds = run.seconds
            self._references[kind] = (self.reader.state(self.model_dir(run)), seconds)
        return self._references[kind]

    def start(
        self,
        kind: str,
        place: pathlib.Path,
        more: Sequence[str] = (),
        checked: bool = False,
        name: str = 'run',
    ) -> Run:
        """Starts a run of `kind`, in the folder `name` of `place`."""
        place.mkdir(exist_ok=True)
        arguments = [*KINDS[kind], *SMALL, *more, f'--model_dir={place / name}']
        if kind == 'finetune':
            self.reference('pretrain')
            arguments.append(f'--checkpoint={self.folder / "reference pretrain" / "run"}')
        return Run(arguments, place / f'log{name.removeprefix("run")}', checked=checked)

    @staticmethod
    def model_dir(run: Run) -> pathlib.Path:
        """The model folder of a run."""
        given = [a for a in run.arguments if a.startswith('--model_dir=')]
        return pathlib.Path(given[-1].removeprefix('--model_dir='))

    def new_folder(self) -> pathlib.Path:
        """Creates the folder of the next trial."""
        self._number += 1
        path = self.folder / f'{self._number}'
        path.mkdir()
        return path

    def remove_newest(self) -> None:
        """Removes the folder of the newest trial."""
        shutil.rmtree(self.folder / f'{self._number}')

    def _next_is_checked(self) -> bool:
        """Whether the next killed run checks its exported modules."""
        self.checked -= 1
        return self.checked >= 0

    def ended(self, run: Run, kind: str) -> list[str]:
        """Problems of the last run of a trial, which should end like an undisturbed one."""
        return run.problems(0) or self.unequal(self.model_dir(run), self.reference(kind)[0])

    def unequal(self, folder: pathlib.Path, expected: State, tolerance: float = 0.0) -> list[str]:
        """What is left over, damaged or different in the folder of a finished run."""
        left = [f'left over: {name}' for name in runs.leftovers(folder)]
        with tempfile.TemporaryDirectory() as links:
            # TensorFlow itself can't read from a folder with brackets in its path.
            plain = pathlib.Path(links) / 'run'
            plain.symlink_to(folder)
            found = runs.differences(self.reader.state(plain), expected, tolerance)
        return [*left, *(f'differs: {name}' for name in found)]

    def kill(self, kind: str, aim: str, most: int = 3) -> Outcome:
        """Kills and restarts a run up to `most` times, then lets it end."""
        place, began, checked = self.new_folder(), time.monotonic(), self._next_is_checked()
        whole = self.reference(kind)[1]
        planned, done, inside, problems = self.random.randint(1, most), 0, 0, []
        for _ in range(planned):
            run = self.start(kind, place, checked=checked)
            caught = self._wait_for_moment(run, AIMS[aim], whole)
            run.send(signal.SIGKILL)
            if run.wait() != -signal.SIGKILL:
                problems += run.problems(0)
                break
            done += 1
            inside += caught and bool(runs.leftovers(self.model_dir(run)))
            problems += self.reader.damage(self.model_dir(run))
        problems += self.ended(self.start(kind, place, checked=checked), kind)
        note = f'{inside} of {done} within the write' if AIMS[aim] else ''
        name = f'SIGKILL, {aim}'
        return Outcome(name, kind, time.monotonic() - began, problems, note, done)

    def _wait_for_moment(self, run: Run, pattern: str | None, whole: float) -> bool:
        if pattern is None:
            self._wait_for_any_moment(run, whole)
            return False
        folder = self.model_dir(run)
        before = set(folder.glob('ckpt-*.index'))
        for _ in range(self.random.randint(0, 2)):  # not always the first write
            run.wait_until(lambda old=before: not old.issuperset(folder.glob('ckpt-*.index')))
            before |= set(folder.glob('ckpt-*.index'))
        caught = run.wait_for_file(folder, pattern)
        longest = 0.002 if pattern.startswith('ckpt') else 1.0  # about as long as the write takes
        time.sleep(self.random.uniform(0, longest))
        return caught

    def _wait_for_any_moment(self, run: Run, whole: float) -> None:
        ends = run.started + self.random.uniform(0, whole)
        run.wait_until(lambda: time.monotonic() >= ends)

    def signal(self, kind: str, number: signal.Signals) -> Outcome:
        """Sends a signal, then resumes with the printed command."""
        began, whole = time.monotonic(), self.reference(kind)[1]
        for _ in range(ATTEMPTS):
            run, waited = self._send_at_any_moment(kind, number, whole)
            if run.status != 0:
                break
            whole /= 2  # it ended before the signal, for the machine is less busy than it was
        problems = run.problems(128 + number) + self.reader.damage(self.model_dir(run))
        command = run.command_to_resume()
        if command:
            problems += self.ended(Run(command, run.log), kind)
        else:
            problems.append('no command that resumes')
        note = f'stopped after {waited:.1f} s'
        return Outcome(f'{number.name}, status {128 + number}', kind, _since(began), problems, note)

    def _send_at_any_moment(
        self, kind: str, number: signal.Signals, whole: float
    ) -> tuple[Run, float]:
        """The ended run that got the signal, and the seconds from the signal to its end."""
        run = self.start(kind, self.new_folder())
        run.wait_for('\n')
        self._wait_for_any_moment(run, 0.95 * whole)
        run.send(number)
        sent = time.monotonic()
        run.wait()
        return run, _since(sent)

    def damage(self, kind: str, target: str) -> Outcome:
        """Kills a run after its second checkpoint, and truncates or alters a file of the newest."""
        place, began = self.new_folder(), time.monotonic()
        run = self.start(kind, place)
        folder = self.model_dir(run)
        run.wait_until(lambda: len(list(folder.glob('ckpt-*.index'))) >= 2)
        run.wait_for_file(folder, 'checkpoint')
        run.send(signal.SIGKILL)
        run.wait()
        newest = max(folder.glob('ckpt-*.index'), key=_number)
        damaged = {
            'data': newest.with_name(f'{newest.stem}.data-00000-of-00001'),
            'index': newest,
            'checkpoint': folder / 'checkpoint',
        }[target]
        how = self._spoil(damaged)
        run = self.start(kind, place)
        problems = self.ended(run, kind)
        said = 'Resuming from the previous checkpoint' in run.shown
        if target != 'checkpoint' and not said:
            problems.append(f'{how}: the previous checkpoint was not used, or no message said so')
        name = f'newest checkpoint damaged: {target}'
        return Outcome(name, kind, _since(began), problems, how.split(' at ')[0])

    def hide(self, kind: str) -> Outcome:
        """Kills a run after its second checkpoint; moves a file of the newest away, then back.

        Meanwhile there is a folder in its place, or nothing, and a restart has to be refused.
        """
        place, began = self.new_folder(), time.monotonic()
        run = self.start(kind, place)
        folder = self.model_dir(run)
        run.wait_until(lambda: len(list(folder.glob('ckpt-*.index'))) >= 2)
        second = sorted(folder.glob('ckpt-*.index'), key=_number)[1].stem
        run.wait_until(lambda: second in (folder / 'checkpoint').read_text())
        run.send(signal.SIGKILL)
        run.wait()
        newest = max(folder.glob('ckpt-*.index'), key=_number)
        data = newest.with_name(f'{newest.stem}.data-00000-of-00001')
        listed = newest.stem in (folder / 'checkpoint').read_text()
        # A checkpoint that is not listed yet and has no index counts as unfinished.
        hidden = self.random.choice([newest, data] if listed else [data])
        instead = self.random.random() < 0.5
        hidden.rename(place / 'elsewhere')
        if instead:
            hidden.mkdir()
        before = sorted(path.name for path in folder.glob('ckpt-*'))
        run = self.start(kind, place)
        problems = run.problems(2)
        if before != sorted(path.name for path in folder.glob('ckpt-*')):
            problems.append('files of checkpoints were renamed or removed')
        if instead:
            hidden.rmdir()
        (place / 'elsewhere').rename(hidden)
        run = self.start(kind, place)
        problems += self.ended(run, kind)
        if 'Resuming from the previous checkpoint' in run.shown:
            problems.append('the previous checkpoint was used')
        what = 'index' if hidden == newest else 'data'
        note = f'{what}, {"a folder" if instead else "nothing"} in its place'
        return Outcome('newest checkpoint unreadable', kind, _since(began), problems, note)

    def side_by_side(self, kind: str) -> Outcome:
        """Two runs at once, in 'g1' and in 'g[1]', a glob that matches it; kills the second."""
        place, began = self.new_folder(), time.monotonic()
        whole = self.reference(kind)[1]
        keep = ('--keep_checkpoint_max=1',)
        first, second = (self.start(kind, place, keep, name=name) for name in ('g1', 'g[1]'))
        self._wait_for_any_moment(second, whole)
        second.send(signal.SIGKILL)
        killed = second.wait() == -signal.SIGKILL
        problems = [f'g1: {problem}' for problem in self.ended(first, kind)]
        second = self.start(kind, place, keep, name='g[1]')
        problems += [f'g[1]: {problem}' for problem in self.ended(second, kind)]
        problems += [f'g1, later: {problem}' for problem in self.ended(first, kind)]
        note = 'the second killed' if killed else ''
        return Outcome('side by side: g1 and g[1]', kind, _since(began), problems, note)

    def one_folder(self, kind: str) -> Outcome:
        """Starts the same command twice, at once or when the first run trains."""
        place, began = self.new_folder(), time.monotonic()
        (place / 'other').mkdir()
        self.reference(kind)
        at_once = self.random.random() < 0.5
        first = self.start(kind, place)
        if not at_once:
            first.wait_for_file(self.model_dir(first), 'run.lock')
        second = Run(first.arguments, place / 'other' / 'log')
        statuses = sorted([first.wait(), second.wait()])
        problems = [] if statuses == [0, 2] else [f'statuses {statuses}, expected 0 and 2']
        ended, refused = (first, second) if first.status == 0 else (second, first)
        problems += ended.problems(0) + refused.problems(2)
        if 'in use by process' not in refused.shown:
            problems.append('the other run was not refused because of the lock')
        problems += self.unequal(place / 'run', self.reference(kind)[0])
        note = 'started at once' if at_once else 'started while the first trained'
        return Outcome('two runs in one folder', kind, _since(began), problems, note)

    def links(self, kind: str) -> Outcome:
        """Puts links and a user's folder among modules and checkpoints of a run that is killed."""
        place, began = self.new_folder(), time.monotonic()
        elsewhere, folder = place / 'elsewhere', place / 'run'
        for path in (elsewhere / 'deep' / 'mine', folder / 'saved_model' / '0' / 'mine'):
            path.parent.mkdir(parents=True)
            path.write_text('mine')
        made = [folder / name for name in ('saved_model/1', 'saved_model/2', 'ckpt-2_temp')]
        made[0].symlink_to(elsewhere)
        made[1].symlink_to(elsewhere / 'deep')
        made[2].symlink_to(elsewhere)
        run = self.start(kind, place)
        self._wait_for_any_moment(run, self.reference(kind)[1])
        run.send(signal.SIGKILL)
        run.wait()
        run = self.start(kind, place)
        problems = run.problems(0)
        kept = [elsewhere / 'deep' / 'mine', folder / 'saved_model' / '0' / 'mine', *made[:2]]
        problems += [f'gone: {path.relative_to(place)}' for path in kept if not path.exists()]
        for link in made[:2]:
            link.unlink(missing_ok=True)
        shutil.rmtree(folder / 'saved_model' / '0', ignore_errors=True)
        problems += self.ended(run, kind)
        return Outcome("links and a user's folder inside", kind, _since(began), problems)

    def _spoil(self, file: pathlib.Path) -> str:
        content = bytearray(file.read_bytes())
        at = self.random.randrange(len(content))
        if self.random.random() < 0.5:
            file.write_bytes(content[:at])
            return f'cut at {at} of {len(content)}'
        content[at] ^= 1 << self.random.randrange(8)
        file.write_bytes(content)
        return f'bit flipped at {at} of {len(content)}'

    def full_disk(self, kind: str) -> Outcome:
        """Runs on a file system that is too small, then enlarges it."""
        self.reference(kind)
        whole = sum(
            file.stat().st_size
            for file in (self.folder / f'reference {kind}').rglob('*')
            if file.is_file()
        )
        size = int(self.random.uniform(0.0, 0.95) * whole)
        place, began = self.new_folder(), time.monotonic()
        disk = place / 'run'
        disk.mkdir()
        _mount(f'size={max(size, 4096)}', 'tmpfs', str(disk))
        try:
            run = self.start(kind, place)
            problems = run.problems(2) + self.reader.damage(disk)
            log = run.shown
            _mount(f'remount,size={10 * whole}', str(disk))
            problems += self.ended(self.start(kind, place), kind)
            if problems:
                (place / 'log of the full disk').write_text(log)
        finally:
            subprocess.run(['umount', str(disk)], check=True)
        return Outcome('disk full', kind, _since(began), problems, f'{size >> 10} KB')

    def read_only(self, kind: str) -> Outcome:
        """Makes the model folder read-only during a run."""
        place, began = self.new_folder(), time.monotonic()
        run = self.start(kind, place)
        folder = self.model_dir(run)
        run.wait_for_file(folder, 'ckpt-*.index')
        subprocess.run(['chattr', '+i', str(folder)], check=True)
        try:
            problems = run.problems(2) + self.reader.damage(folder)
        finally:
            subprocess.run(['chattr', '-i', str(folder)], check=True)
        problems += self.ended(self.start(kind, place), kind)
        return Outcome('model folder read-only', kind, _since(began), problems)

    def vanished_data(self) -> Outcome:
        """Moves the image folder away during a run, then back."""
        kind = 'pretrain, image folder'
        images = self._images(kind, '--train_steps=400', '--checkpoint_steps=50')
        self.reference(kind)
        place, began = self.new_folder(), time.monotonic()
        run = self.start(kind, place)
        run.wait_for_file(self.model_dir(run), 'ckpt-50.index')
        time.sleep(self.random.uniform(0, 1))
        images.rename(f'{images} elsewhere')
        try:
            problems = run.problems(2) + self.reader.damage(self.model_dir(run))
        finally:
            pathlib.Path(f'{images} elsewhere').rename(images)
        problems += self.ended(self.start(kind, place), kind)
        return Outcome('data folder gone', kind, _since(began), problems)

    def damaged_images(self) -> Outcome:
        """Kills and restarts a run with image files that can't be decoded."""
        kind = 'pretrain, damaged images'
        images = self._images(kind, '--checkpoint_steps=4', '--max_bad_fraction=0.1')
        for number in range(0, 20, 5):
            path = images / 'train' / f'class {number % 2}' / f'{number}.png'
            path.write_bytes(path.read_bytes()[:40])
        return self.kill(kind, 'any moment')

    def _images(self, kind: str, *more: str) -> pathlib.Path:
        """The folder of images of a kind of run, which is made if there is none."""
        images = self.folder / f'images of {kind}'
        if not images.exists():
            runs.make_images(images)
            data = ('--dataset=image_folder', f'--data_dir={images}')
            splits = ('--train_split=train', '--eval_split=test')
            KINDS[kind] = (*PRETRAIN, *more, *data, *splits)
        return images

    def corrupt_record(self) -> Outcome:
        """Trains with a corrupt record; compares with a data set that lacks the record."""
        kind, data_dir = 'pretrain, records', self.folder / 'records'
        folder = data_dir / 'fashion_mnist_small' / '1.0.0'
        if not folder.exists():
            shutil.copytree(ROOT / 'data' / 'bundled' / 'fashion_mnist_small' / '1.0.0', folder)
            data = ('--dataset=fashion_mnist_small', f'--data_dir={data_dir}', *BUNDLED[1:])
            KINDS[kind] = (*PRETRAIN, *data, '--checkpoint_steps=4')
        (file,), info = folder.glob('*-train.tfrecord*'), folder / 'dataset_info.json'
        content, told = file.read_bytes(), info.read_text()
        start, end = _record(content, self.random.randrange(64))
        file.write_bytes(content[:start] + content[end:])
        info.write_text(told.replace('"6000"', '"5999"'))
        self._references.pop(kind, None)
        self.reference(kind)
        place, began, at = self.new_folder(), time.monotonic(), self.random.randrange(start, end)
        changed = bytearray(content)
        changed[at] ^= 1 << self.random.randrange(8)
        file.write_bytes(changed)
        info.write_text(told)
        run = self.start(kind, place)
        problems = self.ended(run, kind)
        if '1 record of' not in run.shown:
            problems.append('the record was not reported')
        file.write_bytes(content)
        shutil.rmtree(self.folder / f'reference {kind}')
        note = f'bit flipped at {at - start} of {end - start}'
        return Outcome('corrupt record', kind, _since(began), problems, note)

    def _workers(self, place: pathlib.Path) -> contextlib.AbstractContextManager[list[Run]]:
        """Two workers on this machine."""
        place.mkdir(exist_ok=True)
        arguments = [
            *KINDS['pretrain'],
            *SMALL,
            '--train_steps=60',
            '--checkpoint_steps=10',
            f'--model_dir={place / "run"}',
        ]
        return runs.workers(2, arguments, place)

    def kill_worker(self) -> Outcome:
        """Kills one of two training workers; restarts both once the other has ended."""
        kind = 'pretrain, two workers'
        expected, training = self._workers_reference(kind)
        began = time.monotonic()
        for _ in range(ATTEMPTS):
            place = self.new_folder()
            status, noticed, problems = self._kill_one_of_two(place, training)
            if status != 0:  # else both ended before the kill
                break
        problems += self.reader.damage(place / 'run')
        with self._workers(place) as workers:
            problems += [problem for worker in workers for problem in worker.problems(0)]
        note = f'the other ended after {noticed:.1f} s'
        if not problems:
            problems += self.unequal(place / 'run', expected, TOLERANCE)
            exactly = not self.unequal(place / 'run', expected)
            note += ', bit for bit' if exactly else f', within {TOLERANCE:g}'
        return Outcome('one of two workers killed', kind, _since(began), problems, note)

    def _kill_one_of_two(
        self, place: pathlib.Path, training: float
    ) -> tuple[int | None, float, list[str]]:
        """The other worker's exit status, the seconds until it ended, and its problems."""
        victim = self.random.randrange(2)
        with self._workers(place) as workers:
            for worker in workers:
                worker.wait_for('Pretraining ResNet')
            time.sleep(self.random.uniform(0, 0.9 * training))
            workers[victim].send(signal.SIGKILL)
            killed, other = time.monotonic(), workers[1 - victim]
            status = other.wait(BOUND)
            noticed = _since(killed)
            (place / 'log of the other').write_text(other.shown)
        if status is None:
            return status, noticed, [f'the other worker still ran after {BOUND:.0f} s']
        return status, noticed, other.problems(2)

    def _workers_reference(self, kind: str) -> tuple[State, float]:
        """The result of two undisturbed workers, and the seconds they trained."""
        if kind not in self._references:
            with self._workers(self.folder / f'reference {kind}') as workers:
                workers[0].wait_for('Pretraining ResNet')
                began = time.monotonic()
                problems = [problem for worker in workers for problem in worker.problems(0)]
            if problems:
                shown = '\n'.join(worker.shown for worker in workers)
                raise RuntimeError(f'The undisturbed workers failed: {problems}\n{shown}')
            state = self.reader.state(self.model_dir(workers[0]))
            self._references[kind] = (state, _since(began))
        return self._references[kind]


def _since(began: float) -> float:
    return time.monotonic() - began


def _record(content: bytes, number: int) -> tuple[int, int]:
    """Start and end of a record in a TFRecord file, in bytes."""
    start = end = 0
    for _ in range(number + 1):
        start, end = end, end + 16 + int.from_bytes(content[end : end + 8], 'little')
    return start, end


def _number(index: pathlib.Path) -> int:
    return int(index.stem.removeprefix('ckpt-'))


def _mount(options: str, *arguments: str) -> None:
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, *arguments], check=True)


def campaign(trials: Trials, arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Yields the outcomes of all trials, as many of each fault as `arguments` says."""
    # Kills during writes and at any moment; a pipeline takes long and is killed less often.
    plan = [('pretrain', 'any moment')] * 2 + [('pipeline', 'any moment')]
    plan += [('finetune', 'any moment')] * 2 + [('pretrain', 'export write')]
    plan += [('pretrain, a checkpoint a step', 'checkpoint write')]
    plan += [('finetune', 'export write'), ('finetune', 'checkpoint write')]
    killed = turn = 0
    while killed < arguments.kills:
        outcome = trials.kill(*plan[turn % len(plan)], most=min(3, arguments.kills - killed))
        killed, turn = killed + outcome.times, turn + 1
        yield outcome
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
    for turn in range(arguments.signals):
        kind = ('pretrain', 'finetune', 'pretrain', 'finetune', 'pipeline')[turn % 5]
        yield trials.signal(kind, numbers[turn % 4])
    for turn in range(arguments.damages):
        yield trials.damage('finetune', ('data', 'index', 'checkpoint')[turn % 3])
    for turn in range(arguments.hidden):
        yield trials.hide(('pretrain', 'finetune')[turn % 2])
    for turn in range(arguments.neighbors):
        kind = ('pretrain', 'finetune')[turn // 2 % 2]
        yield (trials.side_by_side, trials.one_folder)[turn % 2](kind)
    for turn in range(arguments.links):
        yield trials.links(('pretrain', 'finetune')[turn % 2])
    for turn in range(arguments.disks):
        yield trials.full_disk(('pretrain', 'finetune')[turn % 2])
    for turn in range(arguments.folders):
        yield trials.read_only(('finetune', 'pretrain')[turn % 2])
    for _ in range(arguments.data):
        yield trials.vanished_data()
        yield trials.corrupt_record()
        yield trials.damaged_images()
    for _ in range(arguments.workers):
        yield trials.kill_worker()


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each fault and kind of run."""
    rows: dict[tuple[str, str], list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        rows[outcome.fault, outcome.kind].append(outcome)
    lines = [
        '| fault | run | faults | runs | ended equal | seconds a run, median (longest) | seen |',
        '| --- | --- | --: | --: | --: | --: | --- |',
    ]
    for (fault, kind), found in rows.items():
        seconds = [outcome.seconds for outcome in found]
        equal = sum(not outcome.problems for outcome in found)
        lines.append(
            f'| {fault} | {kind} | {sum(o.times for o in found)} | {len(found)} | {equal} '
            f'| {statistics.median(seconds):.0f} ({max(seconds):.0f}) | {_seen(found)} |'
        )
    return '\n'.join(lines)


def _seen(outcomes: Sequence[Outcome]) -> str:
    """The notes of a row, with counts of equal ones, and its problems."""
    notes = [outcome.note for outcome in outcomes if outcome.note]
    words = collections.Counter(notes)
    texts = [f'{note} ({n}×)' if n > 1 else note for note, n in words.items()]
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    return '; '.join([*texts, *problems])


def write(rows: str) -> None:
    """Writes the table to the document, between its marks."""
    text = DOCUMENT.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    DOCUMENT.write_text(f'{before}{MARKS[0]}\n{rows}\n{MARKS[1]}{after}')


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, what in (
        ('kills', 50, 'SIGKILLs of single processes'),
        ('signals', 12, 'SIGTERMs, SIGINTs, SIGHUPs and SIGUSR1s'),
        ('workers', 10, 'kills of one of two workers'),
        ('damages', 9, 'damaged files of checkpoints'),
        ('hidden', 4, 'temporarily missing files of checkpoints'),
        ('neighbors', 4, 'pairs of runs side by side, or in one folder'),
        ('links', 2, "runs with links and a user's folder inside"),
        ('disks', 4, 'full disks; need root'),
        ('folders', 2, 'read-only folders; need root'),
        ('data', 2, 'vanished data folders, corrupt records and runs with damaged images, of each'),
        ('checked', 3, 'killed runs that check their exported modules'),
        ('seed', 0, 'of random times and choices'),
    ):
        parser.add_argument(f'--{name}', type=int, default=default, help=what)
    parser.add_argument('--write', action='store_true', help=f'write {DOCUMENT.name}')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, show: Callable[..., None] = print) -> int:
    """Runs the campaign; returns 1 if a run did not end as it should."""
    options = parsed(arguments)
    if options.disks + options.folders and os.geteuid():
        sys.exit('Full disks and read-only folders need root. Give --disks=0 --folders=0.')
    folder = pathlib.Path(tempfile.mkdtemp(prefix='faults-'))
    began, outcomes = time.monotonic(), []
    with runs.Reader() as reader:
        trials = Trials(folder, reader, options.seed, options.checked)
        for outcome in campaign(trials, options):
            outcomes.append(outcome)
            show(
                f'{outcome.fault} | {outcome.kind} | {outcome.times} | {outcome.seconds:.0f} s | '
                f'{outcome.note} | {"; ".join(outcome.problems) or "equal"}',
                flush=True,
            )
            if not outcome.problems:
                trials.remove_newest()
    show(f'\n{table(outcomes)}\n\n{_since(began):.0f} s in all.')
    if options.write:
        write(table(outcomes))
    wrong = [outcome for outcome in outcomes if outcome.problems]
    if wrong:
        show(f'{len(wrong)} runs did not end as they should; their folders are in {folder}.')
    else:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
