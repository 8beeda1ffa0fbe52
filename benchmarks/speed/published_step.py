"""Times the pretraining step of the published TF2 SimCLR program, fed from memory, in float32.

Run by `peers` with this project's Python, on the folder tf2 in the clone that PUBLISHED_SIMCLR
names. That program has a module `run`, as this project does, so this script imports nothing of this
project.

It was tested only with a stand-in for that program: a folder of small modules with the same names
and interface.

The first line of output is JSON and names what is timed. Then each line of input runs one step, and
its time is printed: {"seconds": 1.5}. Output of libraries goes to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable

SIZE = 32  # pixels
CLASSES = 10
TEMPERATURE = 0.1
LEARNING_RATE = 0.01


def step_of(folder: str, batch: int) -> Callable[[], float]:
    """A step on `batch` images with two views each; returns its loss.

    Args:
        folder: with model.py, objective.py and run.py, which defines the flags.
        batch: number of images.
    """
    sys.path[0] = folder  # in place of this script's
    import tensorflow as tf
    from absl import flags

    # Its LARS extends the Optimizer of older TensorFlow, which is now called legacy.
    tf.keras.optimizers.Optimizer = tf.keras.optimizers.legacy.Optimizer
    _, objective, models = map(importlib.import_module, ('run', 'objective', 'model'))
    settings = ['--resnet_depth=18', f'--image_size={SIZE}', f'--train_batch_size={batch}']
    flags.FLAGS(['run.py', *settings, '--train_mode=pretrain', '--nouse_blur', '--nouse_tpu'])
    model = models.Model(CLASSES)
    optimizer = models.build_optimizer(LEARNING_RATE)
    pairs = tf.random.stateless_uniform([batch, SIZE, SIZE, 6], [0, 0])
    classes = tf.random.stateless_uniform([batch], [0, 1], 0, CLASSES, tf.int32)
    labels = tf.tile(tf.one_hot(classes, CLASSES), [2, 1])  # of both views

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            projections, logits = model(pairs, training=True)
            contrast, *_ = objective.add_contrastive_loss(
                projections, hidden_norm=True, temperature=TEMPERATURE, strategy=None
            )
            supervised = objective.add_supervised_loss(labels=labels, logits=logits)
            decay = models.add_weight_decay(model, adjust_per_optimizer=True)
            loss = contrast + supervised + decay
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    return lambda: step().numpy()


def main() -> None:
    """For each line of input, runs one step and prints its seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', help='tf2 of the published program')
    parser.add_argument('--batch', type=int, default=64)
    given = parser.parse_args()
    # Output of libraries on stdout would be taken for answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    step = step_of(given.folder, given.batch)
    what = f'published program in {given.folder}, LARS, float32'
    print(json.dumps({'timed': what}), file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
        print(json.dumps({'seconds': seconds}), file=answers, flush=True)


if __name__ == '__main__':
    main()
