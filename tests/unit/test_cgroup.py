"""Values from control groups: both versions, on a host, in a container, and on a machine without them."""

import pytest

from embedding_api.machine import cgroup

NO_LIMIT_V1 = str(2**63 - 4096)
V1 = "9:name=systemd:/\n4:memory:/kubepods/pod\n2:cpu,cpuacct:/kubepods/pod\n0::/\n"


@pytest.fixture
def machine(tmp_path):
    """Return a function that writes the control group files of a machine."""

    def write(**files):
        for path, text in {"proc/self/cgroup": files.pop("group", None), **files}.items():
            if text is not None:
                file = tmp_path / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        return tmp_path

    return write


def test_a_version_2_group_has_a_count_of_kills_and_a_limit(machine):
    root = machine(
        group="0::/service\n",
        **{
            "sys/fs/cgroup/service/memory.events": "low 0\nhigh 0\nmax 31\noom 4\noom_kill 3\noom_group_kill 1\n",
            "sys/fs/cgroup/service/memory.max": "536870912\n",
        },
    )
    assert cgroup.n_oom_kills(root) == 3
    assert cgroup.memory_limit(root) == 2**29


def test_a_version_1_group_has_a_count_of_kills_and_a_limit(machine):
    root = machine(
        group=V1,
        **{
            "sys/fs/cgroup/memory/kubepods/pod/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 9\n",
            "sys/fs/cgroup/memory/kubepods/pod/memory.limit_in_bytes": NO_LIMIT_V1,
            "sys/fs/cgroup/memory/kubepods/memory.limit_in_bytes": "268435456\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1,
        },
    )
    assert cgroup.n_oom_kills(root) == 2
    assert cgroup.memory_limit(root) == 2**28


@pytest.mark.parametrize(
    ("group", "folder", "events", "limit"),
    [
        ("0::/\n", "sys/fs/cgroup", "memory.events", "memory.max"),
        ("0::/system.slice/docker-1f.scope\n", "sys/fs/cgroup", "memory.events", "memory.max"),
        ("4:memory:/docker/1f\n", "sys/fs/cgroup/memory", "memory.oom_control", "memory.limit_in_bytes"),
    ],
    ids=["version 2", "version 2, path of the host", "version 1, path of the host"],
)
def test_a_container_reads_its_own_group_where_all_begin(machine, group, folder, events, limit):
    root = machine(group=group, **{f"{folder}/{events}": "oom_kill 7\n", f"{folder}/{limit}": "1048576\n"})
    assert cgroup.n_oom_kills(root) == 7
    assert cgroup.memory_limit(root) == 2**20


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"group": "0::/\n"},
        {"group": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.events": "oom 0\n"},
        {"group": V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1},
    ],
    ids=["no groups", "the host's own", "without a limit", "version 1 without a limit"],
)
def test_without_counts_and_limits_there_are_none(machine, files):
    root = machine(**files)
    assert cgroup.n_oom_kills(root) == 0
    assert cgroup.memory_limit(root) is None
