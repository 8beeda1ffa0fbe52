"""All stages in one go: pretrain, fine-tune, distill into the same network, then into a small one.

Each stage is a run of its own in a folder of its own, with the settings of a preset.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from app import experiment, lock, report, resuming, train
from app.config.resolution import resolve, why_unread
from app.config.schema import DEFAULTS, LABELS, OPTIONS, PATHS, TRAIN_EXAMPLES, Config, to_values
from app.data_checks import open_data
from app.preflight import check_writable, with_model_dir
from app.presets import PRESETS
from app.run_folder import has_module, read_flags, read_pipeline, read_result
from common.errors import UserError, command_line
from common.file_names import PIPELINE_FILE, REPORT_FILE
from common.interruption import Stop
from common.stages import FIRST, STAGES
from tf2 import distribution, schedules
from tf2.evaluators import fitting
from tf2.files import clear_leftovers, write_text, writing

TITLES = {
    'pretrain': 'Pretraining',
    'finetune': 'Fine-tuning',
    'self_distill': 'Self-distillation',
    'student': 'Smaller student',
}
# Stage -> flag -> stage whose folder it names. The self-distilled network starts from its
# teacher's weights; the small one starts from scratch.
_READS = {
    'pretrain': {},
    'finetune': {'checkpoint': 'pretrain'},
    'self_distill': {'teacher': 'finetune', 'checkpoint': 'finetune'},
    'student': {'teacher': 'self_distill'},
}
_OF_THE_PIPELINE = ('train_mode', 'checkpoint', 'teacher', 'eval_name', 'allow_changes')
# Networks of distillations have these as their presets say: one starts from scratch, with nothing
# to freeze, the other from the classifier of its teacher.
_OF_FINE_TUNING = ('fine_tune_after_block', 'zero_init_logits_layer')


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of the pipeline.

    Attributes:
        name: key of TITLES, and name of the folder.
        given: its flags, as if they had been given on a command line.
        config: the settings that they make.
    """

    name: str
    given: Mapping[str, Any]
    config: Config

    @property
    def folder(self) -> str:
        """Its model folder."""
        return self.given['model_dir']

    @property
    def command(self) -> str:
        """The command that repeats it."""
        flags = [f'--{name}={value}' for name, value in self.given.items()]
        return command_line(['python', 'run.py', *flags])


def run_pipeline(config: Config, given: Mapping[str, Any], stop: Stop) -> None:
    """Runs what is not done yet of all stages; ends with a table and `report.html`.

    Args:
        config: settings of the first stage, with the mode of the pipeline.
        given: flags of the command line; they win over the presets, in every stage.
        stop: whether a signal has come.

    Raises:
        UserError: for whatever the user can fix, as far as possible before the first stage.
        Interrupted: when a signal came.
    """
    model_dir = with_model_dir(config).output.model_dir
    check_writable(model_dir, files=(PIPELINE_FILE, REPORT_FILE))
    stages = list(_stages(model_dir, config.run.preset, given))
    _check_same_settings(model_dir, stages)
    strategy = distribution.build_strategy(config.devices)
    writes = distribution.is_chief(strategy)
    _check(stages, strategy)
    with lock.held(model_dir) if writes else contextlib.nullcontext():
        if writes:
            with writing(model_dir):
                clear_leftovers(model_dir)
                _write_settings(model_dir, stages)
        _run(stages, stop)
        if writes:
            _conclude(model_dir, stages)


def _run(stages: list[PlannedRun], stop: Stop) -> None:
    for number, stage in enumerate(stages, 1):
        print(f'\nStage {number} of {len(stages)}: {TITLES[stage.name]}, in {stage.folder}')
        if is_done(stage):
            print('It is done.')
            continue
        train.train(experiment.prepare(stage.config, stage.given), evaluate=True, stop=stop)
        tf.keras.backend.clear_session()


def _check(stages: list[PlannedRun], strategy: tf.distribute.Strategy) -> None:
    """Raises UserError for what a later stage, too, would find wrong with data or devices."""
    for stage in stages:
        config, _ = open_data(stage.config, stage.given, strategy.num_replicas_in_sync)
        experiment.check_devices(config, strategy)
    unfinished = [stage for stage in stages if not is_done(stage)]
    if unfinished:
        experiment.prepare(unfinished[0].config, unfinished[0].given)


def _stages(model_dir: str, preset: str | None, given: Mapping[str, Any]) -> Iterator[PlannedRun]:
    """The stages with their settings, in order."""
    names = [name for name, entry in PRESETS.items() if entry.stages]
    if preset not in names:
        raise UserError(
            f'--mode=pipeline needs a --preset with settings for every stage: {", ".join(names)}; '
            f'found {preset}.'
        )
    _refuse(given)
    chosen = dict(zip(TITLES, (preset, *PRESETS[preset].stages), strict=True))
    _refuse_unread(chosen, given)
    for name in TITLES:
        flags = _flags_of(name, chosen, model_dir, given)
        yield PlannedRun(name, flags, resolve(flags, PRESETS))


def _refuse_unread(presets: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Raises UserError for a given flag that none of the stages reads."""
    for flag in given:
        reasons = [_why_unread(flag, PRESETS[preset].flags, given) for preset in presets.values()]
        if all(reasons):
            raise UserError(reasons[0])


def _why_unread(flag: str, preset: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Why the stage of a preset does not read `flag`; None if it does."""
    stage = {'mode': 'train_then_eval', 'train_mode': preset.get('train_mode', FIRST)}
    return why_unread(flag, {**DEFAULTS, **preset, **given, **stage})


def _refuse(given: Mapping[str, Any]) -> None:
    # The first stage's mode says nothing wrong: the README's first command has it.
    harmless = ('train_mode', FIRST)
    found = ((name, given.get(name)) for name in _OF_THE_PIPELINE)
    wrong = [name for name, value in found if value is not None and (name, value) != harmless]
    if wrong:
        raise UserError(
            f'--mode=pipeline chooses --{wrong[0]} of each stage itself; found '
            f'{given[wrong[0]]!r}. Leave it out, or run the stages one by one.'
        )


def _flags_of(
    name: str, presets: Mapping[str, str], model_dir: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The flags of stage `name`: those of the pipeline's command line that concern it."""
    settings = PRESETS[presets[name]].flags
    mode = settings.get('train_mode', FIRST)
    alpha = {**settings, **given}.get('distill_alpha', DEFAULTS['distill_alpha'])
    uses_labels = STAGES[mode].learns_from_labels(alpha)
    others = LABELS if STAGES[mode].needs_labels else (*LABELS, *_OF_FINE_TUNING)
    taken = {
        key: value
        for key, value in given.items()
        if key not in others and not _why_unread(key, settings, given)
    }
    if 'evaluators' in taken:
        missing = [] if STAGES[mode].has_teacher else ['teacher']
        if not {**DEFAULTS, **settings, **taken}['knn_neighbors']:
            missing.append('neighbors')
        taken['evaluators'] = fitting(taken['evaluators'], missing) or DEFAULTS['evaluators']
    if name == 'student' and 'width_multiplier' in given:
        taken['width_multiplier'] = given['width_multiplier'] / 2  # as in its preset
    reads = {flag: os.path.join(model_dir, source) for flag, source in _READS[name].items()}
    # Teachers are its own runs; the folder may come from elsewhere.
    safe = {'safe_weights': True} if 'teacher' in reads else {}
    return {
        **taken,
        **safe,
        'mode': 'train_then_eval',
        'train_mode': mode,
        'preset': presets[name],
        **(_labels(given, presets['finetune']) if uses_labels else {}),
        **reads,
        'model_dir': os.path.join(model_dir, name),
    }


def _labels(given: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """The choice of labels, the same wherever labels are used: the given one, else `preset`'s."""
    chosen = {key: given[key] for key in LABELS if key in given}
    flags = PRESETS[preset].flags
    return chosen or {key: flags[key] for key in LABELS if key in flags}


def _check_same_settings(model_dir: str, stages: list[PlannedRun]) -> None:
    """Raises UserError if `model_dir` holds a pipeline with other settings; shows both."""
    recorded = read_pipeline(model_dir) or {}
    differing = [
        f'{key} {recorded[stage.name][key]} in {stage.name}, now {value}'
        for stage in stages
        for key, value in _settings(stage).items()
        if recorded.get(stage.name, {}).get(key, value) != value
    ]
    if differing:
        more = f' and {len(differing) - 3} more' if len(differing) > 3 else ''
        raise UserError(
            f'--model_dir={model_dir} holds a pipeline with other settings: '
            f'{"; ".join(differing[:3])}{more}. Choose another --model_dir, or the flags it was '
            'made with.'
        )


def _write_settings(model_dir: str, stages: list[PlannedRun]) -> None:
    settings = {stage.name: _settings(stage) for stage in stages}
    tf.io.gfile.makedirs(model_dir)
    text = json.dumps(settings, indent=1, sort_keys=True)
    write_text(os.path.join(model_dir, PIPELINE_FILE), f'{text}\n')


def _settings(stage: PlannedRun) -> dict[str, Any]:
    values = to_values(stage.config)
    free = {name for name, metadata in OPTIONS.items() if metadata['resume'] == 'free'}
    return {name: values[name] for name in values.keys() - free - set(PATHS)}


def is_done(stage: PlannedRun) -> bool:
    """Whether the stage was trained to its end, evaluated and exported."""
    recorded = read_flags(stage.folder, need=(TRAIN_EXAMPLES,))
    if recorded is None:
        return False
    history = resuming.read_history(stage.folder, stage.config.train.train_batch_size)
    if not history.recorded:
        return False
    # It may have gone on by itself, with other settings than the pipeline's.
    train = resuming.settings_before(history).train
    steps = schedules.total_steps(recorded[TRAIN_EXAMPLES], train, history.position)
    result = read_result(stage.folder)
    return result.get('global_step') == steps and has_module(stage.folder, steps)


def _conclude(model_dir: str, stages: list[PlannedRun]) -> None:
    """Shows the table and writes the report."""
    runs = [report.PipelineRun(s.name, TITLES[s.name], s.folder, s.command) for s in stages]
    print(f'\n{report.format_table(report.table(runs))}\n', flush=True)
    path = os.path.join(model_dir, REPORT_FILE)
    with writing(model_dir):
        report.write_report(path, runs)
    print(f'Report: {path}')
