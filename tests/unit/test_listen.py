"""A start finds ports that are in use. The announcement names the service's addresses."""

import logging
import socket
import sys
from types import SimpleNamespace

import pytest

from embedding_api.errors import AddressError
from embedding_api.server import listen
from embedding_api.settings import load_settings


@pytest.fixture(autouse=True)
def _as_at_a_start(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gunicorn", "wsgi:app"])
    for name in ("GUNICORN_CMD_ARGS", "GUNICORN_FD", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(listen, "_announced", None)


@pytest.fixture
def taken(monkeypatch):
    """A port that is in use, as PORT in the settings."""
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


def test_a_unix_socket_that_somebody_listens_on_is_refused_and_one_that_is_left_is_not(monkeypatch, tmp_path):
    path = str(tmp_path / "s")
    monkeypatch.setattr(sys, "argv", ["gunicorn", "-b", f"unix:{path}"])
    listen.refuse_used_addresses(load_settings())
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        # There is room for one connection, which the first attempt takes. The second must be refused nevertheless.
        other.listen(0)
        for _ in range(2):
            with pytest.raises(AddressError, match=f"cannot listen on unix:{path}: .* set another path with -b"):
                listen.refuse_used_addresses(load_settings())
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


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("127.0.0.1:99999", r"cannot listen on 127\.0\.0\.1 port 99999: .*check Gunicorn's -b"),
        ("a..b:80", r"cannot listen on a\.\.b port 80: .*check Gunicorn's -b"),
        (
            "unix:/" + "a" * 200,
            r"cannot listen on unix:/a+: AF_UNIX path too long; set another path",
        ),
        ("127.0.0.1:http", r"Gunicorn cannot listen on what -b says: 'http' is not a valid port"),
    ],
)
def test_what_can_be_no_address_is_told_in_a_line(monkeypatch, told, said):
    monkeypatch.setattr(sys, "argv", ["gunicorn", "-b", told])
    with pytest.raises(AddressError, match=said):
        listen.refuse_used_addresses(load_settings())


def listening(*sockets, told=(("127.0.0.1", 8000),), systemd=False):
    """Return a fake of Gunicorn's arbiter whose sockets have these names."""
    named = [SimpleNamespace(sock=SimpleNamespace(getsockname=lambda name=name: name)) for name in sockets]
    return SimpleNamespace(LISTENERS=named, cfg=SimpleNamespace(address=list(told)), systemd=systemd)


def test_a_running_master_reads_its_configuration_again_without_refusing_itself(taken):
    settings = load_settings()
    address = ("127.0.0.1", settings.port)
    listen.announce(listening(address, told=[address]), settings)
    listen.refuse_used_addresses(settings)


def test_a_running_master_refuses_what_it_could_not_listen_on(monkeypatch, taken):
    address = ("127.0.0.1", free := load_settings().port + 1)
    listen.announce(listening(address, told=[address]), load_settings())
    with pytest.raises(AddressError, match="stop what listens there, or set another PORT"):
        listen.refuse_used_addresses(load_settings())
    assert free != taken


def test_a_running_master_cannot_give_its_port_another_host(monkeypatch, taken):
    address = ("127.0.0.1", taken)
    listen.announce(listening(address, told=[address]), load_settings())
    # No socket of this service has that address, so the check tries it. It fails, because 0.0.0.0 includes an address
    # where the port is in use.
    monkeypatch.setenv("HOST", "0.0.0.0")
    with pytest.raises(AddressError, match=r"cannot listen on 0\.0\.0\.0 port .*; restart the service"):
        listen.refuse_used_addresses(load_settings())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (("127.0.0.1", 8000), "ready at http://127.0.0.1:8000; try: curl http://127.0.0.1:8000/v1/embeddings"),
        (("0.0.0.0", 80), "ready at http://127.0.0.1:80;"),
        (("::", 80, 0, 0), "ready at http://[::1]:80;"),
        ("/run/app.sock", "try: curl --unix-socket /run/app.sock http://localhost/v1/embeddings -d"),
        (b"\0app", "try: curl --abstract-unix-socket app http://localhost/v1/embeddings -d"),
    ],
)
def test_the_announcement_tells_an_address_that_can_be_asked(caplog, address, said):
    with caplog.at_level(logging.INFO):
        listen.announce(listening(address), load_settings())
    assert said in caplog.text


def test_the_announcement_asks_for_the_key_and_does_not_tell_it(caplog, monkeypatch):
    monkeypatch.setenv("API_KEY_SECRET", "the-key")
    with caplog.at_level(logging.INFO):
        listen.announce(listening(("0.0.0.0", 8000)), load_settings())
    assert "$API_KEY_SECRET" in caplog.text
    assert "the-key" not in caplog.text
    assert "anyone" not in caplog.text
    assert "only this machine" not in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        ("127.0.0.1", 80),
        ("127.9.9.9", 80),
        ("::1", 80, 0, 0),
        ("::ffff:127.0.0.1", 80, 0, 0),
        "/run/app.sock",
        b"\0app",
    ],
    ids=str,
)
def test_loopback_and_unix_sockets_are_for_this_machine_alone(monkeypatch, caplog, address):
    """The announcement depends on the sockets, and not on HOST."""
    monkeypatch.setenv("HOST", "0.0.0.0")
    with caplog.at_level(logging.INFO):
        listen.announce(listening(address), load_settings())
    assert "no key is needed, and only this machine can ask" in caplog.text
    assert "anyone" not in caplog.text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("0.0.0.0", 80), "0.0.0.0:80"),
        (("::", 80, 0, 0), "[::]:80"),
        (("::ffff:0.0.0.0", 80, 0, 0), "[::ffff:0.0.0.0]:80"),
        (("192.168.0.7", 80), "192.168.0.7:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
    ],
    ids=str,
)
def test_an_address_beyond_loopback_is_warned_about_without_a_key(caplog, address, shown):
    listen.announce(listening("/run/app.sock", ("127.0.0.1", 80), address), load_settings())
    (warned,) = (record for record in caplog.records if record.levelname == "WARNING")
    said = f"anyone who reaches {shown} can use this service: set API_KEY_SECRET, or set HOST to 127.0.0.1"
    assert warned.getMessage() == said
    assert "only this machine" not in caplog.text


@pytest.mark.parametrize(
    ("argv", "systemd", "variables", "cure"),
    [
        (["-b", "0.0.0.0:80"], False, {}, "set API_KEY_SECRET, or set Gunicorn's -b to 127.0.0.1:PORT"),
        ([], True, {}, "set API_KEY_SECRET, or set ListenStream of its systemd socket to 127.0.0.1:PORT"),
        ([], False, {"API_KEY_SECRET": "k", "REQUIRE_AUTH": "false"}, "unset REQUIRE_AUTH, or set HOST to 127.0.0.1"),
    ],
)
def test_the_warning_says_how_to_mend_it_for_who_chose_the_address(monkeypatch, caplog, argv, systemd, variables, cure):
    monkeypatch.setattr(sys, "argv", ["gunicorn", *argv])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    listen.announce(listening(("0.0.0.0", 80), systemd=systemd), load_settings())
    assert f"can use this service: {cure}" in caplog.text


def test_it_is_said_again_when_the_address_changes_and_not_otherwise(caplog):
    settings = load_settings()
    with caplog.at_level(logging.INFO):
        for port in (80, 80, 81):
            address = ("127.0.0.1", port)
            listen.announce(listening(address, told=[address]), settings)
    assert [caplog.text.count(f"ready at http://127.0.0.1:{port};") for port in (80, 81)] == [1, 1]


def test_sockets_that_workers_open_are_judged_by_what_gunicorn_was_told(caplog):
    listen.announce(listening(told=[("0.0.0.0", 80)]), load_settings())
    assert "anyone who reaches 0.0.0.0:80" in caplog.text
