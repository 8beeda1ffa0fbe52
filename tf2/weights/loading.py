"""Assigns the values in a checkpoint to the variables of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from common.errors import UserError
from tf2.models.encoder import SimCLRModel
from tf2.weights.checkpoint_file import CheckpointFile
from tf2.weights.formats import Contents
from tf2.weights.load_report import NOT_WEIGHTS, Reasons, Report

Variables = Mapping[str, tf.Variable]


class Loading:
    """Matches a model with a checkpoint.

    Args:
        path: for messages.
        contents: what the checkpoint holds.
        model: built.
    """

    def __init__(self, path: str, contents: Contents, model: SimCLRModel) -> None:
        self.path = path
        self.contents = contents
        self.naming = contents.naming
        self.variables = self.naming.variables(model)
        self.chosen: list[str] = []
        self.left_out: dict[str, list[str]] = {}
        self.missing: dict[str, list[str]] = {}

    def choose_encoder(self) -> None:
        """Chooses the whole encoder.

        Raises:
            UserError: if its variables or their shapes differ.
        """
        ours, theirs = self._shapes_below(self.naming.encoder)
        differing = sorted(
            name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
        )
        if differing:
            name = differing[0]
            raise UserError(
                f'--checkpoint={self.path} should match the whole encoder, {len(ours)} variables; '
                f'found {len(differing)} that differ, such as {name}: '
                f'{_shape(theirs.get(name))} in the file, {_shape(ours.get(name))} here. '
                'Leave out the flags of the architecture, or choose another --checkpoint.'
            )
        self.chosen += ours

    def choose_head(self, required: int) -> None:
        """Chooses the layers that fit; raises UserError if one of the first `required` doesn't."""
        prefix = self.naming.head
        ours, theirs = (_by_layer(prefix, shapes) for shapes in self._shapes_below(prefix))
        for layer in range(max([required, *(n + 1 for n in ours.keys() | theirs.keys())])):
            mine, file = ours.get(layer, {}), theirs.get(layer, {})
            if layer < required and (mine != file or not mine):
                self._refuse_head(required, layer, mine, file)
            if mine == file:
                self.chosen += mine
            elif not file:
                self.missing.setdefault('projection layers: not in the file', []).extend(mine)
            elif not mine:
                self._leave_out('projection layers: not in this model', file)
            else:
                self._leave_out(f'projection layer {layer + 1}: {_difference(file, mine)}', file)

    def choose_classifier(self, refusal: str | None) -> None:
        """Chooses the classifier if its inputs and classes match and there is no `refusal`."""
        prefix = self.naming.classifier
        ours, theirs = self._shapes_below(prefix)
        if not theirs:
            if ours:
                self.missing['classifier: not in the file'] = list(ours)
        elif not ours:
            self._leave_out('classifier: not in this model', theirs)
        elif refusal is not None:
            self._leave_out(f'classifier: {refusal}', theirs)
        elif ours != theirs:
            self._leave_out(f'classifier: {_classes(f"{prefix}/kernel", theirs, ours)}', theirs)
        else:
            self.chosen += ours

    def assign(self, file: CheckpointFile) -> Report:
        """Assigns the chosen variables; returns the report."""
        for name in self.chosen:
            variable = self.variables[name]
            value = file.value(self.contents.keys[name])
            variable.assign(np.asarray(value, variable.dtype.as_numpy_dtype))
        rest = {NOT_WEIGHTS: list(self.contents.not_weights)} if self.contents.not_weights else {}
        left_out = _frozen({**self.left_out, **rest})
        return Report(self.path, tuple(self.chosen), left_out, _frozen(self.missing))

    def _shapes_below(self, prefix: str) -> tuple[dict[str, tuple], dict[str, tuple]]:
        """Name -> shape, in the model and in the file."""
        ours = {name: tuple(variable.shape) for name, variable in self.variables.items()}
        pair = ours, self.contents.shapes
        return tuple(
            {name: shape for name, shape in shapes.items() if name.startswith(f'{prefix}/')}
            for shapes in pair
        )

    def _leave_out(self, reason: str, names: Mapping[str, tuple]) -> None:
        keys = [self.contents.keys[name] for name in names]
        self.left_out.setdefault(reason, []).extend(keys)

    def _refuse_head(self, required: int, layer: int, ours: Mapping, theirs: Mapping) -> None:
        if ours and theirs:
            found = f'layer {layer + 1} with {_difference(theirs, ours)}'
        else:
            place = 'in the file' if not theirs else 'in this model'
            found = f'{layer or "none"} {place}'
        raise UserError(
            f'--checkpoint={self.path} should hold the first {required} layers of the projection '
            f'head, which --ft_proj_selector needs; found {found}. Choose a smaller '
            '--ft_proj_selector, or another --checkpoint.'
        )


def _by_layer(prefix: str, shapes: Mapping[str, tuple]) -> dict[int, dict[str, tuple]]:
    """Shapes of the head by layer, whose index follows `prefix`."""
    layers: dict[int, dict[str, tuple]] = {}
    for name, shape in shapes.items():
        index = int(name.removeprefix(f'{prefix}/').split('/')[0])
        layers.setdefault(index, {})[name] = shape
    return layers


def _shape(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return 'nothing'
    return 'x'.join(map(str, shape)) or 'scalar'


def _difference(theirs: Mapping[str, tuple], ours: Mapping[str, tuple]) -> str:
    """Describes how a layer of the head differs."""
    for name in theirs:
        if name in ours and theirs[name] != ours[name]:
            word = name.rsplit('/', 1)[-1]
            return f'{word} {_shape(theirs[name])} in the file, {_shape(ours[name])} here'
    odd = ', '.join(sorted(name.rsplit('/', 1)[-1] for name in theirs.keys() ^ ours.keys()))
    return f'{odd} only in the {"file" if len(theirs) > len(ours) else "model"}'


def _classes(kernel: str, theirs: Mapping[str, tuple], ours: Mapping[str, tuple]) -> str:
    found, wanted = theirs.get(kernel), ours.get(kernel)
    if found and wanted and found[0] == wanted[0]:
        return f'{found[1]} classes in the file, {wanted[1]} here'
    return f'{_shape(found)} in the file, {_shape(wanted)} here'


def _frozen(reasons: Mapping[str, list[str]]) -> Reasons:
    return {reason: tuple(names) for reason, names in reasons.items()}
