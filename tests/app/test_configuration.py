"""Flags, presets and the settings file, against the published program's command line."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import pytest
import tensorflow as tf

import run
from app.config.compatibility import architecture, check_same_architecture
from app.config.resolution import from_values, resolve, stages_reading
from app.config.schema import SECTIONS, Config, all_options, to_values
from app.modes import MODES
from app.presets import PRESETS
from app.run_folder import read_flags, write_flags
from common.errors import UserError
from common.settings import option_type
from tests.support import GOLDEN

PUBLISHED = json.loads((GOLDEN / 'flags.json').read_text())
# Unset, these are decided when the program runs.
DECIDED_LATER = {'dataset', 'use_tpu', 'model_dir'}


def resolved(*arguments: str) -> Config:
    return resolve(run.parse(['run.py', *arguments]), PRESETS)


@pytest.mark.smoke
@pytest.mark.parametrize('name', PUBLISHED)
def test_every_published_flag_exists_with_its_type_and_default(name: str) -> None:
    published, flag = PUBLISHED[name], run.define_flags()[name]
    assert flag.flag_type() == published['type']
    expected = None if name in DECIDED_LATER else published['default']
    assert flag.default == expected
    assert type(flag.default) is type(expected)


@pytest.mark.parametrize('name', [name for name, flag in PUBLISHED.items() if flag['values']])
def test_published_choices_are_accepted_in_their_order(name: str) -> None:
    taken = run.define_flags()[name].parser.enum_values
    published = PUBLISHED[name]['values']
    assert [value for value in taken if value in published] == published


def test_no_two_settings_share_a_name() -> None:
    names = [field.name for _, _, field in all_options()]
    assert len(names) == len(set(names))


def test_every_flag_has_help() -> None:
    text = run.help_text()
    for _, _, field in all_options():
        assert field.metadata['help'].endswith('.')
        assert f'\n  --{field.name}' in text
    assert all(f'--preset={name}' in text for name in PRESETS)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(('given', 'value'), [('2', 2), ('0.25', 0.25), ('0x2', 2), ('1.5e0', 1.5)])
def test_the_width_multiplier_also_takes_fractions(given: str, value: float) -> None:
    assert resolved(f'--width_multiplier={given}').model.width_multiplier == value


@pytest.mark.parametrize(
    ('arguments', 'use_blur'),
    [(['--use_blur'], True), (['--nouse_blur'], False), (['--use_blur=false'], False)],
)
def test_boolean_flags_accept_every_spelling(arguments: list[str], use_blur: bool) -> None:
    assert resolved(*arguments).data.use_blur is use_blur


# --- presets


@pytest.mark.parametrize('name', PRESETS)
def test_flags_take_precedence_over_the_preset(name: str) -> None:
    distills = PRESETS[name].flags.get('train_mode') == 'distill'
    flags = ['--train_epochs=3', '--seed=4', *(['--teacher=t'] if distills else [])]
    values = to_values(resolved(f'--preset={name}', *flags))
    expected = {**PRESETS[name].flags, 'preset': name, 'train_epochs': 3, 'seed': 4}
    assert {key: values[key] for key in expected} == expected


def test_a_given_default_takes_precedence_over_the_preset() -> None:
    assert PRESETS['demo'].flags['temperature'] != 0.1
    assert resolved('--preset=demo', '--temperature=0.1').learning.temperature == 0.1


def test_a_given_choice_of_labels_replaces_the_presets() -> None:
    data = resolved('--preset=demo_finetune', '--label_fraction=0.1').data
    assert (data.label_fraction, data.labels_per_class) == (0.1, 0)


def test_a_checkpoints_architecture_takes_precedence_over_the_preset() -> None:
    # Selective kernels need a depth of 50, which the checkpoint may have, but not the preset.
    flags = ('--preset=demo_finetune', '--sk_ratio=0.0625')
    assert resolved(*flags, '--checkpoint=x').model.sk_ratio == 0.0625
    with pytest.raises(UserError, match='50 or more; found depth 18'):
        resolved(*flags)


@pytest.mark.parametrize(
    ('stage', 'preset'),
    [
        ((), 'demo'),
        (('--train_mode=finetune',), 'demo_finetune'),
        (('--train_mode=distill', '--teacher=RUN'), 'demo_self_distill'),
    ],
)
def test_the_default_is_the_demo_preset_of_the_stage(stage: tuple[str, ...], preset: str) -> None:
    values = to_values(resolved(*stage))
    assert values['preset'] == preset and values['dataset'] == 'bundled'
    assert values == to_values(resolved(f'--preset={preset}', *stage))


@pytest.mark.parametrize(
    ('stage', 'preset'),
    [
        ((), 'own_images'),
        (('--train_mode=finetune',), 'own_images_finetune'),
        (('--train_mode=distill', '--teacher=RUN'), 'own_images_self_distill'),
    ],
)
def test_data_dir_alone_means_own_images(stage: tuple[str, ...], preset: str) -> None:
    values = to_values(resolved('--data_dir=here', *stage))
    assert (values['dataset'], values['preset']) == ('image_folder', preset)
    # With a preset or a data set of TFDS, the folder has another meaning.
    assert resolved('--data_dir=here', '--preset=cifar10').data.dataset == 'cifar10'
    assert resolved('--data_dir=here', '--dataset=cifar10').run.preset is None


def test_a_data_set_without_preset_keeps_the_published_defaults() -> None:
    values = to_values(resolved('--dataset=cifar10'))
    assert values.pop('dataset') == 'cifar10'
    for name in PUBLISHED.keys() & values.keys() - DECIDED_LATER:
        assert values[name] == PUBLISHED[name]['default'], name


# --- the settings file


def test_the_settings_file_restores_the_configuration(tmp_path: pathlib.Path) -> None:
    config = resolved('--preset=imagenet_v1', '--width_multiplier=0.5', '--nouse_blur')
    write_flags(str(tmp_path), config, {'num_classes': 10})
    recorded = read_flags(str(tmp_path))
    assert recorded.pop('num_classes') == 10
    assert from_values(recorded) == config
    assert [path.name for path in tmp_path.iterdir()] == ['flags.json']


def test_a_folder_without_settings_file_is_new(tmp_path: pathlib.Path) -> None:
    assert read_flags(str(tmp_path)) is None


def test_an_error_names_a_damaged_settings_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'flags.json').write_text('{"mode": ')
    with pytest.raises(UserError, match=r'flags\.json should be JSON'):
        read_flags(str(tmp_path))


@pytest.fixture
def folder_with_checkpoint(tmp_path: pathlib.Path) -> str:
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(), str(tmp_path), 1, None, 'ckpt')
    manager.save(checkpoint_number=1)
    return str(tmp_path)


@pytest.mark.parametrize(
    ('arguments', 'theirs', 'ours'),
    [
        (['--resnet_depth=50'], 'resnet_depth 18', 'resnet_depth 50'),
        (['--image_size=64'], 'small stem True', 'small stem False'),
        (['--optimizer=adam'], 'optimizer lars', 'optimizer adam'),
        (['--num_proj_layers=2'], 'num_proj_layers 3', 'num_proj_layers 2'),
        (['--memory_size=1024'], 'memory_size 0', 'memory_size 1024'),
        (
            ['--mixed_precision=float16'],
            'mixed_precision bfloat16 or float32',
            'mixed_precision float16',
        ),
    ],
)
def test_another_architecture_is_refused_with_both_values(
    folder_with_checkpoint: str, arguments: list[str], theirs: str, ours: str
) -> None:
    write_flags(folder_with_checkpoint, resolved(), {'num_classes': 10})
    with pytest.raises(UserError, match=f'{theirs}; this run asks for {ours}'):
        check_same_architecture(folder_with_checkpoint, resolved(*arguments), 10)


def test_settings_that_change_no_variable_may_change(folder_with_checkpoint: str) -> None:
    write_flags(folder_with_checkpoint, resolved(), {'num_classes': 10})
    config = resolved('--learning_rate=9', '--noglobal_bn', '--image_size=20', '--temperature=1')
    check_same_architecture(folder_with_checkpoint, config, 10)


def test_a_folder_without_a_memory_setting_resumes(folder_with_checkpoint: str) -> None:
    path = pathlib.Path(folder_with_checkpoint) / 'flags.json'
    write_flags(folder_with_checkpoint, resolved(), {'num_classes': 10})
    recorded = json.loads(path.read_text())
    for name in ('memory_size', 'momentum_encoder_decay', 'export_momentum_encoder'):
        del recorded[name]
    path.write_text(json.dumps(recorded))
    check_same_architecture(folder_with_checkpoint, resolved(), 10)
    config = resolved('--memory_size=256', '--train_batch_size=128')
    with pytest.raises(UserError, match='memory_size 0; this run asks for memory_size 256'):
        check_same_architecture(folder_with_checkpoint, config, 10)


def test_only_pretraining_compares_the_memory_size() -> None:
    values = {**to_values(resolved()), 'num_classes': 10}
    assert architecture(values)['memory_size'] == 0
    assert 'memory_size' not in architecture({**values, 'train_mode': 'finetune'})


def test_a_run_without_checkpoints_may_change(tmp_path: pathlib.Path) -> None:
    write_flags(str(tmp_path), resolved(), {'num_classes': 10})
    check_same_architecture(str(tmp_path), resolved('--resnet_depth=34'), None)


# --- what is refused

BOUNDS = [
    (section, field.name, words, bound)
    for _, section, field in all_options()
    for words, bound in field.metadata['limits'].items()
    if bound is not None
]


@pytest.mark.parametrize(('section', 'name', 'words', 'bound'), BOUNDS)
def test_numbers_out_of_bounds_are_refused(
    section: type, name: str, words: str, bound: float
) -> None:
    ends = {'at_least': bound - 1, 'at_most': bound + 1, 'above': bound, 'below': bound}
    beyond = ends[words]
    value = option_type(section, name)(beyond)
    with pytest.raises(UserError, match=f'--{name} must be .*; found {re.escape(str(value))}'):
        section(**{name: value})


def test_every_number_has_an_upper_bound() -> None:
    for _, section, field in all_options():
        limits, choices = field.metadata['limits'], field.metadata['choices']
        if option_type(section, field.name) in (int, float) and not choices:
            assert limits['at_most'] is not None or limits['below'] is not None, field.name


def test_every_setting_declares_who_reads_it_and_its_resume_rule() -> None:
    options = {field.name: field.metadata for _, _, field in all_options()}
    for name, metadata in options.items():
        assert stages_reading(name), name
        assert set(metadata['modes']) <= {mode for mode in MODES if not MODES[mode].trains}, name
        assert set(metadata['requires']) <= set(options), name
        assert metadata['resume'] in ('free', 'continue', 'refuse', 'fixed'), name


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_numbers_are_finite(value: str) -> None:
    with pytest.raises(UserError, match='--learning_rate must be a finite number'):
        resolved(f'--learning_rate={value}')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (
            ['--fine_tune_after_block=3'],
            'is for fine-tuning and distillation; found --train_mode=p',
        ),
        (['--sk_ratio=0.0625'], 'resnet_depth 50 or more; found depth 18'),
        (['--ft_proj_selector=4'], 'at most the number of projection layers, 3'),
        (['--proj_head_mode=linear', '--ft_proj_selector=2'], 'projection layers, 1'),
        (['--width_multiplier=0.01'], 'at least 0.03125'),
    ],
)
def test_contradictions_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolved(*arguments)


def test_sections_hold_every_setting_of_the_configuration() -> None:
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(run.Config)}
    assert kinds == {name: kind.__name__ for name, kind in SECTIONS.items()}
