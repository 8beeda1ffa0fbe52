"""The teacher of a distillation: weights of any format, or any SavedModel that returns logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from common.errors import UserError, one_line
from tf2.files import plain_path
from tf2.weights import Weights, open_weights
from tf2.weights.checkpoint_file import URL_SCHEMES, fetched
from tf2.weights.record import MODULE_RECORD

LOGITS = 'logits_sup'
SIGNATURES = ('serving_default', 'default')
PLAIN_OUTPUTS = ('output_0', 'default', 'logits')  # names of a signature's only output


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen classifier.

    Attributes:
        path: as the user gave it.
        num_classes: classes of its logits.
        image_size: pixels of the images it expects; None if it takes any size.
        class_names: names of the classes; None if unknown.
        logits: images [b, h, w, 3] float32 in [0, 1] -> [b, num_classes] float32, in inference
            mode. Can be called in replica context of the strategy in whose scope it was opened.
    """

    path: str
    num_classes: int
    image_size: int | None
    logits: Callable[[tf.Tensor], tf.Tensor] = dataclasses.field(repr=False)
    class_names: tuple[str, ...] | None = None


def open_teacher(path: str, *, precision: str, safe: bool = False) -> Teacher:
    """Loads what `--teacher` names; call it within the strategy's scope.

    Args:
        path: anything `--checkpoint` takes, if it has a classifier; or a SavedModel or a TF-Hub
            handle that maps images to logits or to a dictionary with 'logits_sup'.
        precision: of convolutions and dense layers, for models of this program.
        safe: whether to refuse SavedModels of other programs, which run as code.

    Raises:
        UserError: if there is nothing, or nothing that returns logits.
    """
    try:
        place = fetched(path) if path.startswith(URL_SCHEMES) else path.rstrip('/')
        weights = None if _is_foreign_module(place) else open_weights(place)
    except UserError as error:
        raise UserError(str(error).replace('--checkpoint=', '--teacher=')) from error
    if weights is None:
        _warn_of_code(path, safe)
        return _from_module(path, place)
    return _from_weights(path, weights, precision)


def _warn_of_code(path: str, safe: bool) -> None:
    what = f"--teacher={path} is another program's SavedModel, which runs as code with your rights"
    if safe:
        raise UserError(
            f'{what}; --safe_weights refuses that. Choose a --model_dir, a checkpoint or a module '
            'of this program, or leave --safe_weights out.'
        )
    print(f'{what}.', flush=True)


def _is_foreign_module(place: str) -> bool:
    """Whether `place` is a SavedModel of another program."""
    exists = tf.io.gfile.exists
    return exists(f'{place}/saved_model.pb') and not exists(f'{place}/{MODULE_RECORD}')


def _from_weights(path: str, weights: Weights, precision: str) -> Teacher:
    if weights.num_classes is None:
        raise UserError(
            f'--teacher={path} must have a classifier; found none in this {weights.format}. '
            'Fine-tune it first, or choose another one.'
        )
    if weights.selector is None and weights.head_layers:
        raise UserError(
            f'--teacher={path} must tell which layer its classifier reads; this {weights.format} '
            'does not. Make a module of it, with --mode=export and --ft_proj_selector, and give '
            'that.'
        )
    selector = weights.selector or 0
    model = weights.build(precision=precision)
    report = weights.load_into(model, head_layers=selector)
    if any(reason.startswith('classifier') for reason in (*report.left_out, *report.missing)):
        raise UserError(
            f'--teacher={path} must have a classifier that reads layer {selector} of its '
            f'projection head; found: {report.line()}. Choose another one.'
        )
    return Teacher(
        path,
        weights.num_classes,
        weights.image_size,
        lambda images: model(images, training=False)[LOGITS],
        weights.class_names,
    )


def _from_module(path: str, place: str) -> Teacher:
    import tensorflow_hub as hub  # takes a second, and only other programs' modules need it

    try:
        with plain_path(place) as plain:
            module = hub.load(plain)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f'--teacher={path} should be a SavedModel that TensorFlow can load; found: '
            f'{one_line(error)}'
        ) from error
    found = []
    for function in _inference_functions(module):
        spec, outputs = _image_spec(function), function.structured_outputs
        logits = _logits_in(outputs)
        if logits is not None:
            call = functools.partial(_run, function, spec)
            return Teacher(path, logits.shape[1], spec.shape[1], call)
        found = sorted(outputs) if isinstance(outputs, Mapping) else ['another output']
    raise UserError(
        f'--teacher={path} should map images to logits, or to a dictionary with {LOGITS!r}; found '
        f'{", ".join(found) or "nothing that takes images [b, h, w, 3]"}. Give a fine-tuned model.'
    )


def _inference_functions(module: Any) -> list[Any]:
    """The functions of a loaded module that take images, in inference mode, best first.

    Concrete functions, because calls of other functions by replicas in threads can deadlock.
    """
    called = getattr(getattr(module, '__call__', None), 'concrete_functions', ())  # noqa: B004
    signatures = getattr(module, 'signatures', {})
    functions = [*called, *(signatures[name] for name in SIGNATURES if name in signatures)]
    return [f for f in functions if _image_spec(f) is not None and not _is_for_training(f)]


def _image_spec(function: Any) -> tf.TensorSpec | None:
    """The input of `function`, if it is a batch of square RGB images and nothing else."""
    leaves = tf.nest.flatten(function.structured_input_signature)
    specs = [leaf for leaf in leaves if isinstance(leaf, tf.TensorSpec)]
    if len(specs) != 1 or specs[0].shape.rank != 4 or specs[0].dtype != tf.float32:
        return None
    batch, height, width, channels = specs[0].shape
    fits = batch is None and height == width and channels in (3, None)
    return specs[0] if fits else None


def _is_for_training(function: Any) -> bool:
    """Whether it was traced with training=True or trainable=True."""
    leaves = tf.nest.flatten(function.structured_input_signature)
    return any(leaf is True for leaf in leaves)


def _run(function: Any, spec: tf.TensorSpec, images: tf.Tensor) -> tf.Tensor:
    # Signatures take keyword arguments.
    by_name = bool(function.structured_input_signature[1])
    outputs = function(**{spec.name: images}) if by_name else function(images)
    return tf.cast(_logits_in(outputs), tf.float32)


def _logits_in(outputs: Any) -> Any:
    """The logits, or their spec, in the outputs of a function; None if there are none."""
    if isinstance(outputs, Mapping) and LOGITS not in outputs and len(outputs) == 1:
        # Signatures wrap a single output in a dictionary, under a name of their own.
        name, *_ = outputs
        outputs = outputs[name] if name in PLAIN_OUTPUTS else None
    logits = outputs.get(LOGITS) if isinstance(outputs, Mapping) else outputs
    is_matrix = isinstance(logits, (tf.Tensor, tf.TensorSpec)) and logits.shape.rank == 2
    return logits if is_matrix and logits.shape[1] else None
