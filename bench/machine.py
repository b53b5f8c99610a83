"""The conditions of a measurement: everything that could change its numbers, and the memory of processes."""

import contextlib
import dataclasses
import datetime as dt
import importlib.metadata
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from bench.contestants import OURS
from bench.servers import ROOT
from embedding_api.machine import cores
from embedding_api.settings import Settings

_PACKAGES = ("torch", "openvino", "sentence-transformers", "transformers", "tokenizers", "numpy", "gunicorn", "flask")


def circumstances(settings: Settings) -> dict[str, str]:
    """Return code, time, machine, versions and settings."""
    changed = [
        f"{field.name.upper()}={getattr(settings, field.name)}"
        for field in dataclasses.fields(settings)
        if not field.metadata["secret"]
        and field.name.upper() not in {*OURS, "SUPPORTED_MODELS", "PRECISION"}
        and field.metadata["default"]
        and getattr(settings, field.name) != field.metadata["parse"](field.metadata["default"])
    ]
    return {
        **here(),
        "settings": ", ".join([f"model {settings.supported_models[0].name}", *changed, "all else default"]),
    }


def here() -> dict[str, str]:
    """Return code, time, machine and versions."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if _is_installed(name)]
    return {
        "commit": commit(),
        "date": dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_cpu()}, {cores.count()} cores usable, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.release()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def commit(checkout: Path = ROOT) -> str:
    """Return the short name of a checkout's commit, with `-dirty` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"


def private_mib(processes: list[psutil.Process]) -> list[float]:
    """Return the private memory of each process (USS) in MiB, from the kernel's own sum over its mappings."""
    return [memory_kb(process.pid, "Private_Clean", "Private_Dirty") / 1024 for process in processes]


def memory_kb(pid: int, *entries: str) -> int:
    """Return the sum of entries of a process's smaps_rollup, in KiB."""
    found: Mapping[str, str] = dict(
        re.findall(r"^(\w+): +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    )
    return sum(int(found[entry]) for entry in entries)


def mapped_kb(pid: int, folder: Path) -> float:
    """Return the resident memory of files in a folder in KiB; a page that n processes share counts as 1/n."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE)
    ours = [mapping for mapping in mappings if str(folder) in mapping.partition("\n")[0]]
    return sum(float(kb) for mapping in ours for kb in re.findall(r"^Pss: +(\d+) kB$", mapping, re.MULTILINE))


class Others:
    """Measures the processor time of other work on this machine, which makes every other figure less reliable."""

    def __init__(self) -> None:
        self._started, self._used_s = time.monotonic(), _used_by_others_s()

    def cores(self) -> float:
        """Return the cores that other work used, on average since the start."""
        return self.used_s() / (time.monotonic() - self._started)

    def used_s(self) -> float:
        """Return the processor time of other work since the start, in seconds over all cores."""
        return max(0.0, _used_by_others_s() - self._used_s)


def idle_cores(wait_s: float = 2.0) -> float:
    """Return the cores that idle contestants use, measured over some seconds."""
    before, started = _used_by_us_s(), time.monotonic()
    time.sleep(wait_s)
    return (_used_by_us_s() - before) / (time.monotonic() - started)


def _used_by_others_s() -> float:
    total = psutil.cpu_times()
    busy_s = sum(total) - total.idle - getattr(total, "iowait", 0) - getattr(total, "guest", 0)
    return float(busy_s - _used_by_us_s())


def _used_by_us_s() -> float:
    us = psutil.Process()
    times = []
    for process in (us, *us.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times.append(process.cpu_times())
    return float(sum(each.user + each.system for each in times))


def _is_installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(name))
    return False


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for entry in Path("/proc/cpuinfo").read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()
