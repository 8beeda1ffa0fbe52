"""Steps of other programs are timed, with stand-ins for these programs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.speed import peers, steps, timing
from common.errors import UserError
from tf2.models import resnet

# Answers as lightly_step.py does. The first two steps, which are to be left out, take long.
ANSWERING = """
import itertools, json, sys
print(json.dumps({'timed': 'a stand-in'}), flush=True)
for _, seconds in zip(sys.stdin, itertools.chain([100, 100], itertools.cycle([3, 1, 2]))):
    print(json.dumps({'seconds': seconds}), flush=True)
"""
# The published program's interface, over one small layer. Its optimizer has the methods that
# those of old TensorFlow had.
PUBLISHED = {
    'run': """
        from absl import flags
        import model
        print('Not an answer.')
        FLAGS = flags.FLAGS
        flags.DEFINE_integer('resnet_depth', 50, '')
        flags.DEFINE_integer('image_size', 224, '')
        flags.DEFINE_integer('train_batch_size', 512, '')
        flags.DEFINE_string('train_mode', 'pretrain', '')
        flags.DEFINE_bool('use_blur', True, '')
        flags.DEFINE_bool('use_tpu', True, '')
    """,
    'model': """
        import tensorflow as tf
        from absl import flags
        import lars_optimizer
        import resnet
        class Model(tf.keras.Model):
            def __init__(self, num_classes):
                super().__init__()
                FLAGS = flags.FLAGS
                assert (FLAGS.resnet_depth, FLAGS.image_size, FLAGS.train_batch_size) == (18, 32, 4)
                assert not FLAGS.use_blur and not FLAGS.use_tpu
                self.encoder = resnet.layer()
                self.classifier = tf.keras.layers.Dense(num_classes)
            def call(self, pairs, training):
                assert training and pairs.shape == [4, 32, 32, 6]
                views = tf.reduce_mean(tf.concat(tf.split(pairs, 2, -1), 0), [1, 2])
                hidden = self.encoder(views)
                return hidden, self.classifier(tf.stop_gradient(hidden))
        def build_optimizer(learning_rate):
            return lars_optimizer.LARSOptimizer(learning_rate)
        def add_weight_decay(model, adjust_per_optimizer):
            assert adjust_per_optimizer
            return 1e-6 * tf.nn.l2_loss(model.classifier.kernel)
    """,
    'objective': """
        import tensorflow as tf
        def add_contrastive_loss(hidden, hidden_norm, temperature, strategy):
            assert hidden_norm and strategy is None
            logits = tf.matmul(hidden, hidden, transpose_b=True) / temperature
            return tf.reduce_mean(logits), logits, None
        def add_supervised_loss(labels, logits):
            assert labels.shape == logits.shape == [8, 10]
            return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
    """,
    'lars_optimizer': """
        import tensorflow as tf
        class LARSOptimizer(tf.keras.optimizers.Optimizer):
            def __init__(self, learning_rate):
                super().__init__('LARS')
                self.learning_rate = learning_rate
            def _create_slots(self, variables):
                for variable in variables:
                    self.add_slot(variable, 'Momentum')
            def _resource_apply_dense(self, gradient, variable, apply_state=None):
                return variable.assign_sub(self.learning_rate * gradient)
            def get_config(self):
                return {}
    """,
    'resnet': """
        import tensorflow as tf
        def layer():
            return tf.keras.layers.Dense(6)
    """,
}


def write_published(clone: pathlib.Path) -> pathlib.Path:
    folder = clone / 'tf2'
    folder.mkdir()
    for name, text in PUBLISHED.items():
        (folder / f'{name}.py').write_text(text.replace('\n        ', '\n'))
    return folder


def test_the_published_step_answers_each_line(tmp_path: pathlib.Path) -> None:
    script = [sys.executable, peers.HERE / 'published_step.py', write_published(tmp_path)]
    done = subprocess.run(
        [*script, '--batch=4'], input='go\ngo\n', check=True, capture_output=True, text=True
    )
    ready, *answers = map(json.loads, done.stdout.splitlines())
    assert 'published' in ready['timed']
    assert len(answers) == 2 and all(answer['seconds'] > 0 for answer in answers)
    assert 'Not an answer.' in done.stderr


@pytest.mark.skipif('LIGHTLY_PYTHON' not in os.environ, reason='LIGHTLY_PYTHON is not set')
@pytest.mark.parametrize('precision', peers.PRECISIONS)
def test_the_step_of_lightly_answers_each_line(precision: str) -> None:
    command = peers.commands(os.environ, 2)[f'lightly_{precision}']
    with peers.Peer('lightly', command) as peer:
        assert peer() > 0 and peer() > 0


def test_a_python_without_lightly_is_named() -> None:
    script = [sys.executable, peers.HERE / 'lightly_step.py']
    done = subprocess.run(script, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    (message,) = done.stderr.splitlines()
    assert message.startswith(f'{sys.executable} has no lightly') and 'README.md' in message


def test_a_peer_gives_the_seconds_it_says() -> None:
    with peers.Peer('stand-in', [sys.executable, '-c', ANSWERING]) as peer:
        assert [peer() for _ in range(5)] == [100, 100, 3, 1, 2]


@pytest.mark.parametrize('after', ['', 'import sys; print(\'{"timed": ""}\'); '])
def test_a_peer_that_ends_is_an_error_with_its_status(after: str) -> None:
    command = [sys.executable, '-c', f'{after}raise SystemExit(3)']
    expected = pytest.raises(UserError, match=r'stand-in must answer .* ended with status 3')
    with expected, peers.Peer('stand-in', command) as peer:
        peer()


def test_peers_that_are_not_named_are_left_out() -> None:
    assert peers.commands({'LIGHTLY_PYTHON': ''}, 64) == {}


def test_peers_that_are_not_there_are_errors(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"LIGHTLY_PYTHON .* found no program '/no/python'"):
        peers.commands({'LIGHTLY_PYTHON': '/no/python'}, 64)
    with pytest.raises(UserError, match=r'PUBLISHED_SIMCLR .* found no run.py, model.py, obj'):
        peers.commands({'PUBLISHED_SIMCLR': str(tmp_path)}, 64)
    write_published(tmp_path)
    assert peers.commands({'PUBLISHED_SIMCLR': str(tmp_path)}, 64).keys() == {'published_float32'}


def test_errors_of_users_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv('LIGHTLY_PYTHON', '/no/python')
    with pytest.raises(SystemExit, match='2'):
        peers.main([])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_programs_take_turns_and_the_first_two_steps_do_not_count() -> None:
    order: list[str] = []

    def clock(name: str, seconds: list[float]) -> peers.Clock:
        def timed() -> float:
            order.append(name)
            return seconds.pop(0)

        return timed

    clocks = {'a': clock('a', [90, 90, 3, 5, 1, 2]), 'b': clock('b', [90, 90, 7, 7, 8, 8])}
    assert timing.in_turns(clocks, rounds=2, count=2) == {'a': 2.5, 'b': 7.5}
    assert ''.join(order) == 'aabb' + 'aabb' * 2


def test_figures_are_the_last_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    python = tmp_path / 'python'
    python.write_text(f'#!{sys.executable}{ANSWERING}')
    python.chmod(0o755)
    monkeypatch.setenv('LIGHTLY_PYTHON', str(python))
    monkeypatch.delenv('PUBLISHED_SIMCLR', raising=False)
    monkeypatch.setitem(resnet.BLOCKS_PER_GROUP, 18, (1, 1, 1, 1))
    monkeypatch.setattr(steps, 'MATRIX', 64)
    monkeypatch.setattr(steps, 'own_step', lambda case: lambda: None)
    peers.main(['--batch=6', '--rounds=3'])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    timed = ('own_float32', 'own_bfloat16', 'lightly_float32', 'lightly_bfloat16')
    whats = ('images_per_second', 'share_of_peak')
    expected = {f'{name}_{what}' for name in timed for what in whats} | {'peak_float32_gflops'}
    assert figures.keys() == expected
    assert figures['lightly_float32_images_per_second'] == 3  # 6 images in the median of 3, 1, 2
    assert '\n'.join(table) == peers.rows([figures])


def test_rows_are_medians_with_their_spread_and_ratios_run_by_run() -> None:
    runs = [
        {
            'peak_float32_gflops': 200.0,
            'own_float32_images_per_second': single,
            'own_float32_share_of_peak': 0.8,
            'own_bfloat16_images_per_second': 90.0,
            'own_bfloat16_share_of_peak': 1.25,
            'lightly_float32_images_per_second': lightly,
            'lightly_float32_share_of_peak': 0.6,
        }
        for single, lightly in ((60, 30), (80, 20), (70, 70))
    ]
    lines = peers.rows(runs).splitlines()
    assert {line.count('|') for line in lines[:-2]} == {6}
    assert lines[2] == (
        '| this program, float32 | 70.0 (60.0 to 80.0) | 80.0% (80.0 to 80.0) |  '
        '| 1.29 (1.12 to 1.50) |'
    )
    assert lines[4] == (
        '| lightly, float32 | 30.0 (20.0 to 70.0) | 60.0% (60.0 to 60.0) '
        '| 2.00 (1.00 to 4.00) | 3.00 (1.29 to 4.50) |'
    )
    assert lines[6].startswith('| published TF2 program, float32 | not timed: ')
    assert 'PUBLISHED_SIMCLR=' in lines[6]
    assert lines[-1] == 'Peak of float32: 200 (200 to 200) GFLOP/s.'
