"""Commands with which one can go on from a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from app.config.schema import DEFAULTS, OPTIONS
from app.presets import PRESETS
from app.report.runs import Run
from app.run_folder import newest_module
from common.errors import command_line
from data.config import DataConfig

# Settings of how images are made for training, not of which images there are.
_VIEWS = ('image_size', 'cache_dataset', 'tf_data_service')


def steps_of(run: Run) -> list[tuple[str, str]]:
    """Title and command of each thing to do next with a run."""
    folder = run.planned.folder
    steps = [
        ('Evaluate it again', _command(['--mode=eval', f'--model_dir={folder}'])),
        ('Look at curves and images as they change', f'tensorboard {_quoted("--logdir", folder)}'),
        *_trainings(run),
        ('Write a vector for every image', _apply(run, 'embed', f'{folder}-vectors')),
        (
            'Find the images most similar to one, in these vectors',
            _command(
                [
                    '--mode=search',
                    '--query=IMAGE',
                    f'--embeddings={folder}-vectors/embeddings.npz',
                ]
            ),
        ),
    ]
    if run.stage.classifies:
        title = 'Write the most likely classes of every image'
        steps.append((title, _apply(run, 'predict', f'{folder}-predictions')))
    module = newest_module(folder)
    return [*steps, *([('Use the network in a program', _program(module))] if module else [])]


def _trainings(run: Run) -> list[tuple[str, str]]:
    """The stages that may follow; they take labels, or a classifier as the teacher."""
    folder, following = run.planned.folder, _following(run)
    labeled = any((run.data or {}).get('train') or []) or run.values['num_classes']
    steps = []
    if labeled and not run.stage.classifies:
        steps.append(
            (
                'Fine-tune it on labels',
                _train(run, 'finetune', 0, ['--checkpoint', folder], f'{folder}-finetuned'),
            )
        )
    if run.stage.classifies:
        student = following[2] if following else None
        smaller = 'a smaller network' if student else 'another network'
        steps.append(
            (
                f'Teach {smaller} what it knows, without labels (distillation)',
                _train(run, 'distill', 2, ['--teacher', folder], f'{folder}-student'),
            )
        )
    return steps


def _train(run: Run, stage: str, number: int, reads: list[str], folder: str) -> str:
    """The command that trains another stage; `number` is the place of its preset."""
    following = _following(run)
    preset = following[number] if following else None
    known = {**DEFAULTS, **(PRESETS[preset].flags if preset else {})}
    flag, path = reads
    return _command(
        [
            '--mode=train_then_eval',
            f'--train_mode={stage}',
            *([f'--preset={preset}'] if preset else []),
            f'{flag}={path}',
            *_data_flags(run, _data_names(), known),
            f'--model_dir={folder}',
        ]
    )


def _following(run: Run) -> tuple[str, ...] | None:
    """The presets of the later stages of a pipeline to which the preset of a run belongs."""
    own = run.values.get('preset')
    for name, preset in PRESETS.items():
        if preset.stages and own in (name, *preset.stages):
            return preset.stages
    return None


def _apply(run: Run, mode: str, folder: str) -> str:
    names = [name for name in _data_names() if mode in OPTIONS[name]['modes']]
    names = [name for name in names if name not in ('eval_split', 'holdout_fraction')]
    return _command(
        [
            f'--mode={mode}',
            f'--checkpoint={run.planned.folder}',
            *_data_flags(run, names, DEFAULTS),
            f'--model_dir={folder}',
        ]
    )


def _data_names() -> list[str]:
    """The settings that say which images there are."""
    fields = [field.name for field in dataclasses.fields(DataConfig)]
    return [name for name in fields[: fields.index('image_size')] if name not in _VIEWS]


def _data_flags(run: Run, names: Iterable[str], known: dict[str, object]) -> list[str]:
    """Flags for the settings in `names` whose values are not the `known` ones."""
    differing = {name: run.values[name] for name in names if run.values.get(name) is not None}
    return [f'--{name}={value}' for name, value in differing.items() if value != known[name]]


def _program(module: str) -> str:
    return (
        'import tensorflow_hub as hub\n\n'
        f'm = hub.load({module!r})\n'
        "m(images)['final_avg_pool']  # images: float32 [b, h, w, 3] in [0, 1] → vectors"
    )


def _command(arguments: list[str]) -> str:
    return command_line(['python', 'run.py', *arguments])


def _quoted(*words: str) -> str:
    return command_line(words)
