"""Memory of the host and its GPUs, as the system reports it; imports no TensorFlow."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Iterator

CGROUPS = pathlib.Path('/sys/fs/cgroup')
OWN_CGROUPS = pathlib.Path('/proc/self/cgroup')
LIMIT_FILES = ('memory.max', 'memory.limit_in_bytes')  # of cgroups version 2 and 1
ACCELERATORS = ('/dev/nvidiactl', '/dev/kfd', '/dev/accel0', '/dev/vfio')
_NVIDIA = ('nvidia-smi', '--query-gpu=memory.total', '--format=csv,noheader,nounits')
_SECONDS = 10.0


def host_memory() -> int:
    """Bytes that this process may use: the host's memory, or a container's lower limit."""
    installed = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return min([installed, *_limits()])


def _limits() -> Iterator[int]:
    """Memory limits of the control groups that this process is in."""
    for folder in _own_groups():
        for name in LIMIT_FILES:
            try:
                text = (folder / name).read_text().strip()
            except OSError:  # not all groups and versions have it
                continue
            if text.isdigit():
                yield int(text)


def _own_groups() -> Iterator[pathlib.Path]:
    """Folders of this process's control groups and their parents."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if controllers in ('', 'memory'):
            root = CGROUPS / controllers
            own = root / path.strip('/')
            yield from (own, *(parent for parent in own.parents if parent.is_relative_to(root)))


def gpu_memory() -> int | None:
    """Memory of the largest GPU in bytes; None if unknown."""
    try:
        done = subprocess.run(_NVIDIA, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # GPUs of other vendors, or no nvidia-smi
        return None
    sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
    return max(sizes, default=0) * 2**20 or None


def has_accelerators() -> bool:
    """Whether there may be a GPU or TPU."""
    return any(map(os.path.exists, ACCELERATORS))
