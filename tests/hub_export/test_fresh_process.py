"""The module in another process, without this project, as users load it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.hub_export.conftest import Exported, random_images

PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

path, results = sys.argv[1:]
images = np.load(results)['images']
encoded = tf.stack([tf.io.encode_png(np.uint8(image * 255)) for image in images])
labels = np.array([0, 1, 2])

plain = tf.saved_model.load(path)
calls = {
    'hub': hub.load(path)(images, training=False),
    'tf': plain(images, trainable=False),
    'serving': plain.signatures['serving_default'](images=tf.constant(images)),
}
logits = {name: endpoints['logits_sup'].numpy() for name, endpoints in calls.items()}
decoded = plain.signatures['encoded_images'](bytes=encoded)['final_avg_pool']
assert decoded.shape == [3, 128] and np.all(np.isfinite(decoded)), decoded

if hasattr(tf.keras, 'version') and tf.keras.version().startswith('3.'):
    import tf_keras as keras
else:
    keras = tf.keras


def moved(module, trainable, train=True):
    # Whether kernels, gammas and moving statistics change in one step of fit, or in one call.
    layer = hub.KerasLayer(module, trainable=trainable, output_key='final_avg_pool')
    inputs = keras.Input([28, 28, 3])
    model = keras.Model(inputs, keras.layers.Dense(3)(layer(inputs)))
    assert len(layer.losses) == 1
    if trainable:
        assert float(layer.losses[0]) > 0
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    variables = layer.resolved_object.variables
    roles = ('kernel', 'gamma', 'moving_mean', 'moving_variance')
    watched = {role: next(v for v in variables if role in v.name) for role in roles}
    before = {name: variable.numpy() for name, variable in watched.items()}
    if train:
        history = model.fit(images, labels, batch_size=3, verbose=0).history
        assert np.isfinite(history['loss'][0])
    else:
        model(images, training=False)
    return {n for n, v in watched.items() if np.any(v.numpy() != before[n])}


everything = {'kernel', 'gamma', 'moving_mean', 'moving_variance'}
assert moved(path, trainable=True) == everything
assert moved(plain, trainable=True, train=False) == set()
assert moved(plain, trainable=False) == set()
np.savez(results, **logits)
"""


def test_serves_and_trains_in_another_process(checked: Exported, tmp_path: pathlib.Path) -> None:
    images = random_images().numpy()
    results = tmp_path / 'results.npz'
    np.savez(results, images=images)
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, checked.path, str(results)],
        cwd=tmp_path,
        env={**os.environ, 'TF_USE_LEGACY_KERAS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = checked.model(images, training=False)['logits_sup'].numpy()
    found = np.load(results)
    assert set(found.files) == {'hub', 'tf', 'serving'}
    for name in found.files:
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.smoke
def test_an_export_passes_the_real_check(checked: Exported) -> None:
    assert pathlib.Path(checked.path, 'saved_model.pb').stat().st_size < 1_000_000
    assert [path.name for path in pathlib.Path(checked.path).parent.iterdir()] == ['12']
