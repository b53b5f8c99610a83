"""A lack of processes or threads ends a start with one line. A running service tries again."""

import logging
import resource
from types import SimpleNamespace

import pytest
from gunicorn.errors import HaltServer

from embedding_api.errors import StartError
from embedding_api.server import flags, scarcity
from embedding_api.settings import load_settings


@pytest.fixture(autouse=True)
def _new_server(monkeypatch):
    """Reset the flags, and let no code sleep."""
    for name in ("HAS_SERVED", "LACKS_THREADS"):
        monkeypatch.setattr(flags, name, flags.Flag())
    monkeypatch.setattr(scarcity, "_is_halting", False)
    monkeypatch.setattr(scarcity.time, "sleep", lambda _: None)


@pytest.fixture
def given_up():
    return []


@pytest.fixture
def arbiter(given_up):
    """A fake of Gunicorn's arbiter whose forks the system refuses."""

    def refuse():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    arbiter = SimpleNamespace(spawn_worker=refuse)
    scarcity.guard_forks(arbiter, lambda: given_up.append("worker"))
    return arbiter


def test_a_refused_fork_ends_a_start(arbiter, given_up):
    with pytest.raises(HaltServer) as halt:
        arbiter.spawn_worker()
    assert halt.value.exit_status == 1
    assert "cannot start: the system refuses a process for a worker (Resource temporarily" in halt.value.reason
    assert given_up == ["worker"]


def test_a_refused_fork_costs_a_running_service_one_line(arbiter, given_up, caplog):
    flags.HAS_SERVED.set()
    assert arbiter.spawn_worker() is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert given_up == ["worker"]


def test_a_fork_that_is_not_refused_goes_on():
    arbiter = SimpleNamespace(spawn_worker=lambda: 7)
    scarcity.guard_forks(arbiter, lambda: pytest.fail("it was not refused"))
    assert arbiter.spawn_worker() == 7


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        # 12 seats, two workers, one model, 64 threads: 2 * 12 + 2 * 2 + 1 + 32 + 64 + 1000
        ((256, 100_000), [(1125, 100_000)]),
        ((256, resource.RLIM_INFINITY), [(1125, resource.RLIM_INFINITY)]),
        ((256, 500), [(500, 500)]),
        ((100_000, 100_000), []),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []),
    ],
)
def test_the_limit_on_open_files_is_raised_to_what_a_worker_can_use(monkeypatch, limits, raised):
    monkeypatch.setenv("WORKERS", "2")
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    calls = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, changed: calls.append(changed))
    scarcity.raise_open_files(load_settings())
    assert calls == raised


def test_a_start_with_too_few_open_files_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setenv("WORKERS", "2")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (24, 36))
    with pytest.raises(StartError, match=r"allows 36 open files, and WORKERS=2 needs at least 61; .*ulimit -n"):
        scarcity.raise_open_files(load_settings())


def test_a_worker_without_threads_ends_a_start_once():
    scarcity.halt_without_threads()
    with pytest.raises(SystemExit, match="1"), scarcity.ending_worker():
        raise StartError("the system refuses thread 1")
    with pytest.raises(HaltServer, match="the threads that a worker needs"):
        scarcity.halt_without_threads()
    # The master handles the ends of its other workers while it stops. A second call must do nothing.
    scarcity.halt_without_threads()


def test_a_worker_without_threads_is_tried_again_in_a_running_service(caplog):
    flags.HAS_SERVED.set()
    with pytest.raises(SystemExit, match="1"), scarcity.ending_worker():
        raise StartError("the system refuses thread 1")
    scarcity.halt_without_threads()
    assert "is tried again: the system refuses thread 1" in caplog.text
