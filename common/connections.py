"""Checks whether an address answers within a time limit; needs no TensorFlow.

TensorFlow itself retries silently, for minutes or forever.
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

# gRPC uses HTTP/2, in which both sides begin with a settings frame, here an empty one (RFC 9113,
# sections 3.4 and 6.5). This distinguishes a gRPC server from anything that accepts connections.
SETTINGS_FRAME = b'\0\0\0\4\0\0\0\0\0'
_PREFACE = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + SETTINGS_FRAME
_SETTINGS_TYPE = SETTINGS_FRAME[3]

SECONDS_TO_ANSWER = 5.0  # time limit of one attempt
_SECONDS_BETWEEN_TRIES = 0.2


def ask(host: str, port: int, seconds: float = SECONDS_TO_ANSWER) -> str:
    """Checks that a gRPC server answers.

    Returns:
        The address of this machine on the connection.

    Raises:
        OSError: if nothing answers within `seconds`, or something other than a gRPC server does.
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
        seconds: time limit for all of them together.

    Returns:
        Those that did not answer, with the reason.
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
    """Answers at `port` as a gRPC server would, within the context.

    Raises:
        OSError: if the port is taken.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(('', port), family=family, dualstack_ipv6=both)
    # With a timeout, because `close` would not wake a thread that waits for a connection.
    server.settimeout(_SECONDS_BETWEEN_TRIES)
    closing = threading.Event()

    def answer() -> None:
        while not closing.is_set():
            with contextlib.suppress(OSError):  # no connection, or it was closed
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(SECONDS_TO_ANSWER)
                    connection.recv(len(_PREFACE))  # unread bytes would cut off the answer
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
    """The result of `function`, if it returns within `seconds`.

    It runs in a thread of its own, which continues if it takes longer, because TensorFlow's calls
    can't be interrupted.

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
        if future.done():  # the function itself raised it
            raise
        raise TimeoutError(f'no answer within {seconds:g} s') from None


def split_address(address: str, flag: str) -> tuple[str, int]:
    """Host and port of 'grpc://host:port'.

    Args:
        address: the address.
        flag: for the message.

    Raises:
        UserError: if the address has another form.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is not a number or too large, or an unmatched bracket
        host, port = None, None
    if not host or not port or address != f'grpc://{parts.netloc}' or '@' in address:
        raise UserError(f'{flag} must be an address like grpc://host:5050; found {address!r}.')
    return host, port
