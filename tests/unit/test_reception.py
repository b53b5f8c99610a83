"""A worker's reception, with a host that only notes what it is given: every request is let go of once."""

import selectors
import socket
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from embedding_api.connection import State
from embedding_api.framing import Verdict
from embedding_api.reception import Reception

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Host:
    def __init__(self):
        self.taken, self.n_let_go = [], 0

    def has_room(self, n_bytes):
        return True

    def take(self, connection, verdict):
        assert verdict is Verdict.WHOLE
        connection.begin(Config(), None)
        self.taken.append(connection)

    def let_go(self, connection):
        self.n_let_go += 1
        connection.end()


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def reception(host):
    poller = selectors.DefaultSelector()
    settings = SimpleNamespace(client_timeout_s=30, max_body_bytes=10**6)
    yield Reception(poller, Config(), settings, host)
    poller.close()


@pytest.fixture
def arrived(reception, host):
    """A client whose request is in work, and the worker's end of its connection."""
    client, here = socket.socketpair()
    reception.admit(here, ("127.0.0.1", 1), ("127.0.0.1", 2))
    client.sendall(REQUEST)
    turn(reception)
    (connection,) = host.taken
    yield client, connection
    client.close()
    here.close()


def turn(reception):
    for key, _ in reception._poller.select(1):
        key.data(key.fileobj)


def assert_nothing_is_held(reception, host):
    assert (host.n_let_go, reception.n_connections, reception.n_held_bytes) == (1, 0, 0)


def test_an_answer_that_was_sent_lets_go_and_keeps_the_connection(reception, host, arrived):
    client, connection = arrived
    connection.put(b"answer")
    reception.answered(connection)
    assert client.recv(10) == b"answer"
    assert (host.n_let_go, connection.state) == (1, State.ARRIVING)
    client.close()
    turn(reception)
    assert (reception.n_connections, reception.n_held_bytes) == (0, 0)


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_client_that_left_before_its_answer_is_let_go_of(reception, host, arrived, is_noticed):
    client, connection = arrived
    client.close()
    if is_noticed:
        turn(reception)
    connection.put(b"answer")
    reception.answered(connection)
    assert_nothing_is_held(reception, host)


def test_a_client_that_leaves_in_the_middle_of_its_answer_is_let_go_of(reception, host, arrived):
    client, connection = arrived
    connection.put(b"a" * 10_000_000)
    reception.answered(connection)
    assert host.n_let_go == 0
    client.close()
    turn(reception)
    assert_nothing_is_held(reception, host)
