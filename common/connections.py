"""Whether anything answers at an address, within a time; needs no TensorFlow.

TensorFlow itself asks again and again, for minutes or for ever, and says nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from common.errors import UserError

Result = TypeVar('Result')

# HTTP/2, which gRPC speaks: both sides begin with a frame of settings, here empty (RFC 9113,
# sections 3.4 and 6.5). So every gRPC server can be told from what merely accepts connections.
SETTINGS_FRAME = b'\0\0\0\4\0\0\0\0\0'
_PREFACE = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + SETTINGS_FRAME
_SETTINGS_TYPE = SETTINGS_FRAME[3]

SECONDS_TO_ANSWER = 5.0  # of a server that is there
_SECONDS_BETWEEN_TRIES = 0.2


def ask(host: str, port: int, seconds: float = SECONDS_TO_ANSWER) -> str:
    """Asks a gRPC server for a sign of life.

    Returns:
        This machine's address as it is seen from there.

    Raises:
        OSError: if nothing answers within `seconds`, or something else than a gRPC server does.
    """
    with socket.create_connection((host, port), seconds) as connection:
        connection.sendall(_PREFACE)
        answer = b''
        while len(answer) < len(SETTINGS_FRAME):
            more = connection.recv(len(SETTINGS_FRAME) - len(answer))
            if not more:
                raise ConnectionError('the connection is closed at once')
            answer += more
        if answer[3] != _SETTINGS_TYPE:
            raise ConnectionError('what listens there is no gRPC server')
        return connection.getsockname()[0]


def wait_for(
    addresses: Sequence[tuple[str, int]], seconds: float
) -> dict[tuple[str, int], OSError]:
    """Asks the servers at all `addresses` until each has answered once.

    Args:
        addresses: (host, port) pairs.
        seconds: to wait, altogether.

    Returns:
        Those that never answered, and why.
    """
    end = time.monotonic() + seconds
    missing: dict[tuple[str, int], OSError] = dict.fromkeys(addresses, TimeoutError('timed out'))
    while True:
        for address in list(missing):
            left = min(SECONDS_TO_ANSWER, end - time.monotonic())
            try:
                ask(*address, max(left, _SECONDS_BETWEEN_TRIES))
                del missing[address]
            except OSError as error:
                missing[address] = error
        if not missing or time.monotonic() >= end:
            return missing
        time.sleep(_SECONDS_BETWEEN_TRIES)


@contextlib.contextmanager
def answering(port: int) -> Iterator[None]:
    """Answers as a gRPC server does, at `port`, until the real one takes its place.

    Raises:
        OSError: if the port is taken.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(('', port), family=family, dualstack_ipv6=both)
    # `close` would not wake a thread that waits for a connection.
    server.settimeout(_SECONDS_BETWEEN_TRIES)
    closing = threading.Event()

    def answer() -> None:
        while not closing.is_set():
            with contextlib.suppress(OSError):  # none came, or it went away again
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(SECONDS_TO_ANSWER)
                    connection.recv(len(_PREFACE))  # what is not read would break the answer off
                    connection.sendall(SETTINGS_FRAME)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()
        server.close()


def bounded(function: Callable[[], Result], seconds: float) -> Result:
    """What `function` returns, if it does within `seconds`.

    It runs in a thread of its own, which continues if it takes longer: TensorFlow's calls can't be
    interrupted.

    Raises:
        TimeoutError: if it takes longer.
    """
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except concurrent.futures.TimeoutError:
        if future.done():  # the function's own
            raise
        raise TimeoutError(f'no answer within {seconds:g} s') from None


def split_address(address: str, flag: str) -> tuple[str, int]:
    """Host and port of 'grpc://host:port'.

    Args:
        address: what was given.
        flag: where, for the message.

    Raises:
        UserError: if it is not written like that.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number or too large, or half a pair of brackets
        host, port = None, None
    if not host or not port or address != f'grpc://{parts.netloc}' or '@' in address:
        raise UserError(f'{flag} must be an address like grpc://host:5050; found {address!r}.')
    return host, port
