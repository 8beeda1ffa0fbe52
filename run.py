"""The command line: flags → Config → the function of the mode.

The only module that knows absl flags. All others take a `Config`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags, logging

from app import output, scratch
from app.capacity import check_on_host
from app.config.resolution import resolve
from app.config.schema import DEFAULTS, OPTIONS, Config, all_options
from app.modes import MODES, Outcome
from app.preflight import check_characters, check_paths, check_schemes, remote_paths
from app.presets import PRESETS
from common.errors import UserError, command_line, printable
from common.interruption import Interrupted, Stop
from common.legacy_keras import choose_keras_2
from common.methods import MethodEntry
from common.registry import load
from common.settings import option_type
from tf2.evaluators import EVALUATORS
from tf2.methods import METHODS

RUNS = 'runs'  # the folder for runs without a --model_dir
USAGE = """\
SimCLR for TensorFlow 2: pretrain an image encoder without labels.

  python run.py --mode=train_then_eval --train_mode=pretrain
      the bundled images with --preset=demo; a few minutes on a laptop
  python run.py --mode=train_then_eval --data_dir=DIR --model_dir=RUN
      your own images, in folders of any layout
  python run.py --mode=check --data_dir=DIR
      before that, read every image once: damaged files, duplicates, classes and sizes, on a page
  python run.py --mode=train_then_eval --preset=cifar10 --data_dir=DIR --model_dir=RUN
      a TensorFlow Datasets name, settings of the paper
  python run.py --mode=train_then_eval --train_mode=finetune --preset=PRESET --checkpoint=RUN
      fine-tune on labels, all or a few (--label_fraction, --labels_per_class)
  python run.py --mode=train_then_eval --train_mode=distill --preset=PRESET --teacher=RUN
      teach another network, of the same size or a smaller one, on images without labels
  python run.py --mode=pipeline --preset=demo
      all of these stages, with a table and a report at the end
  python run.py --mode=eval --model_dir=RUN
      follow the checkpoints of a training run and evaluate each
  python run.py --mode=export --checkpoint=WEIGHTS --model_dir=DIR
      turn a run, or published weights of any format, into a TF-Hub module
  python run.py --mode=embed --checkpoint=RUN --data_dir=DIR --model_dir=OUT
      the representation of every image, as .npz, .parquet or .csv (--output) and for TensorBoard
  python run.py --mode=predict --checkpoint=RUN --data_dir=DIR --model_dir=OUT
      the most likely classes of every image, with probabilities, as predictions.csv
  python run.py --mode=search --query=IMAGE --embeddings=OUT/embeddings.npz
      the images most similar to one, as a list and as a page, search.html

A rerun with the same --model_dir resumes where it stopped. It may have another batch size or
length; other settings that change the result are refused unless --allow_changes names them.
"""


class _WholeOrFraction(flags.IntegerParser):
    """Parses whole numbers as an integer flag does, and fractions."""

    def convert(self, argument: Any) -> int | float:
        try:
            return super().convert(argument)
        except ValueError:
            return float(argument)


def define_flags() -> flags.FlagValues:
    """One absl flag for every setting.

    They are not absl's global flags, so that a process can run the program more than once.
    """
    values = flags.FlagValues()
    for name, section, field in all_options():
        kind = option_type(section, field.name)
        arguments = (field.name, field.default, field.metadata['help'])
        if isinstance(field.default, int) and kind is float:
            flags.DEFINE(_WholeOrFraction(), *arguments, values, module_name=name)
        elif field.metadata['choices'] and kind is str:
            choices = list(field.metadata['choices'])
            flags.DEFINE_enum(*arguments[:2], choices, arguments[2], values, module_name=name)
        else:
            define = {
                bool: flags.DEFINE_bool,
                int: flags.DEFINE_integer,
                float: flags.DEFINE_float,
                str: flags.DEFINE_string,
            }[kind]
            define(*arguments, flag_values=values, module_name=name)
    return values


def help_text() -> str:
    """What `--help` prints: usage, every flag by section, every preset."""
    parts = [USAGE]
    title = None
    for _, section, field in all_options():
        if section is not title:
            title = section
            parts.append(f'\n{section.__doc__.splitlines()[0]}\n')
        choices = field.metadata['choices']
        values = f' ({" | ".join(map(str, choices))})' if choices else ''
        default = '' if field.default is None else f' Default: {field.default}.'
        parts.append(f'  --{field.name}{values}\n')
        parts.append(_wrapped(f'{field.metadata["help"]}{default}'))
    parts.append('\nMethods of pretraining\n')
    for name, entry in METHODS.items():
        parts.append(f'  --method={name}\n')
        parts.append(_wrapped(entry.summary) + _wrapped(f'Reads {_listed(entry)}.'))
    parts.append('\nEvaluators\n')
    for name, entry in EVALUATORS.items():
        parts.append(f'  --evaluators={name}\n')
        parts.append(_wrapped(entry.summary))
    parts.append('\nPresets\n')
    for name, preset in PRESETS.items():
        parts.append(f'  --preset={name}\n')
        settings = ' '.join(f'--{key}={value}' for key, value in preset.flags.items())
        parts.append(_wrapped(preset.summary) + _wrapped(settings))
    return ''.join(parts)


def _listed(entry: MethodEntry) -> str:
    """The settings that a method reads, and its own defaults."""
    defaults = entry.defaults
    names = [f'--{name}={defaults[name]}' for name in defaults]
    return ', '.join(
        [*(f'--{name}' for name in entry.reads if name not in ('method', *defaults)), *names]
    )


def _wrapped(text: str) -> str:
    indent = ' ' * 6
    return textwrap.fill(text, 96, initial_indent=indent, subsequent_indent=indent) + '\n'


def parse(arguments: list[str]) -> dict[str, Any]:
    """The flags given on the command line, setting name -> value.

    Args:
        arguments: as in sys.argv, the program's name first.

    Raises:
        UserError: for a flag that does not exist or a value it does not take.
    """
    values = define_flags()
    try:
        rest = values(arguments)[1:]
    except (flags.Error, ValueError) as error:  # ValueError: for --nouse_blur=True
        raise UserError(_explain(error)) from error
    if rest:
        raise UserError(f'Expected only --flags; found {rest[0]!r}. See python run.py --help.')
    given = {name: values[name].value for name in OPTIONS if values[name].present}
    for name, value in given.items():
        if value == '':
            raise UserError(
                f"--{name} must have a value; found ''. Give one, or leave the flag out."
            )
    return given


def _explain(error: Exception) -> str:
    """The error as one line. For a value of the wrong type, absl's has the error of a parser."""
    text = ' '.join(str(error).split())
    match = re.match(r'flag --(\w+)=(.*?): ', text)
    if match is None:
        return f'{text} (python run.py --help lists all flags.)'
    name, value = match.groups()
    options = all_options()
    section, field = next(option[1:] for option in options if option[2].name == name)
    choices = field.metadata['choices']
    kinds = {bool: 'true or false', int: 'a whole number', float: 'a number'}
    expected = f'one of {", ".join(map(str, choices))}' if choices else None
    return f'--{name} must be {expected or kinds[option_type(section, name)]}; found {value!r}.'


def complete(given: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Adds to `given` the strategy for several workers, if there are several, and a model folder.

    Raises:
        UserError: if each of several workers would choose a folder of its own.
    """
    given = dict(given)
    mode = given.get('mode', DEFAULTS['mode'])
    does = MODES[mode]
    distributes = does.follows_run or mode in OPTIONS['strategy']['modes']
    chosen = given.get('use_tpu') or given.get('strategy', 'auto') != 'auto'
    if (
        distributes
        and not chosen
        and ('TF_CONFIG' in environment or _tasks_of_step(environment) > 1)
    ):
        given['strategy'] = 'multi_worker'
    if given.get('model_dir') is not None or not does.new_folder:
        return given
    if given.get('strategy') == 'multi_worker':
        raise UserError(
            'Several workers need a --model_dir, one folder that all of them see; found none. '
            'Give each of them the same.'
        )
    return {**given, 'model_dir': _new_folder()}


def _new_folder() -> str:
    """Makes a folder in `runs` that no other process uses.

    Raises:
        UserError: if that fails.
    """
    stem = os.path.join(RUNS, time.strftime('%Y%m%d-%H%M%S'))
    try:
        os.makedirs(RUNS, exist_ok=True)
        for number in itertools.count():
            with contextlib.suppress(FileExistsError):
                name = f'{stem}-{number}' if number else stem
                os.mkdir(name)
                return name
    except OSError as error:
        raise UserError(
            f'--model_dir is needed where no folder can be made in {os.path.abspath(RUNS)!a} '
            f'({error.strerror}). Give one.'
        ) from error


def _tasks_of_step(environment: Mapping[str, str]) -> int:
    """The number of tasks in this SLURM step; 1 outside of a step, even within an allocation."""
    name = 'SLURM_STEP_NUM_TASKS'
    try:
        return int(environment.get(name, 1))
    except ValueError as error:
        raise UserError(
            f'{name} must be a whole number, as SLURM sets it; found {environment[name]!r}. Unset '
            'it, or give a --strategy.'
        ) from error


@contextlib.contextmanager
def completed(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Provides what `complete` makes of the flags that were asked for.

    A folder that it makes is removed at the end of the context if nothing is in it.
    """
    had_runs = os.path.isdir(RUNS)
    given = complete(asked, os.environ)
    try:
        yield given
    finally:
        if asked.get('model_dir') is None and given.get('model_dir') is not None:
            _remove_empty(given['model_dir'], *([] if had_runs else [RUNS]))


def perform(given: dict[str, Any], stop: Stop) -> Outcome:
    """Does what the flags `given`, which are `completed`, say.

    Raises:
        UserError: for whatever the user can fix.
        Interrupted: when a signal came.
    """
    config = resolve(given, PRESETS)
    with scratch.own_folder():
        return run(config, given, stop)


def run(config: Config, given: dict[str, Any], stop: Stop) -> Outcome:
    """Does what `config.run.mode` says.

    Args:
        config: all settings.
        given: the flags that were given.
        stop: whether a signal has come.
    """
    choose_keras_2()
    # Hides TensorFlow's start-up messages about CPU features and GPU plug-ins: a user can't act on
    # them, and errors come as exceptions.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    check_characters(given)
    check_schemes(given)
    check_paths(config)
    check_on_host(config)
    with _gc_disabled_during_import():
        # Imported here because TensorFlow takes seconds, and most mistakes should show at once.
        from app import experiment

        action = load(config.run.does.action)

    logging.set_verbosity(logging.WARNING)
    seconds = given.get('connect_timeout', config.devices.connect_timeout)
    for flag, place in remote_paths(given):
        experiment.check_reachable(flag, place, seconds)
    return action(config, given, stop)


@contextlib.contextmanager
def _gc_disabled_during_import() -> Iterator[None]:
    """Garbage collection is off during the import of TensorFlow, and later skips what it made.

    There is hardly any garbage in it, and searching it takes more than a second. Afterwards there
    are fewer collections: graphs consist of many objects that stay, and are not searched so often.
    """
    if 'tensorflow' in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
        gc.set_threshold(100_000, 20, 100)
    finally:
        gc.enable()


def main(arguments: list[str]) -> int:
    """Runs the program.

    Returns:
        The exit status: 0; 2 for an error that the user can fix; after a signal, 128 plus its
        number: 143 for SIGTERM, 130 for SIGINT.
    """
    with output.lasting():
        if any(argument in ('--help', '-h', '--helpfull', '--helpshort') for argument in arguments):
            print(help_text(), end='')
            return 0
        return _exit_status(arguments)


def _exit_status(arguments: list[str]) -> int:
    """Runs the program; prints what the user can fix, or how to resume, as one line."""
    given, stop = {}, Stop()
    try:
        with stop.handling(), completed(parse(arguments)) as given:
            perform(given, stop)
    except UserError as error:
        print(f'{os.path.basename(arguments[0])}: error: {printable(str(error))}', file=sys.stderr)
        return 2
    except Interrupted as error:
        command = _resume_command(arguments, given)
        print(f'\nStopped by {error}. To resume: {command}', file=sys.stderr)
        return 128 + error.number
    return 0


def _remove_empty(*folders: str) -> None:
    """Removes the folders that were made for this run, unless something is in them."""
    for folder in folders:
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(folder)


def _resume_command(arguments: list[str], given: dict[str, Any]) -> str:
    """The command that resumes in the same folder."""
    folder = given.get('model_dir')
    named = any(argument.lstrip('-').startswith('model_dir') for argument in arguments)
    more = [f'--model_dir={folder}'] if folder and not named else []
    return command_line(['python', *arguments, *more])


if __name__ == '__main__':
    status = main(sys.argv)
    # Without a garbage collection at exit, which would take seconds for all graphs.
    gc.freeze()
    sys.exit(status)
