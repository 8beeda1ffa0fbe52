"""Checks the import rules of docs/architecture.md in the source."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ('common', 'app', 'data', 'tf2', 'hub_export', 'benchmarks')

# A module may import from these parts of the project; the longest matching prefix decides.
ALLOWED = {
    'simclr': ('run', 'app', 'common'),
    'run': ('app', 'tf2.methods', 'tf2.evaluators.EVALUATORS', 'common'),
    'app': ('app', 'hub_export', 'data', 'tf2', 'common'),
    'app.config': (
        'app.modes',
        'tf2.methods',
        'tf2.models',
        'app.config',
        'app.run_folder',
        'data.config',
        'tf2.config',
        'tf2.files',
        'common',
    ),
    'app.run_folder': (
        'app.config.schema',
        'tf2.evaluators.results',
        'tf2.files',
        'tf2.records',
        'common',
    ),
    'app.modes': (),
    'app.isolation': (),
    'app.presets': (),
    'app.lock': ('common',),
    'app.output': (),
    'app.scratch': ('common',),
    'app.capacity': (
        'app.config',
        'app.run_folder',
        'tf2.config',
        'tf2.memory_estimate',
        'tf2.device_memory',
        'common',
    ),
    'app.preflight': (
        'app.config',
        'app.run_folder',
        'data.config',
        'data.names',
        'tf2.config',
        'common',
    ),
    'common': ('common',),
    'data': ('data', 'common'),
    'hub_export': ('hub_export', 'tf2.models', 'tf2.config', 'tf2.files', 'tf2.records', 'common'),
    'tf2': ('tf2', 'common'),
    'tf2.config': (
        'tf2.evaluators.DEFAULT',
        'tf2.evaluators.names_in',
        'tf2.methods',
        'tf2.models',
        'tf2.models.BACKBONES',
        'tf2.models.BackboneEntry',
        'tf2.models.resnet_sizes',
        'tf2.optimizers.OPTIMIZERS',
        'common',
    ),
    'tf2.records': ('tf2.config', 'common'),
    'tf2.out_of_memory': ('tf2.config',),
    'tf2.files': ('tf2.out_of_memory', 'common'),
    'tf2.distribution': ('tf2.config', 'tf2.files', 'tf2.out_of_memory', 'common'),
    'tf2.collectives': (),
    'tf2.collapse': ('tf2.collectives',),
    'tf2.device_memory': (),
    'tf2.memory_estimate': (
        'tf2.config',
        'tf2.methods.count_head_layers',
        'tf2.models.resnet_sizes',
        'tf2.optimizers.OPTIMIZERS',
        'common',
    ),
    'tf2.models': ('tf2.models', 'tf2.collectives', 'tf2.config', 'common'),
    'tf2.weights': (
        'tf2.weights',
        'tf2.methods.make_head',
        'tf2.models',
        'tf2.config',
        'tf2.files',
        'tf2.records',
        'common',
    ),
    'tf2.methods': ('tf2.methods', 'tf2.models', 'tf2.collectives', 'tf2.config', 'common'),
    'tf2.optimizers': ('tf2.optimizers', 'tf2.models.kernels', 'tf2.config', 'common'),
    'tf2.evaluators': ('tf2.evaluators', 'tf2.features', 'tf2.files', 'tf2.records', 'common'),
    'benchmarks': ('benchmarks', 'run', 'app', 'hub_export', 'data', 'tf2', 'common'),
}


def modules() -> list[pathlib.Path]:
    files = [*ROOT.glob('*.py'), *(file for room in ROOMS for file in (ROOT / room).rglob('*.py'))]
    return [file.relative_to(ROOT) for file in files]


def name_of(file: pathlib.Path) -> str:
    parts = file.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(file: pathlib.Path) -> set[str]:
    """Full names that a module imports, at its top or inside functions."""
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
def test_only_the_command_line_knows_flags(file: pathlib.Path) -> None:
    # The published program, which is timed, takes its settings from flags.
    if file.name not in ('run.py', 'published_step.py'):
        assert not any(within(name, 'absl.flags') for name in imports(file))


def test_usage_errors_need_no_tensorflow() -> None:
    """What is imported before flags are checked must not import TensorFlow."""
    light = [
        'run',
        'simclr',
        *(
            f'app/{name}'
            for name in ('modes', 'output', 'scratch', 'preflight', 'capacity', 'presets')
        ),
        *(f'app/{name}' for name in ('isolation', 'run_folder')),
        *(f'app/config/{name}' for name in ('schema', 'resolution', 'compatibility')),
        *(str(file.with_suffix('')) for file in modules() if file.parts[0] == 'common'),
        *(f'data/{name}' for name in ('config', 'names')),
        *(f'tf2/{name}' for name in ('config', 'records', 'memory_estimate', 'device_memory')),
        *(f'tf2/models/{name}' for name in ('__init__', 'resnet_sizes')),
        'tf2/evaluators/__init__',
    ]
    for file in (pathlib.Path(f'{name}.py') for name in light):
        tree = ast.parse((ROOT / file).read_text())
        top = {
            alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        }
        assert 'tensorflow' not in top, file
