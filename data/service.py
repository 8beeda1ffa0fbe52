"""Starts a tf.data service, whose workers make the training batches of --tf_data_service.

Start one dispatcher, then any number of workers, on machines that have this project and see the
data set at the same path as the training program:

  python -m data.service dispatcher --port=5050 --bind=0.0.0.0
  python -m data.service worker --dispatcher=grpc://host:5050 --bind=0.0.0.0

Without --bind only this machine can connect. The service has no authentication: whoever can connect
can run TensorFlow graphs in a worker, and so read and write its user's files (docs/security.md).
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import pathlib
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from common.connections import ask, split_address
from common.errors import UserError

LOOPBACK, EVERYWHERE = '127.0.0.1', '0.0.0.0'
_OWN_FILES = pathlib.Path('/proc/self/fd')
_ENDED_BY = (signal.SIGINT, signal.SIGTERM)


def check_answers(address: str, flag: str = '--tf_data_service') -> str:
    """Checks that a service answers; TensorFlow itself would retry forever.

    Args:
        address: grpc://host:port.
        flag: the flag it comes from, for the message.

    Returns:
        This machine's address as it is seen from there.

    Raises:
        UserError: if nothing answers within seconds.
    """
    host, port = split_address(address, flag)
    try:
        own = ask(host, port)
    except OSError as error:
        raise UserError(
            f'{flag}={address} must be the address of a running tf.data service; nothing answers '
            f'there ({error}). Start one with python -m data.service dispatcher --port={port}.'
        ) from error
    return f'[{own}]' if ':' in own else own


def start_dispatcher(port: int, bind: str = LOOPBACK) -> tuple[Any, str]:
    """Starts a dispatcher.

    Args:
        port: to listen on; 0 chooses a free one.
        bind: LOOPBACK, where only this machine can connect, or EVERYWHERE.

    Returns:
        The server, and a line that says where it listens and how to use it.

    Raises:
        UserError: if `port` is not free, or other machines can't be kept out.
    """
    _check_port(port)
    import tensorflow as tf

    service = tf.data.experimental.service
    with _bound_to(bind):
        server = service.DispatchServer(service.DispatcherConfig(port=port))
    found = server.target.rsplit(':', 1)[1]
    host = LOOPBACK if bind == LOOPBACK else socket.gethostname()
    address = f'grpc://{host}:{found}'
    more = '' if bind == LOOPBACK else f' --bind={bind}'
    return server, (
        f'Dispatcher at {address}; start workers with python -m data.service worker '
        f'--dispatcher={address}{more} and train with --tf_data_service={address}'
    )


def start_worker(dispatcher: str, port: int, bind: str = LOOPBACK) -> tuple[Any, str]:
    """Starts a worker.

    Args:
        dispatcher: grpc://host:port of the dispatcher, which is running.
        port: to listen on; 0 chooses a free one.
        bind: LOOPBACK, where only this machine can connect, or EVERYWHERE.

    Returns:
        The server, and a line that says how to use it.

    Raises:
        UserError: if no dispatcher answers, `port` is not free, other machines can't be kept out,
            or `bind` would keep out machines that have to connect.
    """
    _check_port(port)
    # The training program fetches batches from here, perhaps from another machine.
    host = check_answers(dispatcher, '--dispatcher')
    if bind == LOOPBACK and not ipaddress.ip_address(host.strip('[]')).is_loopback:
        raise UserError(
            f'--bind must let other machines connect, because the dispatcher {dispatcher} is not '
            f'on the loopback interface; found --bind={bind}. Use --bind={EVERYWHERE} in a network '
            'that you trust.'
        )

    import tensorflow as tf

    service = tf.data.experimental.service
    place = f'{host}:%port%'  # TensorFlow puts the port in.
    config = service.WorkerConfig(
        dispatcher_address=dispatcher.removeprefix('grpc://'),
        worker_address=place,
        data_transfer_address=place,
        port=port,
    )
    with _bound_to(bind):
        server = service.WorkerServer(config)
    return server, f'Worker at {host} of {dispatcher}; train with --tf_data_service={dispatcher}'


@contextlib.contextmanager
def _bound_to(bind: str) -> Iterator[None]:
    """Restricts servers that are started within this context to `bind`.

    TensorFlow's servers always listen on all interfaces. So, as soon as one listens, the kernel is
    told to accept its connections from the loopback interface only.
    """
    before = _listening()
    yield
    if bind == EVERYWHERE:
        return
    try:
        found = _listening() - before
        if not found:
            raise OSError('its socket was not found')
        for number in found:
            with socket.socket(fileno=os.dup(number)) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo\0')
    except (OSError, AttributeError) as error:  # not Linux, or before 5.7
        raise UserError(
            f'--bind={bind} keeps other machines out, which this system does not support '
            f'({error}). Use --bind={EVERYWHERE} behind a firewall.'
        ) from error


def _listening() -> set[int]:
    """File descriptors of this process's listening sockets."""
    found = set()
    for entry in _OWN_FILES.iterdir() if _OWN_FILES.exists() else ():
        number = int(entry.name)
        with contextlib.suppress(OSError):  # closed meanwhile
            # Else `socket.socket` would raise an error and leave the copy open.
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as candidate:
                if candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.add(number)
    return found


def _check_port(port: int) -> None:
    # TensorFlow would share a port that is in use, and each server would get some of the calls.
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(('', port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f'--port must be a free port; cannot listen on {port} ({error}).'
        ) from error


def main(arguments: Sequence[str]) -> int:
    """Runs a dispatcher or a worker until SIGINT or SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m data.service',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest='kind', required=True)
    dispatcher = kinds.add_parser('dispatcher', help='distributes the work; start one')
    worker = kinds.add_parser('worker', help='makes batches; start as many as you like')
    worker.add_argument('--dispatcher', required=True, help='grpc://host:port')
    for kind in (dispatcher, worker):
        kind.add_argument('--port', type=int, default=0, help='to listen on; 0: any free port')
        kind.add_argument(
            '--bind',
            default=LOOPBACK,
            choices=(LOOPBACK, EVERYWHERE),
            help=f'who can connect: this machine only, or all ({EVERYWHERE}); default: %(default)s',
        )
    given = parser.parse_args(arguments)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        _serve(given)
    except UserError as error:
        parser.error(str(error))
    return 0


def _serve(given: argparse.Namespace) -> None:
    """Runs a server until SIGINT or SIGTERM."""
    # Blocked before any thread starts, so that the signals reach only `sigwait`.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDED_BY)
    # SLURM's warning before the time limit: training still needs batches to finish its step.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        if given.kind == 'dispatcher':
            server, message = start_dispatcher(given.port, given.bind)
        else:
            server, message = start_worker(given.dispatcher, given.port, given.bind)
        print(message, flush=True)
        signal.sigwait(_ENDED_BY)
        del server
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
