"""Starts a tf.data service, whose workers make the training batches of --tf_data_service.

One dispatcher, then any number of workers, on any machines that see the data set under the same
path as the training program and have this project:

  python -m data.service dispatcher --port=5050
  python -m data.service worker --dispatcher=grpc://host:5050
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from data.config import split_address
from settings import UserError

_SECONDS_TO_ANSWER = 5.0
_ENDED_BY = (signal.SIGINT, signal.SIGTERM)


def check_answers(address: str, flag: str = '--tf_data_service') -> str:
    """Checks that something listens; TensorFlow itself would ask again and again for ever.

    Args:
        address: grpc://host:port.
        flag: where it was given, for the message.

    Returns:
        This machine's address as it is seen from there.

    Raises:
        UserError: if nothing answers within seconds.
    """
    host, port = split_address(address, flag)
    try:
        with socket.create_connection((host, port), _SECONDS_TO_ANSWER) as connection:
            own = connection.getsockname()[0]
    except OSError as error:
        raise UserError(
            f'{flag}={address} must be the address of a running tf.data service; nothing answers '
            f'there ({error}). Start one with python -m data.service dispatcher --port={port}.'
        ) from error
    return f'[{own}]' if ':' in own else own


def start_dispatcher(port: int) -> tuple[Any, str]:
    """Starts a dispatcher.

    Args:
        port: to listen at; 0 takes a free one.

    Returns:
        The server, and a line that says where it listens and how to use it.

    Raises:
        UserError: if `port` cannot be listened at.
    """
    _check_port(port)
    import tensorflow as tf

    service = tf.data.experimental.service
    server = service.DispatchServer(service.DispatcherConfig(port=port))
    found = server.target.rsplit(':', 1)[1]
    address = f'grpc://{socket.gethostname()}:{found}'
    return server, (
        f'Dispatcher at {address}; start workers with python -m data.service worker '
        f'--dispatcher={address} and train with --tf_data_service={address}'
    )


def start_worker(dispatcher: str, port: int) -> tuple[Any, str]:
    """Starts a worker.

    Args:
        dispatcher: grpc://host:port of the dispatcher, which is running.
        port: to listen at; 0 takes a free one.

    Returns:
        The server, and a line that says how to use it.

    Raises:
        UserError: if no dispatcher answers, or `port` cannot be listened at.
    """
    _check_port(port)
    # The training program fetches batches from here, perhaps from another machine.
    host = check_answers(dispatcher, '--dispatcher')

    import tensorflow as tf

    service = tf.data.experimental.service
    place = f'{host}:%port%'  # TensorFlow puts the port in.
    config = service.WorkerConfig(
        dispatcher_address=dispatcher.removeprefix('grpc://'),
        worker_address=place,
        data_transfer_address=place,
        port=port,
    )
    server = service.WorkerServer(config)
    return server, f'Worker at {host} of {dispatcher}; train with --tf_data_service={dispatcher}'


def _check_port(port: int) -> None:
    # TensorFlow would share a port that is taken, and each server get a part of the calls.
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(('', port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f'--port must be a free port; cannot listen at {port} ({error}).'
        ) from error


def main(arguments: Sequence[str]) -> int:
    """Runs a dispatcher or a worker until SIGINT or SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m data.service',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest='kind', required=True)
    dispatcher = kinds.add_parser('dispatcher', help='hands out the work; one of them')
    dispatcher.add_argument('--port', type=int, default=0, help='to listen at; 0: any free one')
    worker = kinds.add_parser('worker', help='makes batches; as many as you like')
    worker.add_argument('--dispatcher', required=True, help='grpc://host:port')
    worker.add_argument('--port', type=int, default=0, help='to listen at; 0: any free one')
    given = parser.parse_args(arguments)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        _serve(given)
    except UserError as error:
        parser.error(str(error))
    return 0


def _serve(given: argparse.Namespace) -> None:
    """Runs a server until one of the signals that end it."""
    # Before any thread starts, so that none is interrupted by what `sigwait` waits for.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDED_BY)
    try:
        if given.kind == 'dispatcher':
            server, words = start_dispatcher(given.port)
        else:
            server, words = start_worker(given.dispatcher, given.port)
        print(words, flush=True)
        signal.sigwait(_ENDED_BY)
        del server
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
