"""Exports models as TF-Hub modules: those a run has trained, and weights of any format."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

import hub_export
from app import lock
from app.config.schema import Config
from app.experiment import show_report, with_weights, within_memory
from app.modes import Outcome
from app.preflight import with_model_dir
from common.errors import UserError
from common.file_names import CHECKPOINT, FLAGS_FILE, MODULES, PIPELINE_FILE
from common.interruption import Stop
from data.batches import decode_for_evaluation
from tf2.files import PATTERN, checkpoints_in, writing
from tf2.models.encoder import SimCLRModel
from tf2.weights import Report, Weights


def export_checkpoint(config: Config, given: Mapping[str, Any], stop: Stop) -> Outcome:
    """Exports the weights that `--checkpoint` names, in any format, to the model folder.

    Args:
        config: all settings.
        given: those of them that were given on the command line.
        stop: unused: an interrupted export leaves nothing behind.

    Raises:
        UserError: if there is no checkpoint, or it contradicts the flags.
    """
    del stop
    if not config.learning.checkpoint or not config.output.model_dir:
        raise UserError(
            '--mode=export needs --checkpoint, the weights, and --model_dir, the folder for the '
            f'module; found {config.learning.checkpoint} and {config.output.model_dir}.'
        )
    config = with_model_dir(config)
    _check_own_folder(config.output.model_dir, config.learning.checkpoint)
    config, weights = with_weights(config, given)
    if 'ft_proj_selector' not in given and weights.selector is not None:
        model = dataclasses.replace(config.model, ft_proj_selector=weights.selector)
        config = dataclasses.replace(config, model=model)
    model = weights.build(config.model, config.data.image_size)
    report = weights.load_into(model, head_layers=-1)
    show_report(report, config.run.verbosity)
    _check_complete(model, weights, report)
    with lock.held(config.output.model_dir):
        path = export_model(config, model, weights.step, class_names=weights.class_names)
    return Outcome(config.output.model_dir, {'global_step': weights.step}, path)


def _check_own_folder(model_dir: str, checkpoint: str) -> None:
    """Raises UserError if `model_dir` holds a run, and `checkpoint` is not one of its own."""
    files = (FLAGS_FILE, PIPELINE_FILE)
    holds_run = any(tf.io.gfile.exists(os.path.join(model_dir, file)) for file in files)
    below = os.path.relpath(
        os.path.realpath(os.path.expanduser(checkpoint)), os.path.realpath(model_dir)
    )
    own = re.match(rf'\.$|{CHECKPOINT}-\d+|{MODULES}(/|$)', below)
    if not own and (holds_run or checkpoints_in(model_dir)):
        raise UserError(
            f'--mode=export must not replace the modules of another run; found one in {model_dir}, '
            f'and --checkpoint={checkpoint} is not of that run. Choose another --model_dir.'
        )


def _check_complete(model: SimCLRModel, weights: Weights, report: Report) -> None:
    """Raises UserError if a variable of the model was not loaded."""
    missing = len(model.variables) - len(report.loaded)
    if missing:
        raise UserError(
            f'--mode=export needs all {len(model.variables)} variables of the model, from '
            f'{weights.path}; {missing} were not loaded. If the classifier reads a layer of the '
            'projection head, name it with --ft_proj_selector.'
        )


def export_model(
    config: Config,
    model: SimCLRModel,
    step: int,
    folder: str = MODULES,
    *,
    class_names: Sequence[str] | None,
) -> str:
    """Exports `model` to a folder below the model folder, and prints how to load it.

    To be called outside of a strategy's scope.

    Args:
        config: all settings.
        model: built.
        step: number of updates its weights have had.
        folder: name of the folder of modules.
        class_names: of the classes of its classifier; None if unknown.

    Returns:
        The module's path.

    Raises:
        UserError: if the module can't be written.
    """
    root = os.path.join(config.output.model_dir, folder)
    with within_memory('export', config, tf.distribute.get_strategy()), writing(root):
        path = hub_export.export_module(
            model,
            root,
            step,
            image_size=config.data.image_size,
            class_names=class_names,
            method=config.learning.method,
            decode=functools.partial(decode_for_evaluation, config=config.data),
            weight_decay=config.optimizer.weight_decay,
            keep=config.output.keep_hub_module_max,
        )
    print(f'Exported: hub.load({path!r})')
    if PATTERN.search(path):
        print(
            'Before others load it, rename the folder with [ or \\, which TensorFlow cannot read.'
        )
    return path
