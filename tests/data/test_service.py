"""A tf.data service of real processes makes the training batches."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from common.connections import answering, bounded, split_address
from common.errors import UserError
from common.views import SUPERVISED
from data import service
from data.batches import train_batches
from data.config import DataConfig
from data.label_subset import LabelSubset, restrict
from data.sources import Source
from data.worker import Worker

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 60  # seconds, for any wait in these tests


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-m', 'data.service', *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen) -> str:
    return bounded(process.stdout.readline, TIMEOUT).strip()


def end(process: subprocess.Popen, ending: signal.Signals) -> None:
    """Ends a process, and checks that it says nothing about it."""
    process.send_signal(signal.SIGUSR1)  # SLURM's warning, at which a training still needs batches
    process.send_signal(ending)
    try:
        out, error = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out) == (0, '')
        assert 'Traceback' not in error
    finally:
        process.kill()


@pytest.fixture(scope='module')
def address() -> Iterator[str]:
    """A dispatcher and two workers; those in other processes end as they should, by either signal.

    The second worker is in this process, since starting one takes longer than all else.
    """
    with contextlib.ExitStack() as stack:
        dispatcher = start('dispatcher')
        stack.callback(end, dispatcher, signal.SIGTERM)
        port = re.search(r'--tf_data_service=grpc://\S+:(\d+)$', first_line(dispatcher))[1]
        found = f'grpc://localhost:{port}'
        worker = start('worker', f'--dispatcher={found}')
        stack.callback(end, worker, signal.SIGINT)
        assert f'--tf_data_service={found}' in first_line(worker)
        own, words = service.start_worker(found, 0)
        stack.callback(own._stop)
        assert f'--tf_data_service={found}' in words
        yield found


def png_source(count: int) -> Source:
    """A source of small PNG images; image i has the label i."""
    pixels = np.random.RandomState(0).randint(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    images = [tf.io.encode_png(image).numpy() for image in pixels]
    return Source(
        name='small',
        num_classes=count,
        class_names=None,
        num_examples=lambda split: count,
        examples=lambda split: tf.data.Dataset.from_tensor_slices(
            {'image': tf.constant(images), 'label': tf.range(count)}
        ),
        decode=lambda image: tf.io.decode_png(image, channels=3),
    )


def batches(source: Source, service: str | None, **arguments) -> tf.data.Dataset:
    config = DataConfig(image_size=2, tf_data_service=service)
    return train_batches(
        source, config, split='train', views=SUPERVISED, batch_size=4, seed=1, **arguments
    )


def key_of(batch: dict) -> bytes:
    """Tells a batch from any other: crops are drawn anew in every epoch."""
    return batch['label'].tobytes() + np.rint(batch['views'][0] * 1e4).tobytes()


def read_until(
    dataset: tf.data.Dataset, is_enough: Callable[[list[dict]], bool], at_once: int
) -> list[dict]:
    """Batches of `dataset`, until these are enough."""
    found, iterator = [], dataset.as_numpy_iterator()
    deadline = time.monotonic() + TIMEOUT
    while not is_enough(found):
        assert time.monotonic() < deadline, f'{len(found)} batches are not enough'
        found += bounded(lambda: list(itertools.islice(iterator, at_once)), TIMEOUT)
    return found


def have_mixed(found: list[dict], steps: int) -> bool:
    """Whether these batches are more than one epoch after the other: whether two workers made them.

    Args:
        found: batches.
        steps: how many make an epoch.
    """
    labels = np.array([batch['label'] for batch in found]).reshape(
        -1, steps * len(found[0]['label'])
    )
    return any(len(set(epoch)) < len(epoch) for epoch in labels.tolist())


SUBSET = [1, 2, 5, 8, 13, 20, 21, 22]


@pytest.mark.parametrize(
    ('subset', 'worker'), [(None, Worker()), (SUBSET, Worker()), (None, Worker(1, 2))]
)
def test_epochs_are_those_of_a_single_process(address, subset, worker):
    source = png_source(24)
    members = list(range(24)) if subset is None else subset
    if subset is not None:
        indices = np.array(subset)
        source = restrict(source, 'train', LabelSubset(indices, indices.astype(np.int32)))
    steps = len(members) // 4
    alone = batches(source, None, worker=worker)
    served = batches(source, address, worker=worker)
    assert served.element_spec == alone.element_spec
    assert all(view.shape.is_fully_defined() for view in served.element_spec['views'])

    two_epochs = list(alone.take(2 * steps).as_numpy_iterator())
    wanted = {key_of(batch) for batch in two_epochs}

    def is_enough(found: list[dict]) -> bool:
        return wanted <= set(map(key_of, found)) and have_mixed(found, steps)

    found = read_until(served, is_enough, steps)
    keys = [key_of(batch) for batch in found]
    # No batch comes twice: no two of the service's workers make one epoch.
    assert len(set(keys)) == len(keys)
    labels = [batch['label'] for batch, key in zip(found, keys) if key in wanted]
    if worker.count == 1:
        assert sorted(np.concatenate(labels)) == sorted(2 * members)


def test_a_resumed_run_starts_with_the_epoch_it_was_in(address):
    source = png_source(24)
    whole = [key_of(batch) for batch in batches(source, None).take(18).as_numpy_iterator()]

    def is_enough(found: list[dict]) -> bool:
        return set(whole[8:]) <= set(map(key_of, found))

    found = read_until(batches(source, address, start=32), is_enough, 6)
    assert not set(whole[:8]) & set(map(key_of, found))


def taken_port() -> socket.socket:
    taken = socket.socket()
    taken.bind(('', 0))
    taken.listen()
    return taken


def test_a_port_that_is_taken_is_refused(capsys):
    with taken_port() as taken:
        number = taken.getsockname()[1]
        with pytest.raises(SystemExit) as status:
            service.main(['dispatcher', f'--port={number}'])
    assert status.value.code == 2
    assert f'--port must be a free port; cannot listen on {number}' in capsys.readouterr().err
    # A process that went on deaf to these would pass that on to every process it starts.
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_unreachable_address_is_refused(capsys):
    with taken_port() as taken:
        port = taken.getsockname()[1]
    address = f'grpc://localhost:{port}'
    with answering(port):
        assert service.check_answers(address) in ('127.0.0.1', '[::1]')
    with pytest.raises(UserError, match='nothing answers there') as error:
        batches(png_source(4), address)
    assert f'--tf_data_service={address}' in str(error.value)
    assert '\n' not in str(error.value)
    with pytest.raises(SystemExit):
        service.main(['worker', f'--dispatcher={address}'])
    assert f'--dispatcher={address} must be' in capsys.readouterr().err


@pytest.mark.parametrize(
    'address',
    [
        *('', 'host:5050', 'grpc://host', 'grpc://:5050', 'grpc://host:x', 'grpc://host:70000'),
        *('http://host:5050', 'grpc://host:5050/', 'grpc://a@host:5050', 'grpc://[::1:5050'),
    ],
)
def test_malformed_addresses_are_refused(address):
    with pytest.raises(UserError, match='tf_data_service must be an address like grpc://') as error:
        DataConfig(tf_data_service=address)
    assert repr(address) in str(error.value)


def test_addresses_are_split():
    assert split_address('grpc://a.host:5050', '--x') == ('a.host', 5050)
    assert split_address('grpc://[::1]:80', '--x') == ('::1', 80)
    assert DataConfig(tf_data_service='grpc://host:1').tf_data_service == 'grpc://host:1'


def devices_of(numbers: set[int]) -> set[bytes]:
    """The interfaces that listening sockets of this process take connections from."""
    found = set()
    for number in numbers:
        with socket.socket(fileno=os.dup(number)) as server:
            found.add(server.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).strip(b'\0'))
    return found


def test_looking_for_sockets_leaves_no_file_open():
    with taken_port() as taken:
        before = os.listdir('/proc/self/fd')
        assert taken.fileno() in service._listening()
        assert len(os.listdir('/proc/self/fd')) < len(before) + 10  # of dozens that are no sockets


def test_servers_accept_only_local_connections_by_default():
    """Whatever listens: a dispatcher, a worker, and a dispatcher that is open to all."""
    before = service._listening()
    dispatcher, words = service.start_dispatcher(0)
    assert 'Dispatcher at grpc://127.0.0.1:' in words and '--bind' not in words
    worker, _ = service.start_worker(re.search(r'grpc://\S+:\d+', words)[0], 0)
    closed = service._listening() - before
    assert len(closed) >= 2
    assert devices_of(closed) == {b'lo'}
    opened, words = service.start_dispatcher(0, service.EVERYWHERE)
    assert '--bind=0.0.0.0' in words
    assert devices_of(service._listening() - before - closed) == {b''}
    del dispatcher, worker, opened


def test_nothing_starts_if_remote_connections_cannot_be_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, '_listening', lambda: set())
    with pytest.raises(UserError, match='keeps other machines out, which this system does not'):
        service.start_dispatcher(0)


def test_a_worker_of_a_remote_dispatcher_must_accept_connections(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(service, 'ask', lambda host, port: '10.0.0.7')
    with pytest.raises(UserError, match=r'--bind must let other machines connect.*--bind=0\.0\.0'):
        service.start_worker('grpc://elsewhere:5050', 0)
