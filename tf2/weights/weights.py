"""Opens weights, compares them with the flags, and loads them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import UserError
from common.limits import SMALL_IMAGE
from tf2.config import LearningConfig, ModelConfig
from tf2.methods import make_head
from tf2.models import BACKBONES
from tf2.models.encoder import SimCLRModel, build_model
from tf2.weights.checkpoint_file import CheckpointFile, locate
from tf2.weights.formats import OURS, Contents, contents_of, own_keys, recorded_contents
from tf2.weights.load_report import Report
from tf2.weights.loading import Loading
from tf2.weights.record import FIELDS, RECORD_KEY, Record, read_record
from tf2.weights.shape_inference import (
    class_count,
    head_is_whole,
    head_layer_count,
    infer,
    infer_encoder,
    is_for_small_images,
    same_width,
    se_widths,
    sk_widths,
    widths,
)

MODULE = 'module exported by this program'
HEAD_FIELDS = ('proj_head_mode', 'num_proj_layers', 'proj_out_dim', 'proj_hidden_dim')
COUNTERS = ('global_step', 'global_step/.ATTRIBUTES/VARIABLE_VALUE')


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint and its architecture.

    Attributes:
        format: in words, for messages.
        path: as the user gave it.
        prefix: of the checkpoint files.
        architecture: fields of `ModelConfig`, recorded or inferred from shapes.
        recorded: whether they are recorded.
        method: of the pretraining, whose projection head the network has; SimCLR if not recorded.
        small_images: whether the encoder has the stem for images of `SMALL_IMAGE` or less; None if
            the backbone has a single stem.
        image_size: in pixels, to use the encoder at; if not recorded, 32 or 224 by its stem.
        num_classes: of the linear classifier; None without one.
        head_layers: number of layers of the projection head in the file.
        selector: head layer that the classifier reads; None if not recorded.
        step: number of updates of the weights; 0 if unknown.
        class_names: names of the linear classifier's classes; None if unknown.
        contents: keys and shapes.
    """

    format: str
    path: str
    prefix: str
    architecture: Mapping[str, Any]
    recorded: bool
    method: str
    small_images: bool | None
    image_size: int
    num_classes: int | None
    head_layers: int
    selector: int | None
    step: int
    class_names: tuple[str, ...] | None
    contents: Contents = dataclasses.field(repr=False)

    def build(
        self,
        config: ModelConfig | None = None,
        image_size: int | None = None,
        *,
        precision: str = 'float32',
    ) -> SimCLRModel:
        """A model with this architecture and the head of its method, and with fresh weights.

        Args:
            config: of this architecture. By default the classifier reads the recorded layer, or
                else the encoder's output.
            image_size: in pixels; default: `image_size`.
            precision: of convolutions and dense layers.
        """
        if config is None:
            config = ModelConfig(**self.architecture, ft_proj_selector=self.selector or 0)
        return build_model(
            SimCLRModel(
                config,
                image_size or self.image_size,
                self.num_classes,
                make_head=make_head(self.method),
                precision=precision,
            )
        )

    def load_into(
        self, model: SimCLRModel, *, head_layers: int = 0, no_classifier: str | None = None
    ) -> Report:
        """Assigns encoder, projection head and classifier, as far as they fit.

        Args:
            model: built; under a distribution strategy or not.
            head_layers: how many of the first layers of the projection head are required; -1 means
                all that the model has.
            no_classifier: reason not to load the classifier; None loads it, unless its inputs or
                classes differ in number.

        Returns:
            What was loaded, left out and missing.

        Raises:
            UserError: if part of the encoder doesn't fit, a required layer of the head is missing,
                or the file is damaged. Only in the last case may some weights have been loaded.
        """
        required = len(model.projection_head.blocks) if head_layers < 0 else head_layers
        self._check_backbone(model)
        loading = Loading(self.path, self.contents, model)
        loading.choose_encoder()
        loading.choose_head(required)
        loading.choose_classifier(no_classifier)
        return loading.assign(CheckpointFile(self.prefix))

    def _check_backbone(self, model: SimCLRModel) -> None:
        found, wanted = self.architecture['backbone'], model.config.backbone
        if found != wanted:
            raise UserError(
                f'--checkpoint={self.path} must be of --backbone={wanted}; found {found}. '
                'Leave out --backbone, or choose another --checkpoint.'
            )
        small = model.image_size <= SMALL_IMAGE
        if self.small_images not in (None, small):
            raise UserError(_other_stem(self, f'the model is for images {_stem(small)}'))


def open_weights(path: str) -> Weights:
    """Opens weights of any format; reads only counters and records.

    Args:
        path: a `--model_dir` of ours (its newest checkpoint), a checkpoint prefix, an exported
            module of ours, or an official TF1 or TF2 checkpoint or TF2 SavedModel; on any file
            system TensorFlow knows, or a URL that tensorflow-hub resolves.

    Raises:
        UserError: if there is nothing, files are missing, or it is another kind of model.
    """
    prefix = locate(path)
    file = CheckpointFile(prefix)
    own = own_keys(file.shapes, file.graph())
    record = read_record(prefix) if own else None
    if record:
        contents, known = recorded_contents(own, file.shapes), _from_record(record)
        if record.backbone.published:
            inferred = infer_encoder(path, contents_of(path, file.shapes, own))
            _check_record(path, record, {'backbone': record.architecture['backbone'], **inferred})
    else:
        contents = contents_of(path, file.shapes, own)
        known = _from_shapes(path, contents)
    return Weights(
        path=path,
        prefix=prefix,
        recorded=record is not None,
        num_classes=class_count(contents),
        head_layers=head_layer_count(contents),
        selector=record and record.selector,
        step=_step(file, record),
        class_names=_class_names(file, record, class_count(contents)),
        contents=contents,
        **known,
    )


def _from_record(record: Record) -> dict[str, Any]:
    small = record.image_size <= SMALL_IMAGE if record.backbone.small_stem else None
    return {
        'format': MODULE if record.module else OURS,
        'method': record.method,
        'architecture': record.architecture,
        'small_images': small,
        'image_size': record.image_size,
    }


def _from_shapes(path: str, contents: Contents) -> dict[str, Any]:
    small = is_for_small_images(contents)
    return {
        'format': contents.format,
        'method': LearningConfig.method,
        'architecture': {'backbone': 'resnet', **infer(path, contents)},
        'small_images': small,
        'image_size': SMALL_IMAGE if small else 224,
    }


def check_compatible(weights: Weights, given: Mapping[str, Any]) -> None:
    """Compares the given flags with the file.

    If the file has no head, any head is compatible, because it starts at random; but a selector
    can't choose one of its layers.

    Args:
        weights: to start from.
        given: flag -> value, of the flags of the model, and the 'image_size' of the run even if it
            is a default; other flags are ignored.

    Raises:
        UserError: if they contradict each other.
    """
    differing = contradictions(weights.architecture, given, head=weights.head_layers > 0)
    if differing:
        found = _values_of(weights.architecture, differing)
        asked = ', '.join(f'{name} {given[name]}' for name in differing)
        raise UserError(
            f'--checkpoint={weights.path} holds {found}; the flags ask for {asked}. Leave these '
            'flags out, or choose another --checkpoint.'
        )
    if given.get('image_size') is not None:
        _check_stem(weights, given['image_size'])
    if given.get('ft_proj_selector') is not None:
        _check_selector(weights, given['ft_proj_selector'])


def config_for(weights: Weights, config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """`config` with the architecture of the file, so that no flag has to repeat it.

    If the file has no projection head, `proj_head_mode` becomes 'none', unless flags of the head
    are given.

    Args:
        weights: to start from.
        config: from flags, preset and defaults.
        given: given flag -> value; these settings are kept.

    Raises:
        UserError: if given flags or the selector contradict the file.
    """
    check_compatible(weights, {'ft_proj_selector': config.ft_proj_selector, **given})
    new_head = weights.head_layers == 0 and any(given.get(name) is not None for name in HEAD_FIELDS)
    kept = {name for name in FIELDS if given.get(name) is not None}
    kept |= set(HEAD_FIELDS) if new_head else set()
    taken = {name: value for name, value in weights.architecture.items() if name not in kept}
    return dataclasses.replace(config, **taken)


def contradictions(
    architecture: Mapping[str, Any], given: Mapping[str, Any], *, head: bool
) -> list[str]:
    """Names of the fields in `given` that contradict `architecture`.

    Values that give the same shapes don't contradict each other.

    Args:
        architecture: of a file.
        given: field -> value; None counts as not given.
        head: whether to compare the head too.
    """
    asked = {name: given[name] for name in FIELDS if given.get(name) is not None}
    differing = [
        name
        for name in asked
        if name not in HEAD_FIELDS
        and not (_is_read(name, architecture) and _same(name, asked[name], architecture))
    ]
    return differing + (_head_contradictions(architecture, asked) if head else [])


def _is_read(name: str, architecture: Mapping[str, Any]) -> bool:
    """Whether the backbone in `architecture` reads setting `name`."""
    return name == 'backbone' or name in BACKBONES[architecture['backbone']].reads


def _values_of(architecture: Mapping[str, Any], names: Iterable[str]) -> str:
    """`names` with their values; the backbone in place of settings that it doesn't read."""
    known = (
        name if name in HEAD_FIELDS or _is_read(name, architecture) else 'backbone'
        for name in names
    )
    return ', '.join(f'{name} {architecture.get(name, "-")}' for name in dict.fromkeys(known))


def _same(name: str, value: Any, architecture: Mapping[str, Any]) -> bool:
    found = architecture[name]
    filters = widths(architecture['width_multiplier'])
    if name == 'width_multiplier':
        return same_width(value, found)
    if name == 'sk_ratio' and value and found:
        return sk_widths(filters, value) == sk_widths(filters, found)
    if name == 'se_ratio' and value and found:
        return se_widths(filters, value) == se_widths(filters, found)
    return value == found


def _head_contradictions(architecture: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    news = [name for name in asked if asked[name] != architecture.get(name)]
    wanted = {**architecture, **asked}
    if 'num_proj_layers' in news and 'proj_head_mode' not in asked:
        wanted['proj_head_mode'] = 'nonlinear'  # the only kind with a number of layers
    # Without its last layer, the width is unknown, and the number of layers is a lower bound.
    whole = 'proj_out_dim' in architecture
    depth, found = _head_depth(wanted), _head_depth(architecture)
    fits = depth == found if whole else depth >= found
    differing = [] if fits else [name for name in HEAD_FIELDS[:2] if name in news]
    widths = [name for name in HEAD_FIELDS[2:] if name in architecture and name in news]
    return differing + (widths if whole else [])


def _head_depth(fields: Mapping[str, Any]) -> int:
    # A nonlinear head that was asked for without a number of layers has the default number.
    layers = fields.get('num_proj_layers', ModelConfig.num_proj_layers)
    return {'none': 0, 'linear': 1, 'nonlinear': layers}[fields['proj_head_mode']]


def _check_record(path: str, record: Record, inferred: Mapping[str, Any]) -> None:
    differing = contradictions(inferred, record.architecture, head=False)
    if differing:
        recorded = ', '.join(f'{name} {record.architecture[name]}' for name in differing)
        found = ', '.join(f'{name} {inferred[name]}' for name in differing)
        raise UserError(
            f'--checkpoint={path} should be of {recorded}, as {record.file} says; found '
            f'{found}. Put it beside its own record, or remove the record.'
        )


def _check_stem(weights: Weights, image_size: int) -> None:
    if weights.small_images not in (None, image_size <= SMALL_IMAGE):
        raise UserError(_other_stem(weights, f'found --image_size={image_size}'))


def _other_stem(weights: Weights, found: str) -> str:
    return (
        f'--checkpoint={weights.path} has the input stem for images {_stem(weights.small_images)}; '
        f'{found}. Choose an --image_size to match, such as {weights.image_size}, or another '
        '--checkpoint.'
    )


def _stem(small: bool) -> str:
    return f'of {SMALL_IMAGE} pixels or less' if small else f'above {SMALL_IMAGE} pixels'


def _check_selector(weights: Weights, selector: int) -> None:
    """Raises UserError if the file lacks the selected layer; without a head, -1 is the encoder."""
    no_head = weights.recorded and not weights.head_layers
    whole = weights.head_layers > 0 and head_is_whole(weights.contents)
    if selector > weights.head_layers or (selector < 0 and not (whole or no_head)):
        layers = weights.head_layers
        raise UserError(
            f'--ft_proj_selector={selector} needs '
            f'{f"{selector} layers" if selector > 0 else "the last layer"} of the projection head; '
            f'found {layers or "none"} in --checkpoint={weights.path}. Choose a selector from 0 to '
            f'{layers}, or another --checkpoint.'
        )


def _class_names(
    file: CheckpointFile, record: Record | None, count: int | None
) -> tuple[str, ...] | None:
    """From the checkpoint itself, else from the record beside it."""
    if RECORD_KEY in file.shapes:
        names = json.loads(file.value(RECORD_KEY)).get('class_names')
    else:
        names = record and record.class_names
    return tuple(names) if names and len(names) == count else None


def _step(file: CheckpointFile, record: Record | None) -> int:
    for key in COUNTERS:
        if file.shapes.get(key) == ():
            return int(file.value(key))
    if record and record.step is not None:
        return record.step
    number = re.search(r'-(\d+)$', file.prefix)
    return int(number[1]) if number else 0
