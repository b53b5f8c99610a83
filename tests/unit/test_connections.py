"""A worker's connections, with a host that only records requests. A connection holds nothing longer than it must."""

import contextlib
import selectors
import socket

import pytest
from gunicorn.config import Config

from embedding_api.server.connection import State
from embedding_api.server.connections import Connections
from embedding_api.server.parser import Parser

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Host:
    def __init__(self):
        self.taken = []

    def refusal_of_rest(self, parser):
        return None

    def accept_request(self, connection, error):
        assert error is None
        connection.begin_work()
        self.taken.append(connection)


def new_parser(client):
    return Parser(Config(), client, 10**6, {("POST", "/files"): 100})


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def poller():
    with selectors.DefaultSelector() as poller:
        yield poller


@pytest.fixture
def connections(poller, host):
    limits = {"keepalive_s": 2, "client_timeout_s": 30}
    return Connections(poller, new_parser, host.refusal_of_rest, host.accept_request, **limits)


@pytest.fixture
def arrived(poller, connections, host):
    """A client whose request is running, and the worker's end of its connection."""
    client, here = socket.socketpair()
    connections.add(here, ("127.0.0.1", 1), ("127.0.0.1", 2))
    client.sendall(REQUEST)
    turn(poller)
    (connection,) = host.taken
    yield client, connection
    client.close()
    here.close()


def turn(poller, wait_s=1):
    for key, _ in poller.select(wait_s):
        key.data(key.fileobj)


def assert_nothing_is_held(connections, connection):
    assert (connections.n_open, connections.n_held_bytes, connections.n_unread_bytes) == (0, 0, 0)
    assert connection.work is None


def test_a_response_that_was_sent_frees_its_memory_and_keeps_the_connection(poller, connections, host, arrived):
    client, connection = arrived
    connection.outbox.sendall(b"answer")
    connections.finish(connection)
    assert client.recv(10) == b"answer"
    assert connection.state is State.ARRIVING
    assert (connections.n_open, connections.n_held_bytes) == (1, 0)
    # An idle connection holds neither its last request nor the response.
    assert connection.work is None
    client.close()
    turn(poller)
    assert_nothing_is_held(connections, connection)


@pytest.mark.parametrize(("path", "n_held_bytes"), [(b"/", len(REQUEST)), (b"/files", len(REQUEST) + 5 - 2)])
def test_only_a_body_in_memory_is_counted_and_each_is_closed_with_its_request(
    poller, connections, host, path, n_held_bytes
):
    client, here = socket.socketpair()
    connections.add(here, ("127.0.0.1", 1), ("127.0.0.1", 2))
    client.sendall(REQUEST.replace(b"/", path, 1))
    turn(poller)
    (connection,) = host.taken
    body = connection.work.body
    assert (body.read(), connections.n_held_bytes) == (b"{}", n_held_bytes)
    connections.finish(connection)
    assert body.closed
    assert connections.n_held_bytes == 0
    client.close()
    turn(poller)


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_client_that_left_before_its_response_is_closed(poller, connections, host, arrived, is_noticed):
    client, connection = arrived
    client.close()
    if is_noticed:
        turn(poller)
    connection.outbox.sendall(b"answer")
    connections.finish(connection)
    assert_nothing_is_held(connections, connection)


def test_a_client_that_leaves_in_the_middle_of_its_response_is_closed(poller, connections, host, arrived):
    client, connection = arrived
    connection.outbox.sendall(b"a" * 10_000_000)
    connections.finish(connection)
    assert connections.n_unread_bytes > 9_000_000
    client.close()
    turn(poller)
    assert_nothing_is_held(connections, connection)


def test_the_client_that_has_taken_longest_is_closed_when_too_much_is_unread(poller, connections, host, monkeypatch):
    """Given three clients that do not read, when their responses are too large, then only the first is closed."""
    monkeypatch.setattr("embedding_api.server.connections.MAX_UNREAD_BYTES", 25_000_000)
    clients = []
    for n in range(3):
        client, here = socket.socketpair()
        clients.append(client)
        connections.add(here, ("127.0.0.1", 1), ("127.0.0.1", 2))
        client.sendall(REQUEST)
        turn(poller)
        host.taken[n].outbox.sendall(b"a" * 10_000_000)
        connections.finish(host.taken[n])
        connections.expire()
    assert [connection.state is State.CLOSED for connection in host.taken] == [True, False, False]
    for client in clients:
        client.close()
    turn(poller)
    turn(poller)
    assert (connections.n_open, connections.n_unread_bytes) == (0, 0)


def test_requests_that_are_sent_ahead_are_read_when_there_is_room(poller, connections, host, monkeypatch):
    """Given a client that sends many requests and reads the responses, then the worker holds only some requests."""
    monkeypatch.setattr("embedding_api.server.connections.MAX_AHEAD_BYTES", 1000)
    client, here = socket.socketpair()
    client.setblocking(False)
    connections.add(here, ("127.0.0.1", 1), ("127.0.0.1", 2))
    most = n_answered = n_sent = 0
    ahead = b""
    while n_answered < 2000:
        if not ahead and n_sent < 2000:
            ahead = REQUEST * 500
            n_sent += 500
        with contextlib.suppress(BlockingIOError):
            ahead = ahead[client.send(ahead) :] if ahead else ahead
        turn(poller, wait_s=0)
        most = max(most, connections.n_held_bytes)
        while len(host.taken) > n_answered:
            host.taken[n_answered].outbox.sendall(b"answer")
            connections.finish(host.taken[n_answered])
            n_answered += 1
        with contextlib.suppress(BlockingIOError):
            client.recv(10**6)
    # The bytes of one read, 65,536, plus the bound.
    assert most < 70_000
    client.close()
    turn(poller)
