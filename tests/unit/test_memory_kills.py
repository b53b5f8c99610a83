"""Which killed workers the log says lacked memory."""

import pytest

from embedding_api.server import memory_kills
from embedding_api.server.memory_kills import MemoryKills


@pytest.fixture
def kernel(monkeypatch):
    """What the control group tells of the kernel's kills."""
    kernel = {"kills": 2, "limit": 2**29}
    monkeypatch.setattr(memory_kills.cgroup, "n_oom_kills", lambda: kernel["kills"])
    monkeypatch.setattr(memory_kills.cgroup, "memory_limit", lambda: kernel["limit"])
    return kernel


def test_a_worker_is_said_to_lack_memory_only_if_the_kernel_counted_its_kill(kernel, caplog):
    kills = MemoryKills()
    kills.note_end(7, was_killed=True)
    assert caplog.messages == []
    kernel["kills"] = 3
    kills.note_end(8, was_killed=True)
    kills.note_end(9, was_killed=True)
    (message,) = caplog.messages
    assert "worker 8 was killed for lack of memory, by SIGKILL from the kernel" in message
    assert "may use 512 MB; give the service more memory" in message


def test_a_worker_that_ended_by_itself_was_not_killed(kernel, caplog):
    """Given a kill of another process of the group, then no later end of a worker is taken for it."""
    kills = MemoryKills()
    kernel["kills"] = 3
    kills.note_end(7, was_killed=False)
    kills.note_end(8, was_killed=True)
    assert caplog.messages == []


def test_without_a_limit_none_is_named(kernel, caplog):
    kills = MemoryKills()
    kernel.update(kills=3, limit=None)
    kills.note_end(7, was_killed=True)
    assert "from the kernel; give the service more memory" in caplog.text
