"""Ports that are taken are found out; the announcement tells where to ask."""

import logging
import socket
import sys

import pytest

from embedding_api import listen
from embedding_api.config import load_settings
from embedding_api.errors import AddressError


@pytest.fixture
def taken(monkeypatch):
    """A taken port, in the settings."""
    monkeypatch.setattr(sys, "argv", ["gunicorn", "wsgi:app"])
    for name in ("GUNICORN_CMD_ARGS", "GUNICORN_FD", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("PORT", str(other.getsockname()[1]))
        yield other.getsockname()[1]


def test_a_taken_port_is_refused_with_host_port_and_cure(taken):
    with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1 port {taken}: .*set another PORT"):
        listen.refuse_used_addresses(load_settings())


def test_gunicorns_command_line_wins(taken, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gunicorn", "-b", "unix:/tmp/x.sock", "wsgi:app"])
    listen.refuse_used_addresses(load_settings())


def test_gunicorns_environment_wins_over_the_settings(taken, monkeypatch):
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--bind=unix:/tmp/x.sock")
    listen.refuse_used_addresses(load_settings())
    monkeypatch.setattr(sys, "argv", ["gunicorn", "-b", f"127.0.0.1:{taken}"])
    with pytest.raises(AddressError):
        listen.refuse_used_addresses(load_settings())


@pytest.mark.parametrize("option", ["--reuse-port", "--check-config"])
def test_a_port_that_may_be_shared_or_is_not_used_is_not_looked_for(taken, monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["gunicorn", option])
    listen.refuse_used_addresses(load_settings())


def test_an_address_that_is_not_here_is_told_otherwise(taken, monkeypatch):
    monkeypatch.setenv("HOST", "192.0.2.1")
    with pytest.raises(AddressError, match=r"cannot listen on 192\.0\.2\.1 port .*check HOST"):
        listen.refuse_used_addresses(load_settings())


@pytest.mark.parametrize("name", ["GUNICORN_FD", "LISTEN_FDS"])
def test_a_socket_that_is_handed_over_is_not_looked_for(taken, monkeypatch, name):
    monkeypatch.setenv(name, "3")
    listen.refuse_used_addresses(load_settings())


@pytest.fixture(autouse=True)
def _has_not_announced(monkeypatch):
    monkeypatch.setattr(listen, "_is_announced", False)


def test_a_running_master_reads_its_configuration_again_without_refusing_itself(taken):
    settings = load_settings()
    listen.announce(("127.0.0.1", settings.port), settings)
    listen.refuse_used_addresses(settings)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (("127.0.0.1", 8000), "ready at http://127.0.0.1:8000; try: curl http://127.0.0.1:8000/v1/embeddings"),
        (("0.0.0.0", 80), "ready at http://127.0.0.1:80;"),
        (("::", 80, 0, 0), "ready at http://[::1]:80;"),
        ("/run/app.sock", "try: curl --unix-socket /run/app.sock http://localhost/v1/embeddings -d"),
    ],
)
def test_the_announcement_tells_an_address_that_can_be_asked(caplog, address, said):
    with caplog.at_level(logging.INFO):
        listen.announce(address, load_settings())
    assert said in caplog.text


def test_the_announcement_asks_for_the_key_and_does_not_tell_it(caplog, monkeypatch):
    monkeypatch.setenv("API_KEY_SECRET", "the-key")
    with caplog.at_level(logging.INFO):
        listen.announce(("127.0.0.1", 8000), load_settings())
    assert "$API_KEY_SECRET" in caplog.text
    assert "the-key" not in caplog.text
