"""Resolves `--mixed_precision=auto`, and what depends on the precision."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from tf2 import distribution

CPU_INFO = pathlib.Path('/proc/cpuinfo')
CPU_FLAGS = frozenset({'avx512_bf16', 'amx_bf16'})
GPU_CAPABILITY = (8, 0)  # of Ampere, the first with bfloat16


def choose(setting: str, strategy: tf.distribute.Strategy) -> str:
    """The precision to compute in: 'float32', 'bfloat16' or 'float16'.

    Args:
        setting: `mixed_precision`; 'auto' means bfloat16 if the devices of all workers report
            instructions for it, else float32.
        strategy: of the run.
    """
    if setting != 'auto':
        return setting
    gpus = tf.config.list_physical_devices('GPU')
    computes = all(map(_gpu_computes_bfloat16, gpus)) if gpus else _cpu_computes_bfloat16()
    computes = distribution.is_tpu(strategy) or distribution.all_agree(strategy, computes)
    return 'bfloat16' if computes else 'float32'


def _gpu_computes_bfloat16(gpu: tf.config.PhysicalDevice) -> bool:
    details = tf.config.experimental.get_device_details(gpu)
    return details.get('compute_capability', (0, 0)) >= GPU_CAPABILITY


def _cpu_computes_bfloat16() -> bool:
    """Whether Linux lists instructions for it; False on other systems."""
    if not CPU_INFO.exists():
        return False
    lines = (line for line in CPU_INFO.read_text().splitlines() if line.startswith('flags'))
    return bool(CPU_FLAGS & set(next(lines, '').split()))


def uses_filter_products(precision: str, strategy: tf.distribute.Strategy) -> bool:
    """The value of `filter_products` for `SimCLRModel`: True in bfloat16 on CPUs."""
    return precision == 'bfloat16' and not distribution.has_accelerators(strategy)
