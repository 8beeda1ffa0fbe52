"""Every flag at extreme values: refused in one line that names it, or listed here as accepted.

The cases follow from the settings, so a new setting is covered without a change here.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

import run
from app import train
from app.config.resolution import stages_reading
from app.config.schema import OPTIONS, all_options
from app.inference import application, search
from common.settings import option_type
from tests.support import GOLDEN, mirrored
from tf2 import distribution
from tf2.methods import METHODS

OLDER = str(GOLDEN / 'older_run')
SMALL = {
    'mode': 'train_then_eval',
    'preset': 'demo',
    'train_split': 'train[:512]',
    'eval_split': 'test[:64]',
    'train_batch_size': '16',
}
# Stage -> flags with which it would start.
STAGES: dict[str, dict[str, str]] = {
    'pretrain': SMALL,
    'finetune': {**SMALL, 'train_mode': 'finetune', 'knn_neighbors': '0'},
    'distill': {
        **SMALL,
        'train_mode': 'distill',
        'knn_neighbors': '0',
        'teacher': OLDER,
        'distill_alpha': '0.5',
    },
}
# Flags that are read beside others only.
WITH: dict[str, dict[str, str]] = {
    'memory_size': {'memory_size': '64'},
    'queue_size': {'queue_size': '64'},
    'local_crops': {'local_crops': '2', 'local_crop_size': '12'},
    'global_crop_area': {},
    'knn_neighbors': {'knn_neighbors': '5'},
    'tpu_name': {'tpu_name': 'name'},
    'optimizer': {'optimizer': 'momentum'},
    'dataset': {
        'dataset': 'image_folder',
        'data_dir': '../images',
        'train_split': 'train',
        'eval_split': 'train',
    },
}
IMAGES = {'dataset': 'image_folder', 'preset': ''}
# SwAV's defaults are for more images than there are.
_FEW = {'prototypes': '30'}
ALSO: dict[str, dict[str, str]] = {
    'data_dir': IMAGES,
    'freeze_prototypes_epochs': _FEW,
    'sinkhorn_epsilon': _FEW,
    'sinkhorn_iterations': _FEW,
    'queue_size': _FEW,
    'queue_start_epoch': _FEW,
}

# Mode -> flags with which it would start, of those that only it reads.
MODES: dict[str, dict[str, str]] = {
    'embed': {'mode': 'embed', 'checkpoint': OLDER, 'eval_split': 'test[:8]'},
    'search': {
        'mode': 'search',
        'query': __file__,  # what is in these isn't looked at
        'embeddings': __file__,
        'checkpoint': OLDER,
    },
    'predict': {'mode': 'predict', 'checkpoint': OLDER, 'eval_split': 'test[:8]'},
}

WORDS = ('', '/no/such/place', '../x', 'a\nb', 'foo://bar/x', 'caf\udce9')
NEW_FOLDER = 'a folder that is made'
NAME = 'looked up where the run takes place'
# Flag -> value -> why it is taken.
TAKEN: dict[str, dict[str, str]] = {
    'model_dir': {
        '/no/such/place': NEW_FOLDER,
        '../x': NEW_FOLDER,
    },
    **{
        name: {word: NAME for word in WORDS if word}
        for name in ('tpu_name', 'tpu_zone', 'gcp_project', 'master')
    },
}


def extremes(section: type, field: Any) -> Iterator[str]:
    """Extreme values for a flag of this type."""
    kind, metadata = option_type(section, field.name), field.metadata
    limits = metadata['limits']
    if metadata['choices']:
        yield from ('', 'another', '-1', '10**20')
    elif kind is bool:
        yield from ('', 'maybe', '2')
    elif kind in (int, float):
        yield from ('', 'many', 'nan', 'inf', '-inf', '1' + '0' * 20, '-1', '0', '1e300', '-1e300')
        beyond = {'at_least': -1, 'at_most': 1, 'above': 0, 'below': 0}
        for words, bound in limits.items():
            if bound is not None:
                yield str(kind(bound + beyond[words]))
    else:
        yield from WORDS


def within(section: type, field: Any, value: str) -> bool:
    """Whether a number is within the flag's bounds."""
    kind, limits = option_type(section, field.name), field.metadata['limits']
    if kind not in (int, float) or field.metadata['choices']:
        return False
    try:
        number = kind(value)
    except ValueError:
        return False
    ends = (
        limits['at_least'] is None or number >= limits['at_least'],
        limits['at_most'] is None or number <= limits['at_most'],
        limits['above'] is None or number > limits['above'],
        limits['below'] is None or number < limits['below'],
    )
    return all(ends) and number == number


CASES = [
    (field.name, value, within(section, field, value))
    for _, section, field in all_options()
    for value in dict.fromkeys(extremes(section, field))
]


class ReachedError(Exception):
    """The flags were accepted."""


@pytest.fixture(scope='module', autouse=True)
def no_training(known_labels: None) -> Iterator[None]:
    def reach(*_: object, **__: object) -> None:
        raise ReachedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, 'train', reach)
        patch.setattr(application, 'in_folder', reach)
        patch.setattr(search, 'open_table', reach)
        # These flags would wait for the network.
        patch.setattr(distribution, '_tpu_strategy', lambda config: mirrored(1))
        yield


def attempt(flags: Mapping[str, str]) -> str | None:
    """The error line for `flags`; None if they are accepted."""
    arguments = [f'--{name}={value}' for name, value in flags.items()]
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        try:
            status = run.main(['run.py', *arguments])
        except ReachedError:
            return None
    assert status == 2, (flags, shown.getvalue(), said.getvalue())
    line = said.getvalue()
    assert line.startswith('run.py: error: ') and line.endswith('\n'), line
    assert line.count('\n') == 1, line
    return line


def base_of(name: str) -> dict[str, str]:
    """Flags of a run that reads flag `name`."""
    metadata = OPTIONS[name]
    if not metadata['runs']:
        return MODES[metadata['modes'][0]]
    flags = dict(STAGES[stages_reading(name)[0]])
    methods = [method for method, entry in METHODS.items() if name in entry.reads]
    if methods and flags.get('train_mode', 'pretrain') == 'pretrain':
        flags['method'] = methods[0]
    for other in metadata['requires']:
        flags.update(WITH[other])
    flags.update(ALSO.get(name, {}))
    return {key: value for key, value in flags.items() if value}


@pytest.mark.parametrize('name', OPTIONS)
def test_every_flag_at_its_extremes(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only numbers within bounds, and what the table above lists, may be accepted."""
    (tmp_path / 'here').mkdir()
    (tmp_path / 'images').mkdir()
    for number in range(24):
        (tmp_path / 'images' / f'{number}.png').write_bytes(b'')  # the contents are not read
    monkeypatch.chdir(tmp_path / 'here')
    for flag, value, possible in CASES:
        if flag != name:
            continue
        flags = {'model_dir': 'run', **base_of(name), name: value}
        line = attempt(flags)
        case = f'--{name}={value!r}'
        if value in TAKEN.get(name, ()):
            assert line is None, f'{case} is no longer taken: {line}'
        elif not possible:
            assert line is not None, f'{case} should be refused, or have its reason in TAKEN'
        if line is not None:
            assert f'--{name}' in line or value in line, f'{case}: {line}'
        assert not list(tmp_path.glob('here/*')), f'{case} left something'


# Flags that contradict each other, or are of another stage: what is said.
COMBINATIONS: Sequence[tuple[str, dict[str, str], str]] = [
    ('finetune', {'temperature': '0.5'}, '--temperature is for pretraining; found --train_mode=fi'),
    ('finetune', {'hidden_norm': 'true'}, '--hidden_norm is for pretraining'),
    ('finetune', {'use_blur': 'false'}, '--use_blur is for pretraining'),
    ('finetune', {'memory_size': '64'}, '--memory_size is for pretraining'),
    ('distill', {'color_jitter_strength': '1'}, '--color_jitter_strength is for pretraining'),
    ('pretrain', {'distill_alpha': '0.5'}, '--distill_alpha is for distillation; found'),
    ('pretrain', {'distill_temperature': '2'}, 'or use --train_mode=distill'),
    ('finetune', {'teacher': OLDER}, '--teacher is for distillation'),
    ('finetune', {'teacher_view': 'eval'}, '--teacher_view is for distillation'),
    ('pretrain', {'label_fraction': '0.5'}, '--label_fraction is for fine-tuning and distillation'),
    ('pretrain', {'fine_tune_after_block': '4'}, 'is for fine-tuning and distillation'),
    ('pretrain', {'zero_init_logits_layer': 'true'}, 'is for fine-tuning and distillation'),
    ('pretrain', {'preset': 'finetune_1pct', 'train_mode': 'pretrain'}, '--zero_init_logits_layer'),
    ('pretrain', {'momentum_encoder_decay': '0.9'}, 'is read with --memory_size only'),
    ('pretrain', {'export_momentum_encoder': 'true'}, 'is read with --memory_size only'),
    ('pretrain', {'tpu_zone': 'here'}, '--tpu_zone is read with --tpu_name only'),
    ('pretrain', {'gcp_project': 'mine'}, '--gcp_project is read with --tpu_name only'),
    ('finetune', {'knn_examples': '9'}, '--knn_examples is read with --knn_neighbors only'),
    (
        'pretrain',
        {'momentum': '0.5', 'optimizer': 'adam'},
        '=momentum or lars or sgd only',
    ),
    ('pretrain', {'method': 'simsiam', 'optimizer': 'lamb'}, 'lars, sgd with a constant .* lamb'),
    (
        'pretrain',
        {'method': 'simsiam', 'target_decay': '0.9'},
        'is for --method=byol; found',
    ),
    ('pretrain', {'method': 'byol', 'proj_head_mode': 'linear'}, 'for --method=simclr; found'),
    ('pretrain', {'predictor_hidden_dim': '9'}, 'for --method=byol or simsiam; found --method=sim'),
    ('pretrain', {'rate_in_velocity': '0', 'optimizer': 'adam'}, 'with --optimizer=lars only'),
    ('pretrain', {'memory_size': '60'}, '--memory_size must be a multiple'),
    (
        'pretrain',
        {'method': 'moco_v2', 'memory_size': '0'},
        'needs a --memory_size above 0; found 0',
    ),
    ('pretrain', {'method': 'moco_v2', 'memory_size': '60'}, '--memory_size must be a multiple'),
    (
        'pretrain',
        {'method': 'moco_v2', 'norm_parts': '3'},
        'be a multiple of --norm_parts, 3, with',
    ),
    (
        'pretrain',
        {'method': 'moco_v2', 'norm_parts': '16'},
        'at least 2 images in each part; found',
    ),
    (
        'pretrain',
        {'method': 'moco_v1', 'use_blur': 'true'},
        '--use_blur is for --method=simclr or ',
    ),
    ('pretrain', {'method': 'moco_v1', 'hidden_norm': 'true'}, '--hidden_norm is for --method=sim'),
    ('pretrain', {'method': 'instdisc', 'bank_negatives': '600'}, '--bank_negatives must be at m'),
    ('pretrain', {'method': 'instdisc', 'bank_negatives': '0', 'bank_loss': 'nce'}, 'be above 0'),
    ('pretrain', {'method': 'instdisc', 'memory_size': '64'}, '--memory_size is for --method=sim'),
    ('pretrain', {'bank_loss': 'nce'}, '--bank_loss is for --method=instdisc; found --method=sim'),
    ('pretrain', {'negative_weight': '2'}, '--negative_weight is for --method=invaspread; found'),
    ('pretrain', {'method': 'invaspread', 'train_batch_size': '1'}, '_size must be at least 2'),
    ('pretrain', {'method': 'swav', 'prototypes': '600'}, '--prototypes must be at most .* 512 in'),
    (
        'pretrain',
        {'method': 'swav', 'prototypes': '9', 'queue_size': '60'},
        '--queue_size must be a multiple of --train_batch_size, 16; found 60. Try 48, or 0',
    ),
    ('pretrain', {'method': 'swav', 'queue_start_epoch': '3'}, 'is read with --queue_size only'),
    ('pretrain', {'method': 'swav', 'hidden_norm': 'true'}, '--hidden_norm is for --method=simclr'),
    ('pretrain', {'method': 'swav', 'global_crops': '1'}, '--global_crops must be at least 2; fo'),
    ('pretrain', {'prototypes': '9'}, '--prototypes is for --method=swav; found --method=simclr'),
    ('pretrain', {'local_crops': '2'}, '--local_crop_size must be less than --image_size, 28; fou'),
    ('pretrain', {'local_crops': '2', 'local_crop_size': '28'}, 'than --image_size, 28; found 28'),
    ('pretrain', {'local_crop_size': '12'}, '--local_crop_size is read with --local_crops only'),
    ('pretrain', {'local_crop_area': '0.1,0.2'}, 'is read with --local_crops only'),
    ('pretrain', {'global_crop_area': '0.5'}, '--global_crop_area must be the smallest and the'),
    (
        'pretrain',
        {'crop_min_area': '0.5', 'global_crop_area': '0.5,1'},
        '--crop_min_area is read without --global_crop_area only; found .* Give one of them',
    ),
    ('pretrain', {'method': 'instdisc', 'local_crops': '2'}, '--local_crops is for --method=simc'),
    ('pretrain', {'method': 'invaspread', 'global_crops': '3'}, '--global_crops is for --method=s'),
    ('finetune', {'local_crops': '2'}, '--local_crops is for pretraining; found'),
    ('pretrain', {'norm_parts': '4'}, '--norm_parts is for --method=moco_v1 or moco_v2; found'),
    ('pretrain', {'train_batch_size': '1'}, '--train_batch_size must be at least 2'),
    ('distill', {'labels_per_class': '1', 'distill_alpha': '1'}, '--distill_alpha=1 uses none'),
    ('pretrain', {'allow_changes': 'sede'}, "--allow_changes must name settings, .*'sede'"),
    ('pretrain', {'mode': 'export', 'checkpoint': OLDER}, 'is for training; found --mode=export'),
    ('pretrain', {'mode': 'eval', 'model_dir': OLDER}, '--mode=eval evaluates the run as it was'),
    ('pretrain', {'mode': 'pipeline', 'tpu_zone': 'here'}, '--tpu_zone is read with --tpu_name'),
    ('pretrain', {'mode': 'pipeline', 'knn_examples': '3', 'knn_neighbors': '0'}, '--knn_examples'),
    ('pretrain', {'mode': 'pipeline', 'allow_changes': 'seed'}, 'of each stage itself'),
]


@pytest.mark.parametrize(('stage', 'flags', 'words'), COMBINATIONS)
def test_contradictory_flags_are_refused(
    stage: str,
    flags: dict[str, str],
    words: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = attempt({'model_dir': 'run', **STAGES[stage], **flags})
    assert line is not None
    import re

    assert re.search(words, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('flags', [*STAGES.values(), *MODES.values()], ids=[*STAGES, *MODES])
def test_the_commands_that_the_tables_vary_are_accepted(
    flags: dict[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert attempt({'model_dir': 'run', **flags}) is None


@pytest.mark.parametrize('place', ['images', 'images/run', 'images/a/b', 'link', 'link/run'])
def test_a_new_run_inside_a_folder_of_images_is_refused(
    place: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the data folder itself, below it, and through a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'images' / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'images')
    flags = {'dataset': 'image_folder', 'data_dir': 'images', 'model_dir': place}
    assert '--model_dir must be outside of --data_dir' in attempt(flags)
