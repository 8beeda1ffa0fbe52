"""Memory of the host, limits of containers of both versions, and memory of GPUs."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from tf2 import device_memory

MIB = 2**20


@pytest.mark.parametrize(
    ('groups', 'files', 'limit'),
    [
        ('0::/', {'memory.max': 512 * MIB}, 512),
        ('0::/', {'memory.max': 'max'}, None),
        ('0::/a/b', {'a/memory.max': 256 * MIB, 'a/b/memory.max': 'max'}, 256),
        ('0::/a/b', {'a/memory.max': 256 * MIB, 'a/b/memory.max': 128 * MIB}, 128),
        ('3:cpu:/x\n2:memory:/a', {'memory/a/memory.limit_in_bytes': 64 * MIB}, 64),
        ('2:memory:/gone', {'memory/memory.limit_in_bytes': 32 * MIB}, 32),
        (None, {'memory.max': MIB}, None),
    ],
)
def test_a_host_has_the_memory_of_its_tightest_limit(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str | None,
    files: dict[str, object],
    limit: int | None,
) -> None:
    own = tmp_path / 'own'
    if groups is not None:
        own.write_text(f'{groups}\n')
    for name, content in files.items():
        path = tmp_path / 'groups' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{content}\n')
    monkeypatch.setattr(device_memory, 'OWN_CGROUPS', own)
    monkeypatch.setattr(device_memory, 'CGROUPS', tmp_path / 'groups')
    found = device_memory.host_memory()
    assert found == limit * MIB if limit else found > 512 * MIB


@pytest.mark.parametrize(
    ('said', 'expected'),
    [('81920\n', 81920 * MIB), ('8192\n16384\n', 16384 * MIB), ('[N/A]', None)],
)
def test_the_memory_of_gpus_is_read(
    monkeypatch: pytest.MonkeyPatch, said: str, expected: int | None
) -> None:
    answer = subprocess.CompletedProcess([], 0, said, '')
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: answer)
    assert device_memory.gpu_memory() == expected


@pytest.mark.parametrize('error', [FileNotFoundError('no tool'), subprocess.TimeoutExpired('a', 1)])
def test_unknown_gpus_have_unknown_memory(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, 'run', fail)
    assert device_memory.gpu_memory() is None
