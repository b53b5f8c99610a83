"""Lack of memory: the kernel really kills a worker, in a control group that the test makes."""

import contextlib
import http.client
import json
import os
import re
from pathlib import Path

import psutil
import pytest

from tests.server.conftest import MINILM, until

GROUPS = Path("/sys/fs/cgroup")
ROOM_MB = 64


class Group:
    """A control group that can limit memory, in the version of control groups that this machine has.

    Raises:
        OSError: This machine does not allow a new control group.
    """

    def __init__(self) -> None:
        is_v2 = (GROUPS / "cgroup.controllers").exists()
        self.folder = GROUPS / ("" if is_v2 else "memory") / f"memementor-test-{os.getpid()}"
        self._limit, self._anonymous = ("max", "anon") if is_v2 else ("limit_in_bytes", "total_rss")
        self.folder.mkdir()
        try:
            self.limit(2**40)
        except OSError:
            self.folder.rmdir()
            raise

    def add(self, pid: int) -> None:
        """Add a process. Its later children join the group as well."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def n_anonymous(self) -> int:
        """Return the number of bytes in use that the kernel cannot reclaim."""
        stat = (self.folder / "memory.stat").read_text()
        return int(re.search(rf"^{self._anonymous} (\d+)$", stat, re.MULTILINE)[1])

    def limit(self, n_bytes: int) -> None:
        """Limit the memory that the processes may use together from now on."""
        (self.folder / f"memory.{self._limit}").write_text(str(n_bytes))
        # The processes must not use swap instead.
        for name, text in {"swap.max": "0", "memsw.limit_in_bytes": str(n_bytes)}.items():
            if (file := self.folder / f"memory.{name}").exists():
                file.write_text(text)

    def remove(self) -> None:
        until(lambda: not (self.folder / "cgroup.procs").read_text(), what="the end of its processes")
        self.folder.rmdir()


@pytest.fixture
def group():
    try:
        made = Group()
    except OSError as error:
        pytest.skip(f"no control group that limits memory can be made here: {error}")
    yield made
    made.remove()


@pytest.fixture
def limited(group, launch):
    """A service whose memory limit is a little higher than its use when idle, and that limit."""
    server = launch(wait=False, WORKERS="2")
    group.add(server.process.pid)
    server.wait_until_ready()
    limit = group.n_anonymous() + ROOM_MB * 2**20
    group.limit(limit)
    yield server, limit
    server.kill()


@pytest.mark.fault("out of memory")
def test_a_worker_killed_for_lack_of_memory_is_told_and_replaced_and_one_killed_otherwise_is_not_told(
    limited, observed
):
    server, limit = limited
    first = {worker.pid for worker in server.workers}
    body = json.dumps({"model": MINILM, "input": ["word " * 3000] * 2000})
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.request("POST", "/v1/embeddings", body)
    until(lambda: "for lack of memory" in server.log, what="word of it")
    (line,) = (line for line in server.log.splitlines() if "memory" in line)
    pid = int(re.search(r"ERROR .* Worker \(pid:(\d+)\) was sent SIGKILL! .* killed for lack of memory", line)[1])
    assert pid in first
    assert f"may use {limit // 2**20} MB" in line
    assert "MAX_BODY_BYTES" in line
    until(lambda: len({worker.pid for worker in server.workers} - {pid}) == 2, what="its replacement")
    assert len(server.embed("a cat")) == 1

    psutil.Process((first - {pid}).pop()).kill()
    until(lambda: server.log.count("was sent SIGKILL") == 2, what="word of it")
    until(lambda: len(server.workers) == 2, what="its replacement")
    assert len(server.embed("a cat")) == 1
    assert sum("memory" in line for line in server.log.splitlines()) == 1
    observed("one line says so for the one that the kernel killed, none for the one that we did; both replaced")


def test_the_kernel_prefers_a_worker_to_the_master(limited):
    server, _ = limited

    def score(pid):
        return int(Path(f"/proc/{pid}/oom_score").read_text())

    # The service is ready when its first worker is. The second worker may not have raised its OOM score yet.
    until(lambda: min(score(worker.pid) for worker in server.workers) > score(server.process.pid), what="higher scores")
    assert len(server.workers) == 2
