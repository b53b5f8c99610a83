"""How many cores this process may really use. Imports the standard library only, and what reads control groups."""

import os
from pathlib import Path

from embedding_api.machine import cgroup


def count(root: Path = Path("/")) -> int:
    """Whole cores that affinity and control groups leave to this process, at least one.

    A quota of 1.5 cores counts as one: a second busy thread would be throttled half of the time.

    Args:
        root: Where `proc` and `sys` are mounted; another folder in tests.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *_quotas(root)])))


def _quotas(root: Path) -> list[float]:
    """The quotas of this process's groups, in cores: of version 2 in one file, of version 1 in two."""
    pairs = [text.split() for text in cgroup.read("cpu", "cpu.max", root)]
    quotas_us, periods_us = (cgroup.read("cpu", f"cpu.cfs_{name}_us", root) for name in ("quota", "period"))
    pairs += map(list, zip(quotas_us, periods_us, strict=False))
    return [int(quota) / int(period) for quota, period in pairs if quota not in ("max", "-1")]
