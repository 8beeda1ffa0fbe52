"""Runs all stages: pretrains, fine-tunes, distills into the same network, then into a smaller one.

Each stage is a run with a folder and a preset of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from app import experiment, lock, report, resuming, train
from app.config.resolution import why_unread
from app.config.schema import DEFAULTS, LABELS, OPTIONS, PATHS, TRAIN_EXAMPLES, Config, to_values
from app.data_checks import open_data
from app.modes import Outcome
from app.planned_run import PlannedRun
from app.preflight import check_writable, with_model_dir
from app.presets import PRESETS
from app.run_folder import has_module, read_flags, read_pipeline, read_result
from common.errors import UserError
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
# Run -> flag -> run whose folder it names. The self-distilled network starts from its teacher's
# weights; the smaller one starts from scratch.
_READS = {
    'pretrain': {},
    'finetune': {'checkpoint': 'pretrain'},
    'self_distill': {'teacher': 'finetune', 'checkpoint': 'finetune'},
    'student': {'teacher': 'self_distill'},
}
_OF_THE_PIPELINE = ('train_mode', 'checkpoint', 'teacher', 'eval_name', 'allow_changes')
# Distillations don't take these from the command line: one starts from scratch, with nothing to
# freeze, the other from the classifier of its teacher.
_OF_FINE_TUNING = ('fine_tune_after_block', 'zero_init_logits_layer')


def run_pipeline(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Runs every stage that is not done yet; ends with a table and, by default, `report.html`.

    Args:
        config: settings of the first stage, with the mode of the pipeline.
        given: flags of the command line, which take precedence over the presets in every stage.
        stop: whether a signal has come.

    Raises:
        UserError: for whatever the user can fix, if possible before the first stage.
        Interrupted: when a signal came.
    """
    model_dir = with_model_dir(config).output.model_dir
    check_writable(model_dir, files=(PIPELINE_FILE, REPORT_FILE))
    plan = list(_plan(model_dir, config.run.preset, given))
    _check_same_settings(model_dir, plan)
    strategy = distribution.build_strategy(config.devices)
    writes = distribution.is_chief(strategy)
    _check(plan, strategy)
    with lock.held(model_dir) if writes else contextlib.nullcontext():
        if writes:
            with writing(model_dir):
                clear_leftovers(model_dir)
                _write_settings(model_dir, plan)
        _run(plan, stop)
        if writes:
            _conclude(model_dir, plan)
    results = {planned.name: read_result(planned.folder) for planned in plan}
    path = os.path.join(model_dir, REPORT_FILE)
    return Outcome(model_dir, results, path if tf.io.gfile.exists(path) else None)


def _run(plan: list[PlannedRun], stop: Stop) -> None:
    for number, planned in enumerate(plan, 1):
        print(f'\nStage {number} of {len(plan)}: {planned.title}, in {planned.folder}')
        if is_done(planned):
            print('It is done.')
            continue
        prepared = experiment.prepare(planned.config, planned.given)
        train.train(prepared, planned, evaluate=True, stop=stop)
        tf.keras.backend.clear_session()


def _check(plan: list[PlannedRun], strategy: tf.distribute.Strategy) -> None:
    """Raises UserError if any stage, the last one too, doesn't fit data or devices."""
    for planned in plan:
        config, _ = open_data(planned.config, planned.given, strategy.num_replicas_in_sync)
        experiment.check_devices(config, strategy)
    unfinished = [planned for planned in plan if not is_done(planned)]
    if unfinished:
        experiment.prepare(unfinished[0].config, unfinished[0].given)


def _plan(model_dir: str, preset: str | None, given: Mapping[str, Any]) -> Iterator[PlannedRun]:
    """The runs in order."""
    names = [name for name, entry in PRESETS.items() if entry.stages]
    if preset not in names:
        raise UserError(
            f'--mode=pipeline needs a --preset with settings for every stage: {", ".join(names)}; '
            f'found {preset}.'
        )
    _refuse(given)
    chosen = dict(zip(TITLES, (preset, *PRESETS[preset].stages), strict=True))
    _refuse_unread(chosen, given)
    for name, title in TITLES.items():
        yield PlannedRun(title, _flags_of(name, chosen, model_dir, given))


def _refuse_unread(presets: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Raises UserError for a given flag that no stage reads."""
    for flag in given:
        reasons = [_why_unread(flag, PRESETS[preset].flags, given) for preset in presets.values()]
        if all(reasons):
            raise UserError(reasons[0])


def _why_unread(flag: str, preset: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Why the stage of a preset does not read `flag`; None if it does."""
    stage = {'mode': 'train_then_eval', 'train_mode': preset.get('train_mode', FIRST)}
    return why_unread(flag, {**DEFAULTS, **preset, **given, **stage})


def _refuse(given: Mapping[str, Any]) -> None:
    # --train_mode=pretrain is accepted, because it is right for the first stage.
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
    """The flags of the run `name`: its own, and those of the command line that it reads."""
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
    # Teachers are runs of this pipeline, but the folder may come from elsewhere.
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
    """The choice of labels, the same in every stage: as given, or as `preset` says."""
    chosen = {key: given[key] for key in LABELS if key in given}
    flags = PRESETS[preset].flags
    return chosen or {key: flags[key] for key in LABELS if key in flags}


def _check_same_settings(model_dir: str, plan: list[PlannedRun]) -> None:
    """Raises UserError if `model_dir` holds a pipeline with other settings; shows both."""
    recorded = read_pipeline(model_dir) or {}
    differing = [
        f'{key} {recorded[planned.name][key]} in {planned.name}, now {value}'
        for planned in plan
        for key, value in _settings(planned).items()
        if recorded.get(planned.name, {}).get(key, value) != value
    ]
    if differing:
        more = f' and {len(differing) - 3} more' if len(differing) > 3 else ''
        raise UserError(
            f'--model_dir={model_dir} holds a pipeline with other settings: '
            f'{"; ".join(differing[:3])}{more}. Choose another --model_dir, or the flags it was '
            'made with.'
        )


def _write_settings(model_dir: str, plan: list[PlannedRun]) -> None:
    settings = {planned.name: _settings(planned) for planned in plan}
    tf.io.gfile.makedirs(model_dir)
    text = json.dumps(settings, indent=1, sort_keys=True)
    write_text(os.path.join(model_dir, PIPELINE_FILE), f'{text}\n')


def _settings(planned: PlannedRun) -> dict[str, Any]:
    values = to_values(planned.config)
    free = {name for name, metadata in OPTIONS.items() if metadata['resume'] == 'free'}
    return {name: values[name] for name in values.keys() - free - set(PATHS)}


def is_done(planned: PlannedRun) -> bool:
    """Whether the run was trained to its end, evaluated and exported."""
    recorded = read_flags(planned.folder, need=(TRAIN_EXAMPLES,))
    if recorded is None:
        return False
    history = resuming.read_history(planned.folder, planned.config.train.train_batch_size)
    if not history.recorded:
        return False
    # It may have been resumed by itself, with other settings than the pipeline's.
    train = resuming.settings_before(history).train
    steps = schedules.total_steps(recorded[TRAIN_EXAMPLES], train, history.position)
    result = read_result(planned.folder)
    return result.get('global_step') == steps and has_module(planned.folder, steps)


def _conclude(model_dir: str, plan: list[PlannedRun]) -> None:
    """Prints the table and writes the report, unless it is turned off."""
    print(f'\n{report.format_table(report.table(plan))}\n', flush=True)
    if plan[0].config.output.report:
        report.report_on(model_dir, plan)
