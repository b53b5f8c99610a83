"""Responses that wait for their clients: bytes and pieces of files, in order, even if a client reads only a little."""

import socket

import pytest

from embedding_api.server.outbox import Outbox


@pytest.fixture
def ends():
    client, server = socket.socketpair()
    server.setblocking(False)
    with client, server:
        yield client, server


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 8000)
    with (tmp_path / "file").open("rb") as file:
        yield file


def test_bytes_and_files_are_sent_in_their_order_to_a_slow_client(ends, file):
    client, server = ends
    outbox = Outbox()
    outbox.sendall(b"head")
    outbox.sendfile(file, 1, 2_000_000)
    file.close()
    outbox.sendall(b"tail")
    assert (outbox.n_bytes, outbox.is_sending_file) == (8, False)
    received = bytearray()
    while not outbox.send(server):
        received += client.recv(65_536)
    assert (outbox.n_bytes, outbox.is_sending_file, outbox.n_sent_bytes) == (0, False, 2_000_008)
    server.close()
    while piece := client.recv(65_536):
        received += piece
    assert bytes(received) == b"head" + (bytes(range(256)) * 8000)[1:2_000_001] + b"tail"


def test_a_file_that_has_become_shorter_breaks_the_response_off(ends, file):
    outbox = Outbox()
    outbox.sendfile(file, 2_000_000, 100_000)
    with pytest.raises(OSError, match="shorter"):
        outbox.send(ends[1])
    outbox.clear()
    assert outbox.send(ends[1])
