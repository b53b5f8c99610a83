"""A cache of folders that take long to make. Each entry is whole or absent, and only this user can write to it.

Several processes may use one cache at once. Whoever can write to it decides which vectors the service returns.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from embedding_api.engine.models import private
from embedding_api.engine.models.checksums import Checksums, sha256
from embedding_api.errors import ModelLoadError

logger = logging.getLogger(__name__)

# The checksums of an entry's files, written last.
_MANIFEST = "manifest.json"
_UNFINISHED, _LOCK = ".unfinished", ".lock"

# The system's numbers for a full disk, or a full quota of this user.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def obtain(
    folder: Path, key: str, make: Callable[[Path, int], None], checksums: Checksums, *, n_bytes: int = 0
) -> Path:
    """Return a whole entry. Make it if it is absent or damaged.

    Args:
        folder: The folder of the entries; made if it is absent.
        key: The name of the entry, which stands for everything that its content depends on.
        make: Fills an empty folder. Its second argument is the file descriptor of the lock. A child process that
            inherits the lock keeps others from making the same entry, even after this process has ended.
        checksums: Finds damaged files.
        n_bytes: The least size of the entry. `make` is not called where less is free.

    Raises:
        ModelLoadError: The folder cannot be used.
        Exception: What `make` raises; the entry stays absent then.
    """
    try:
        private.claim(folder)
        entry = folder / key
        if _flaw(entry, checksums) is None:
            return entry
        with _locked(folder / f"{key}{_LOCK}") as lock:
            if (flaw := _flaw(entry, checksums)) is None:
                return entry
            if entry.exists():
                logger.warning("the cache's entry %s is damaged (%s); making it again", entry, flaw)
            _sweep(folder)
            _require_room(folder, n_bytes)
            return _make(entry, make, lock)
    except OSError as error:
        cure = "set CACHE_DIR to a folder that this user can write to and others cannot"
        if error.errno in NO_ROOM:
            cure = "free some, or set CACHE_DIR to a folder that has room"
        raise ModelLoadError(
            f"CACHE_DIR={folder.parent} cannot be used ({error.strerror or error}); {cure}, or BACKEND=torch, which is "
            "slower and needs none"
        ) from error


def _flaw(entry: Path, checksums: Checksums) -> str | None:
    """Return what is wrong with an entry, or None if it is whole."""
    try:
        if not private.is_ours(entry):
            return "others can write to it"
        manifest = json.loads((entry / _MANIFEST).read_bytes())
        wrong = [name for name, checksum in manifest.items() if checksums.sha256(entry / name) != checksum]
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    if not manifest:
        return "it holds nothing"
    return f"{wrong[0]} is not what was written" if wrong else None


def _require_room(folder: Path, n_bytes: int) -> None:
    """Raise an OSError where the disk is too full, before `make` works for minutes."""
    disk = shutil.disk_usage(folder)
    # Some network file systems do not know their size, and report 0.
    if disk.total and disk.free < n_bytes:
        raise OSError(errno.ENOSPC, f"{disk.free // 2**20} MB are free, and at least {n_bytes // 2**20} needed")


def _make(entry: Path, make: Callable[[Path, int], None], lock: int) -> Path:
    unfinished = entry.with_name(entry.name + _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    try:
        make(unfinished, lock)
        _seal(unfinished)
        _remove(entry)
        unfinished.rename(entry)
        _sync(entry.parent)
        return entry
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove(entry: Path) -> None:
    if entry.is_symlink():
        entry.unlink()
    else:
        shutil.rmtree(entry, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Flush every file to the disk, and write their checksums last."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        _sync(path)
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({path.name: sha256(path) for path in files}))
    _sync(manifest)
    _sync(folder)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished. A living process, such as this one, holds the lock of its own."""
    for unfinished in folder.glob(f"*{_UNFINISHED}"):
        with contextlib.suppress(BlockingIOError), _locked(unfinished.with_suffix(_LOCK), wait=False):
            # The process that held the lock until now may have finished and renamed the folder.
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold a lock. It ends with the last process that has its file descriptor.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is False.
    """
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            logger.info("another process is making the cache's entry %s; waiting for it", path.stem)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
