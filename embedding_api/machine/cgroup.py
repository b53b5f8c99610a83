"""Read the control groups of this process, in version 1 and 2. Imports the standard library only."""

from collections.abc import Iterator
from pathlib import Path


def read(controller: str, name: str, root: Path = Path("/")) -> list[str]:
    """Return the content of a file in this process's group and in the groups above it, innermost first.

    No file name exists in both versions, so both are read. Groups without the file are left out, and so are groups that
    cannot be seen: a container may know its path on the host, but see its own group as the root of all groups.

    Args:
        controller: The controller, such as `cpu` or `memory`.
        name: The file, such as `cpu.max`.
        root: The folder where `proc` and `sys` are mounted.
    """
    paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one hierarchy, which names no controller.
        paths.update(dict.fromkeys(controllers.split(","), path))
    mount = root / "sys/fs/cgroup"
    folders = [*_upwards(mount, paths.get("", "/")), *_upwards(mount / controller, paths.get(controller, "/"))]
    return [text for folder in folders if (text := _text(folder / name))]


def n_oom_kills(root: Path = Path("/")) -> int:
    """Return how many processes of this group the kernel has killed for lack of memory; 0 where it does not count."""
    counts = read("memory", "memory.events", root) or read("memory", "memory.oom_control", root) or [""]
    words = counts[0].split()
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit of this process's group and those above it, in bytes; None if there is none."""
    limits = [*read("memory", "memory.max", root), *read("memory", "memory.limit_in_bytes", root)]
    # Version 1 writes "no limit" as the largest number of whole pages.
    return min((int(limit) for limit in limits if limit != "max" and int(limit) < 2**62), default=None)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    group = mount / path.lstrip("/")
    return (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
