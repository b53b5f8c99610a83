"""How many cores this process may really use. Imports the standard library only."""

import os
from pathlib import Path


def count(root: Path = Path("/")) -> int:
    """Whole cores that affinity and control group leave to this process, at least one.

    A quota of 1.5 cores counts as one: a second busy thread would be throttled half of the time.

    Args:
        root: Where `proc` and `sys` are mounted; another folder in tests.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in (_quota_v2(root), _quota_v1(root)) if quota is not None]
    return max(1, min([affinity, *map(int, quotas)]))


def _quota_v2(root: Path) -> float | None:
    """The tightest `cpu.max` between this process's control group and the mount point, in cores."""
    mount = root / "sys/fs/cgroup"
    group = mount / _group(root, "0::").lstrip("/")
    quotas = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(mount):
            break
        quota, period = [*_read(folder / "cpu.max").split(), "max", "max"][:2]
        if quota != "max" and period != "max":
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _quota_v1(root: Path) -> float | None:
    """`cpu.cfs_quota_us` over `cpu.cfs_period_us` in a version 1 hierarchy, in cores."""
    folder = root / "sys/fs/cgroup/cpu"
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _group(root: Path, prefix: str) -> str:
    lines = _read(root / "proc/self/cgroup").splitlines()
    return next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "/")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
