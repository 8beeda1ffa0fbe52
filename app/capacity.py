"""Checks that a run fits into the memory of its devices, before anything is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from app.config.schema import Config, to_values, with_values
from common.errors import UserError
from tf2.config import LearningConfig, ModelConfig
from tf2.device_memory import gpu_memory, has_accelerators, host_memory
from tf2.memory_estimate import Network, Run, is_known

# The estimate depends on what a compiler does to the graph, so a run is refused only if it is a
# fifth too large. Weights, gradients and the optimizer's variables are counted exactly.
TOLERANCE = 1.2
ADVISED = 0.8  # share of the memory that a run with the advised value may take


@dataclasses.dataclass(frozen=True)
class Devices:
    """The memory that a run has.

    Attributes:
        kind: for the message: 'CPU' or 'GPU'.
        memory: bytes of one device.
        replicas: number of replicas of the whole run.
        sharing: number of replicas that share this memory.
    """

    kind: str
    memory: int
    replicas: int = 1
    sharing: int = 1


def check_on_host(config: Config) -> None:
    """Checks a run that is certain to use this host's CPU; needs no TensorFlow.

    Raises:
        UserError: if it doesn't fit.
    """
    devices = config.devices
    elsewhere = devices.use_tpu or devices.tpu_name or devices.master
    known = config.run.does.trains and not config.learning.checkpoint
    if not known or elsewhere or devices.strategy in ('tpu', 'multi_worker') or has_accelerators():
        return
    replicas = max(1, devices.logical_devices)
    check_fits(config, Devices('CPU', host_memory(), replicas, replicas))


def devices_of(replicas: int, of_this_process: int, *, on_gpu: bool) -> Devices | None:
    """The devices of a strategy; None if their memory is unknown.

    Args:
        replicas: number of replicas of the whole run.
        of_this_process: number of those that run in this process.
        on_gpu: whether they run on GPUs; else they share the host's memory.
    """
    if not on_gpu:
        return Devices('CPU', host_memory(), replicas, of_this_process)
    memory = gpu_memory()
    return Devices('GPU', memory, replicas) if memory else None


def check_fits(
    config: Config,
    devices: Devices,
    recorded: Mapping[str, Any] | None = None,
    train_examples: int = 0,
) -> None:
    """Raises UserError if a run clearly doesn't fit into the memory of `devices`.

    Backbones without a memory estimate are not checked.

    Args:
        config: all settings; the architecture is that of the run.
        devices: the devices of the run.
        recorded: settings of the teacher's run, if known.
        train_examples: their number; 0 if it isn't known yet.
    """
    if not is_known(config.model):
        return

    def parts(config: Config) -> dict[str, int]:
        """The parts of training or of evaluation, whichever need more."""
        run = _run_of(config, devices, recorded, train_examples)
        kinds = [run.training()] if run.train_batch_size else []
        kinds += [run.evaluation()] if run.eval_batch_size else []
        return max(kinds, key=_total)

    run, found = _run_of(config, devices, recorded, train_examples), parts(config)
    if run.fixed() <= devices.memory and _total(found) <= TOLERANCE * devices.memory:
        return
    fits = ADVISED * devices.memory
    advice = _advice(config, devices.replicas, lambda changed: _total(parts(changed)) <= fits)
    listed = ', '.join(f'{what} {size_of(size)}' for what, size in _largest(found))
    of_each = f' by {devices.sharing} replicas' if devices.sharing > 1 else ''
    raise UserError(
        f'This run must fit into memory, {size_of(devices.memory)} of this {devices.kind}; it '
        f'needs about {size_of(_total(found))}{of_each}: {listed}. {advice}'
    )


def _run_of(
    config: Config, devices: Devices, recorded: Mapping[str, Any] | None, train_examples: int
) -> Run:
    train, does = config.train, config.run.does
    # Classes and precision may be unknown yet: those are assumed that need the least.
    precision = 'bfloat16' if train.mixed_precision == 'auto' else train.mixed_precision
    synchronized = config.model.global_bn and devices.replicas > 1
    return Run(
        Network(
            config.model,
            config.data.image_size,
            0,
            precision,
            synchronized,
            config.learning.method,
        ),
        config.learning,
        config.optimizer.optimizer,
        train.train_batch_size if does.trains else 0,
        config.evaluation.eval_batch_size if does.measures or not does.trains else 0,
        devices.replicas,
        devices.sharing,
        _network_of(recorded) if recorded else None,
        train_examples,
    )


def _network_of(recorded: Mapping[str, Any]) -> Network | None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    config = ModelConfig(**{name: recorded[name] for name in fields & recorded.keys()})
    method = recorded.get('method', LearningConfig.method)
    return Network(config, recorded['image_size'], 0, method=method) if is_known(config) else None


def _total(parts: Mapping[str, int]) -> int:
    return sum(parts.values())


def _largest(parts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The parts that are at least 1% of the total, largest first."""
    large = [part for part in parts.items() if 100 * part[1] >= _total(parts)]
    return sorted(large, key=lambda part: -part[1])


# Settings that may be reduced, those that change the result least first: setting -> the smallest
# sensible value, and a function of settings and replicas whose multiples are allowed.
_SMALLER: dict[str, tuple[int, Callable[[Config, int], int]]] = {
    'eval_batch_size': (1, lambda config, replicas: replicas),
    'train_batch_size': (2, lambda config, replicas: replicas),
    'memory_size': (0, lambda config, replicas: config.train.train_batch_size),
    'queue_size': (0, lambda config, replicas: config.train.train_batch_size),
    'local_crops': (0, lambda config, replicas: 1),
    'logical_devices': (1, lambda config, replicas: 1),
    'num_proj_layers': (1, lambda config, replicas: 1),
    'proj_out_dim': (1, lambda config, replicas: 1),
    'image_size': (1, lambda config, replicas: 1),
}


def _advice(config: Config, replicas: int, fits: Callable[[Config], bool]) -> str:
    """A flag and a value with which the run fits, as a sentence."""
    for name, value in _smaller_values(config, replicas, fits):
        return f'With all else as it is, the largest --{name} that fits is {value}.'
    has_width = 'width_multiplier' in config.model.backbone_entry.reads
    width = _largest_width(config, fits) if has_width else None
    if width:
        return f'With all else as it is, the largest --width_multiplier that fits is {width:g}.'
    smaller = f'{"--width_multiplier, " if has_width else ""}--train_batch_size and --image_size'
    return f'No single flag makes it fit: try a smaller {smaller}, or more devices.'


def _smaller_values(
    config: Config, replicas: int, fits: Callable[[Config], bool]
) -> Iterator[tuple[str, int]]:
    for name, (least, multiple) in _SMALLER.items():
        step = multiple(config, replicas)
        if name == 'num_proj_layers':  # the classifier may read the output of one of them
            least = max(least, config.model.ft_proj_selector)
        least = max(least, 1) if name in config.learning.entry.needs else least
        low, high = -(-least // step), to_values(config)[name] // step
        if low >= high or not fits(with_values(config, **{name: low * step})):
            continue
        while high - low > 1:  # `low` fits, `high` doesn't
            middle = (low + high) // 2
            found = fits(with_values(config, **{name: middle * step}))
            low, high = (middle, high) if found else (low, middle)
        yield name, low * step


def _largest_width(config: Config, fits: Callable[[Config], bool]) -> float | None:
    """The largest power of two that fits and is smaller than the width asked for; None if none."""
    asked = config.model.width_multiplier
    widths = (2.0**power for power in range(13, -6, -1))
    smaller = (width for width in widths if width < asked)
    fitting = (w for w in smaller if fits(with_values(config, width_multiplier=w)))
    return next(fitting, None)


def size_of(count: int) -> str:
    """1536 as '1.5 KB'."""
    units = ('B', 'KB', 'MB', 'GB', 'TB', 'PB', 'EB')
    power = min(len(units) - 1, max(0, count.bit_length() - 1) // 10)
    return f'{count / 2 ** (10 * power):.{1 if power else 0}f} {units[power]}'
