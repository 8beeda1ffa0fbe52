"""The import rules of docs/architecture.md, read off the source."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ('data', 'tf2', 'hub_export', 'report', 'benchmarks')

# A module may import from these parts of the project; the longest matching prefix decides.
ALLOWED = {
    'stages': (),
    'settings': ('stages',),
    'interruption': (),
    'lock': ('settings',),
    'output': (),
    'scratch': ('settings',),
    'data': ('settings', 'connections', 'data'),
    'tf2': ('settings', 'interruption', 'tf2'),
    'tf2.config': (
        'settings',
        'stages',
    ),
    'tf2.records': ('settings', 'tf2.config'),
    'tf2.out_of_memory': ('tf2.config',),
    'tf2.files': ('settings', 'tf2.out_of_memory'),
    'tf2.distribution': ('settings', 'connections', 'tf2.config', 'tf2.files', 'tf2.out_of_memory'),
    'tf2.models': ('tf2.models', 'tf2.config'),
    'tf2.weights': (
        'settings',
        'tf2.weights',
        'tf2.models',
        'tf2.config',
        'tf2.files',
        'tf2.records',
    ),
    'tf2.methods': (
        'settings',
        'tf2.methods',
        'tf2.models',
        'tf2.distribution',
        'tf2.config',
    ),
    'tf2.optimizers': ('settings', 'tf2.optimizers', 'tf2.config'),
    'tf2.evaluators': ('settings', 'tf2.evaluators', 'tf2.files', 'tf2.records'),
    'hub_export': (
        'settings',
        'hub_export',
        'tf2.models',
        'tf2.config',
        'tf2.files',
        'tf2.records',
    ),
    'connections': ('settings',),
    'presets': (),
    'benchmarks': ('settings', 'run', 'hub_export', 'data', 'tf2', 'benchmarks'),
    'configuration': (
        'settings',
        'stages',
        'data.config',
        'tf2.config',
        'tf2.files',
        'tf2.records',
    ),
    'capacity': (
        'settings',
        'configuration',
        'tf2.config',
        'tf2.memory_estimate',
        'tf2.device_memory',
    ),
    'tf2.memory_estimate': ('tf2.config',),
    'tf2.device_memory': (),
    'places': ('settings', 'configuration', 'data.names', 'tf2.config'),
    'pipeline': (
        'settings',
        'stages',
        'interruption',
        'lock',
        'configuration',
        'data_checks',
        'experiment',
        'presets',
        'report',
        'resuming',
        'train',
        'tf2',
    ),
    'data_checks': ('settings', 'configuration', 'data', 'tf2'),
    'resuming': ('settings', 'configuration', 'tf2'),
    'experiment': (
        'settings',
        'stages',
        'capacity',
        'connections',
        'configuration',
        'data_checks',
        'resuming',
        'data',
        'tf2',
    ),
    'evaluate': ('settings', 'lock', 'configuration', 'experiment', 'data', 'tf2'),
    'train': (
        'settings',
        'interruption',
        'lock',
        'configuration',
        'experiment',
        'evaluate',
        'resuming',
        'data',
        'tf2',
        'hub_export',
    ),
    'report': ('settings', 'stages', 'configuration', 'evaluate', 'train', 'data', 'tf2', 'report'),
    'run': (
        'settings',
        'interruption',
        'output',
        'scratch',
        'configuration',
        'presets',
        'places',
        'capacity',
        'experiment',
        'train',
        'evaluate',
        'pipeline',
    ),
}


def modules() -> list[pathlib.Path]:
    files = [*ROOT.glob('*.py'), *(file for room in ROOMS for file in (ROOT / room).rglob('*.py'))]
    return [file.relative_to(ROOT) for file in files]


def name_of(file: pathlib.Path) -> str:
    parts = file.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(file: pathlib.Path) -> set[str]:
    """Full names a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}: imports name their module in full'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f'{prefix}.')


@pytest.mark.smoke
@pytest.mark.parametrize('file', modules(), ids=str)
def test_imports_run_one_way(file: pathlib.Path) -> None:
    rule = max((rule for rule in ALLOWED if within(name_of(file), rule)), key=len, default=None)
    assert rule, f'{file} has no place in the architecture: add it to ALLOWED'
    ours = {
        name for name in imports(file) if name.split('.')[0] in {r.split('.')[0] for r in ALLOWED}
    }
    wrong = [name for name in ours if not any(within(name, allowed) for allowed in ALLOWED[rule])]
    assert not wrong, f'{file} imports {wrong}, may import {ALLOWED[rule]}'


@pytest.mark.parametrize('file', modules(), ids=str)
def test_flags_are_known_to_the_command_line_alone(file: pathlib.Path) -> None:
    # The published program, which is timed, takes its settings from flags.
    if file.name not in ('run.py', 'published_step.py'):
        assert not any(within(name, 'absl.flags') for name in imports(file))


def test_usage_errors_need_no_tensorflow() -> None:
    """What is imported before flags are checked is light, so that `--help` shows at once."""
    light = [
        pathlib.Path(f'{name}.py')
        for name in (
            'run',
            'interruption',
            'output',
            'scratch',
            'configuration',
            'places',
            'capacity',
            'connections',
            'presets',
            'settings',
        )
    ]
    rooms = [
        pathlib.Path(f'{name}.py')
        for name in (
            'data/config',
            'data/names',
            'tf2/config',
            'tf2/records',
            'tf2/memory_estimate',
            'tf2/device_memory',
        )
    ]
    for file in [*light, *rooms]:
        tree = ast.parse((ROOT / file).read_text())
        top = {
            alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        }
        assert 'tensorflow' not in top, file
