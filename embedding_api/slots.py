"""Where the processes of one server count: files in a folder of the server's own, one set for each worker slot.

prometheus_client keeps a process's numbers in files that other processes read, and calls them after process ids: every
worker that was ever replaced would leave its files to be read at each scrape. Here a worker has a slot, the lowest that
is free, and goes on counting where the one before it in that slot ended.
"""

import atexit
import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path

from prometheus_client import multiprocess, values

_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder in it is made for this server alone, by mkdtemp

# A few hundred KB for each of as many slots as most servers have.
_ROOM_BYTES = 16 * 2**20

# Where nobody shares, a process counts for itself, even if the environment names a folder of another server's.
values.ValueClass = values.MutexValue

# The slot of this process; what the master itself counts is not a worker's.
_slot = "master"
_taken: set[int] = set()
_folder: Path | None = None


def share() -> None:
    """Lets all processes forked from this one count together; before `metrics` is imported. Again it changes nothing.

    Raises:
        OSError: There is nowhere to make the folder.
        RuntimeError: `metrics` is imported already, and counts for this process alone.
    """
    global _folder
    if _folder is not None:
        return
    if "embedding_api.metrics" in sys.modules:
        raise RuntimeError("metrics were made before they could be shared; this is a bug")
    # Pages of memory, where there is such a folder: what is counted must never wait for a disk. Without room in it, the
    # first write to a page would be the end of the process.
    has_room = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    memory = _MEMORY if has_room else None
    _folder = Path(tempfile.mkdtemp(prefix="memementor-embeddings-", dir=memory))
    # By this the library finds the folder; what was inherited is another server's.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_folder)
    values.ValueClass = values.MultiProcessValue(lambda: _slot)  # type: ignore[no-untyped-call]
    atexit.register(_remove, _folder, os.getpid())


def folder() -> Path | None:
    """The folder of the server's numbers; None if this process counts for itself alone."""
    return _folder


def give_to(uid: int, gid: int) -> None:
    """Lets workers that run as another user count."""
    if _folder is not None and os.geteuid() == 0:
        os.chown(_folder, uid, gid)


def take() -> int:
    """The lowest free slot, for a worker that is about to be forked; the master gives it back with `leave`."""
    slot = next(number for number in itertools.count() if number not in _taken)
    _taken.add(slot)
    return slot


def become(slot: int) -> None:
    """From now on this process, which was just forked, counts in its slot."""
    global _slot
    _slot = str(slot)


def leave(slot: int) -> None:
    """The worker of a slot is gone: what it had in hand is no more, and what it counted stays."""
    _taken.discard(slot)
    if _folder is not None:
        multiprocess.mark_process_dead(slot, str(_folder))  # type: ignore[no-untyped-call]


def n_taken() -> int:
    """How many workers there are."""
    return len(_taken)


def _remove(folder: Path, owner: int) -> None:
    # Forked workers end with the same handlers.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
