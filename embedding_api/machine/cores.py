"""Count the cores that this process may use. Imports the standard library, and `cgroup`."""

import os
from pathlib import Path

from embedding_api.machine import cgroup


def count(root: Path = Path("/")) -> int:
    """Return the whole cores that affinity and control groups allow to this process, at least one.

    A quota of 1.5 cores counts as one: the system would stop a second busy thread half of the time.

    Args:
        root: The folder where `proc` and `sys` are mounted.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *_quotas(root)])))


def _quotas(root: Path) -> list[float]:
    """Return the quotas of this process's groups in cores. Version 2 has them in one file, version 1 in two."""
    pairs = [text.split() for text in cgroup.read("cpu", "cpu.max", root)]
    quotas_us, periods_us = (cgroup.read("cpu", f"cpu.cfs_{name}_us", root) for name in ("quota", "period"))
    pairs += map(list, zip(quotas_us, periods_us, strict=False))
    return [int(quota) / int(period) for quota, period in pairs if quota not in ("max", "-1")]
