"""The number of cores is limited by affinity and control groups, and may be lower than the machine's."""

import os

import pytest

from embedding_api.machine import cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that writes the control group files of a machine with eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def test_affinity_counts_where_there_is_no_quota(machine, tmp_path):
    assert cores.count(tmp_path) == 8


@pytest.mark.parametrize(
    ("quota", "wanted"),
    [
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("max 100000", 8),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_a_version_2_quota_counts_in_whole_cores(machine, tmp_path, quota, wanted):
    machine("sys/fs/cgroup/cpu.max", quota)
    assert cores.count(tmp_path) == wanted


def test_the_tightest_quota_on_the_way_up_counts(machine, tmp_path):
    machine("proc/self/cgroup", "0::/pod/container\n")
    machine("sys/fs/cgroup/pod/cpu.max", "300000 100000")
    machine("sys/fs/cgroup/pod/container/cpu.max", "max 100000")
    assert cores.count(tmp_path) == 3


@pytest.mark.parametrize(("quota", "wanted"), [("400000", 4), ("-1", 8)])
def test_a_version_1_quota_counts_too(machine, tmp_path, quota, wanted):
    machine("sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota)
    machine("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert cores.count(tmp_path) == wanted


def test_a_version_1_quota_of_a_group_below_the_mount_counts(machine, tmp_path):
    machine("proc/self/cgroup", "2:cpu,cpuacct:/service\n")
    machine("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    machine("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    machine("sys/fs/cgroup/cpu/service/cpu.cfs_quota_us", "200000")
    machine("sys/fs/cgroup/cpu/service/cpu.cfs_period_us", "100000")
    assert cores.count(tmp_path) == 2


def test_this_machine_has_at_least_one():
    assert 1 <= cores.count() <= os.cpu_count()


def test_a_system_without_affinity_counts_all_cores(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores.count(tmp_path) == 6
