"""Servers that refuse, are silent, break off or don't use gRPC are named within a time limit."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import tensorflow as tf

import run
from common import connections
from common.errors import UserError
from data.service import check_answers
from tf2 import distribution
from tf2.config import DeviceConfig


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[tuple[str, int]]:
    """A local server that calls `answer` with each connection and keeps it open."""
    kept = []
    with socket.create_server(('127.0.0.1', 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the test is over
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[:2]
    for connection in kept:
        connection.close()


def unused() -> tuple[str, int]:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[:2]


def says_web(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')


# Kind: an address behind which is no server that answers. Three members and one that is refused.
SILENT = {
    'silent': (lambda connection: None, 'timed out'),
    'closed at once': (lambda connection: connection.close(), 'closed at once|reset by peer'),
    'another protocol': (says_web, 'no gRPC server'),
}


@pytest.fixture(params=[*SILENT, 'refused'])
def dead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:
    """(host, port) of a server that doesn't work, and the reason."""
    monkeypatch.setattr(connections, 'SECONDS_TO_ANSWER', 0.3)
    monkeypatch.setattr(connections.ask, '__defaults__', (0.3,))
    if request.param == 'refused':
        yield *unused(), 'refused'
        return
    answer, words = SILENT[request.param]
    with listening(answer) as (host, port):
        yield host, port, words


@pytest.mark.parametrize('flag', ['tpu_name', 'master'])
def test_a_tpu_that_does_not_answer_is_one_line(
    dead: tuple[str, int, str], flag: str, capsys: pytest.CaptureFixture
) -> None:
    host, port, words = dead
    address = f'grpc://{host}:{port}'
    with pytest.raises(UserError, match=f'No TPU could be reached at {address} .*({words})'):
        distribution.build_strategy(DeviceConfig(**{flag: address}, connect_timeout=1))
    assert f'for the TPU at {address}.' in capsys.readouterr().out


def test_a_data_service_that_does_not_answer_is_one_line(dead: tuple[str, int, str]) -> None:
    host, port, words = dead
    with pytest.raises(UserError, match=f'nothing answers there .*({words})'):
        check_answers(f'grpc://{host}:{port}')


def test_workers_that_do_not_answer_are_named(
    dead: tuple[str, int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    host, port, _ = dead
    own = f'127.0.0.1:{unused()[1]}'
    with connections.answering(there := unused()[1]):
        workers = [f'{host}:{port}', own, f'127.0.0.1:{there}']
        config = {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': 1}}
        monkeypatch.setenv('TF_CONFIG', json.dumps(config))
        with pytest.raises(UserError) as refusal:
            distribution.build_strategy(DeviceConfig(strategy='multi_worker', connect_timeout=1))
    said = str(refusal.value)
    assert f'no answer from {workers[0]} (' in said and workers[2] not in said
    assert 'within 1 s (--connect_timeout)' in said
    assert ', '.join(workers) in capsys.readouterr().out


def test_a_worker_whose_port_is_taken_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(lambda connection: None) as (_, port):
        workers = [f'127.0.0.1:{port}', '127.0.0.1:9']
        config = {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': 0}}
        monkeypatch.setenv('TF_CONFIG', json.dumps(config))
        with pytest.raises(UserError, match=f'Worker {workers[0]} must be able to listen'):
            distribution.build_strategy(DeviceConfig(strategy='multi_worker', connect_timeout=1))


def test_workers_answer_each_other_before_tensorflow_starts() -> None:
    """Each waits for all others, and none has a server yet."""
    ports = [unused()[1] for _ in range(3)]
    found = {}

    def start(own: int) -> None:
        with connections.answering(own):
            others = [('127.0.0.1', port) for port in ports if port != own]
            found[own] = connections.wait_for(others, 20)
            everyone.wait(20)

    everyone = threading.Barrier(len(ports))
    threads = [threading.Thread(target=start, args=(port,)) for port in ports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {port: {} for port in ports}


def test_a_tensorflow_server_is_recognized() -> None:
    service = tf.data.experimental.service
    server = service.DispatchServer(service.DispatcherConfig(port=0))
    port = int(server.target.rsplit(':', 1)[1])
    assert connections.ask('127.0.0.1', port) == '127.0.0.1'


def test_a_function_that_takes_too_long_is_abandoned() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r'no answer within 0\.1 s'):
        connections.bounded(never.wait, 0.1)
    never.set()
    assert connections.bounded(lambda: 3, 10) == 3
    with pytest.raises(KeyError):
        connections.bounded(lambda: {}[0], 10)


@pytest.mark.parametrize(
    'config',
    [
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 5}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "queen", "index": 0}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": 7}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": 3}',
        '{"cluster": {"worker": ["a:1"]}}',
        '"cluster"',
        '\udcff',
        '',
    ],
)
def test_an_invalid_tf_config_is_one_line(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TF_CONFIG', config)
    with pytest.raises(UserError, match='TF_CONFIG'):
        distribution.build_strategy(DeviceConfig(strategy='multi_worker', connect_timeout=1))


STEP = {
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_STEP_NODELIST': 'n[1-2]',
    'SLURM_STEP_TASKS_PER_NODE': '1(x2)',
    'SLURM_PROCID': '0',
}


@pytest.mark.parametrize('name', list(STEP))
@pytest.mark.parametrize('junk', ['', 'many', '-3', '1e9', 'n[1-', '2.5'])
def test_invalid_slurm_variables_are_one_line(
    name: str, junk: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv('TF_CONFIG', raising=False)
    monkeypatch.setattr(connections, 'wait_for', lambda places, seconds: dict.fromkeys(places))
    for other, value in {**STEP, name: junk}.items():
        monkeypatch.setenv(other, value)
    with pytest.raises(UserError) as refusal:
        distribution.build_strategy(DeviceConfig(strategy='multi_worker', connect_timeout=1))
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('junk', ['', 'many', '1e9', '2.5'])
def test_an_invalid_number_of_tasks_is_refused_only_if_it_decides(junk: str) -> None:
    environment = {'SLURM_STEP_NUM_TASKS': junk}
    with pytest.raises(UserError, match='SLURM_STEP_NUM_TASKS must be a whole number'):
        run.complete({'model_dir': 'm'}, environment)
    given = {'model_dir': 'm', 'strategy': 'one_device'}
    assert run.complete(given, environment) == given
