"""Log lines of killed workers: which of them name a lack of memory."""

import logging

import pytest

from embedding_api.server import memory_kills
from embedding_api.server.memory_kills import MemoryKills


@pytest.fixture
def kernel(monkeypatch):
    """A fake control group: its number of out-of-memory kills, and its memory limit."""
    kernel = {"kills": 2, "limit": 2**29}
    monkeypatch.setattr(memory_kills.cgroup, "n_oom_kills", lambda: kernel["kills"])
    monkeypatch.setattr(memory_kills.cgroup, "memory_limit", lambda: kernel["limit"])
    return kernel


def logged(kills, message="Worker (pid:%s) was sent %s! Perhaps out of memory?", *args):
    """Return the message of Gunicorn's log record after the filter."""
    record = logging.makeLogRecord({"msg": message, "args": args or (7, "SIGKILL")})
    assert kills.filter(record)
    return record.getMessage()


def test_a_worker_is_said_to_lack_memory_only_if_the_kernel_counted_its_kill(kernel):
    kills = MemoryKills()
    assert logged(kills) == "Worker (pid:7) was sent SIGKILL!"
    kernel["kills"] = 3
    message = logged(kills)
    assert message.startswith("Worker (pid:7) was sent SIGKILL! ")
    assert "the worker was killed for lack of memory; its control group may use 512 MB; give the service" in message
    assert logged(kills) == "Worker (pid:7) was sent SIGKILL!"


def test_other_lines_stay_as_they_are(kernel):
    kills = MemoryKills()
    kernel["kills"] = 3
    assert logged(kills, "Worker (pid:%s) exited with code %s.", 7, 1) == "Worker (pid:7) exited with code 1."
    assert "lack of memory" in logged(kills)


def test_without_a_limit_none_is_named(kernel):
    kills = MemoryKills()
    kernel.update(kills=3, limit=None)
    assert "for lack of memory; give the service more memory" in logged(kills)
