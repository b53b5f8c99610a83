"""A worker's reception, with a host that only notes what it is given: nothing is held longer than it must be."""

import contextlib
import selectors
import socket
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from embedding_api.server.connection import State
from embedding_api.server.connections import Reception
from embedding_api.server.framing import Verdict

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Host:
    def __init__(self):
        self.taken = []

    def has_room(self, n_bytes):
        return True

    def take(self, connection, verdict):
        assert verdict is Verdict.WHOLE
        connection.begin(Config(), None)
        self.taken.append(connection)


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


def turn(reception, wait_s=1):
    for key, _ in reception._poller.select(wait_s):
        key.data(key.fileobj)


def assert_nothing_is_held(reception, connection):
    assert (reception.n_connections, reception.n_held_bytes, reception._n_unread_bytes) == (0, 0, 0)
    assert not hasattr(connection, "sock")


def test_an_answer_that_was_sent_is_let_go_of_and_keeps_the_connection(reception, host, arrived):
    client, connection = arrived
    connection.put(b"answer")
    reception.answered(connection)
    assert client.recv(10) == b"answer"
    assert connection.state is State.ARRIVING
    assert (reception.n_connections, reception.n_held_bytes) == (1, 0)
    # An idle connection holds neither its last request nor the answer.
    assert not hasattr(connection, "sock")
    client.close()
    turn(reception)
    assert_nothing_is_held(reception, connection)


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_client_that_left_before_its_answer_is_let_go_of(reception, host, arrived, is_noticed):
    client, connection = arrived
    client.close()
    if is_noticed:
        turn(reception)
    connection.put(b"answer")
    reception.answered(connection)
    assert_nothing_is_held(reception, connection)


def test_a_client_that_leaves_in_the_middle_of_its_answer_is_let_go_of(reception, host, arrived):
    client, connection = arrived
    connection.put(b"a" * 10_000_000)
    reception.answered(connection)
    assert reception._n_unread_bytes > 9_000_000
    client.close()
    turn(reception)
    assert_nothing_is_held(reception, connection)


def test_who_reads_least_long_is_closed_when_too_much_waits_to_be_read(reception, host, monkeypatch):
    """Given three clients that do not read, when their answers are too much, then the first alone is closed."""
    monkeypatch.setattr("embedding_api.server.connections.MAX_UNREAD_BYTES", 25_000_000)
    clients = []
    for n in range(3):
        client, here = socket.socketpair()
        clients.append(client)
        reception.admit(here, ("127.0.0.1", 1), ("127.0.0.1", 2))
        client.sendall(REQUEST)
        turn(reception)
        host.taken[n].put(b"a" * 10_000_000)
        reception.answered(host.taken[n])
        reception.expire()
    assert [connection.state is State.CLOSED for connection in host.taken] == [True, False, False]
    for client in clients:
        client.close()
    turn(reception)
    turn(reception)
    assert (reception.n_connections, reception._n_unread_bytes) == (0, 0)


def test_what_is_sent_ahead_is_read_when_there_is_room_for_it(reception, host, monkeypatch):
    """Given a client that sends many requests and reads the answers, then no more than some of them are held."""
    monkeypatch.setattr("embedding_api.server.connections.MAX_AHEAD_BYTES", 1000)
    client, here = socket.socketpair()
    client.setblocking(False)
    reception.admit(here, ("127.0.0.1", 1), ("127.0.0.1", 2))
    most = n_answered = n_sent = 0
    ahead = b""
    while n_answered < 2000:
        if not ahead and n_sent < 2000:
            ahead = REQUEST * 500
            n_sent += 500
        with contextlib.suppress(BlockingIOError):
            ahead = ahead[client.send(ahead) :] if ahead else ahead
        turn(reception, wait_s=0)
        most = max(most, reception.n_held_bytes)
        while len(host.taken) > n_answered:
            host.taken[n_answered].put(b"answer")
            reception.answered(host.taken[n_answered])
            n_answered += 1
        with contextlib.suppress(BlockingIOError):
            client.recv(10**6)
    # What one read may bring, and the bound.
    assert most < 70_000
    client.close()
    turn(reception)
