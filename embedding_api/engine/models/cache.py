"""A folder of things that take long to make: each is a folder named by its key, whole or not there at all.

Several processes may use it at once. Whoever can write to it decides what vectors come out, so it is this user's alone.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

# The checksums of an entry's files, written last.
_MANIFEST = "manifest.json"
_UNFINISHED, _LOCK = ".unfinished", ".lock"

# How the system says that a disk, or this user's part of it, is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class CacheError(Exception):
    """The folder cannot be used; the message says why and what to do."""


def obtain(folder: Path, key: str, make: Callable[[Path, int], None], *, n_bytes: int = 0) -> Path:
    """An entry that is whole, made if need be.

    Args:
        folder: Where the entries are; made if it is not there.
        key: Names everything that the entry depends on.
        make: Fills an empty folder. Its second argument is the lock's file descriptor: a child process that inherits it
            keeps others from making the same entry, should it outlive this process.
        n_bytes: The least that an entry takes; where less is free, `make` is not begun.

    Raises:
        CacheError: The folder cannot be used.
        Exception: What `make` raises; nothing is kept then.
    """
    try:
        _claim(folder)
        entry = folder / key
        if entry.exists() and _flaw(entry) is None:
            return entry
        with _locked(folder / f"{key}{_LOCK}") as lock:
            flaw = _flaw(entry)
            if flaw is None:
                return entry
            if entry.exists():
                logger.warning("the cache's entry %s is damaged (%s); making it again", entry, flaw)
            _sweep(folder, key)
            _require_room(folder, n_bytes)
            return _make(entry, make, lock)
    except OSError as error:
        reason = error.strerror or str(error)
        is_full = error.errno in NO_ROOM
        cure = f"set CACHE_DIR to a folder {'that has room' if is_full else 'that this user can write to'}"
        raise CacheError(
            f"CACHE_DIR={folder.parent} cannot be used ({reason}); {'free some, or ' * is_full}{cure}"
        ) from error


def _claim(folder: Path) -> None:
    """Makes the folder, for this user alone; one that another could have filled or put in its place is refused."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    if not _is_ours(folder) or not _is_safe_above(folder.parent):
        raise CacheError(
            f"CACHE_DIR={folder.parent}: others can write to it or to {folder.name} in it, and so decide what this "
            "service answers; set CACHE_DIR to a folder of this user"
        )


def _is_ours(folder: Path) -> bool:
    """Whether it is this user's, and no link; a group may write, as Kubernetes' fsGroup has it."""
    status = folder.stat(follow_symlinks=False)
    return status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWOTH and not folder.is_symlink()


def _is_safe_above(folder: Path) -> bool:
    """Whether nobody but this user and root can put another folder in the place of one of this user's in it.

    Where the sticky bit is set only the owner of a folder can.
    """
    status = folder.stat()
    return status.st_uid in (os.geteuid(), 0) and (
        not status.st_mode & stat.S_IWOTH or bool(status.st_mode & stat.S_ISVTX)
    )


def _flaw(entry: Path) -> str | None:
    """What is wrong with an entry, or None if it is whole."""
    try:
        if not _is_ours(entry):
            return "others can write to it"
        checksums = json.loads((entry / _MANIFEST).read_bytes())
        wrong = [name for name, checksum in checksums.items() if sha256(entry / name) != checksum]
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    if not checksums:
        return "it holds nothing"
    return f"{wrong[0]} is not what was written" if wrong else None


def _require_room(folder: Path, n_bytes: int) -> None:
    """Finds out that a disk is full before minutes of work, not after."""
    disk = shutil.disk_usage(folder)
    # What knows no sizes, as some network file systems, has no bytes at all.
    if disk.total and disk.free < n_bytes:
        raise OSError(errno.ENOSPC, f"{disk.free // 2**20} MB are free, and at least {n_bytes // 2**20} needed")


def _make(entry: Path, make: Callable[[Path, int], None], lock: int) -> Path:
    unfinished = entry.with_name(entry.name + _UNFINISHED)
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
    """Puts every file on the disk, and last what they should be."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        _sync(path)
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({path.name: sha256(path) for path in files}))
    _sync(manifest)
    _sync(folder)


def _sweep(folder: Path, key: str) -> None:
    """Removes what processes that were killed left unfinished; called with the key's lock, as one at work holds its."""
    for unfinished in folder.glob(f"*{_UNFINISHED}"):
        other = unfinished.name.removesuffix(_UNFINISHED)
        if other == key:
            shutil.rmtree(unfinished)
        else:
            with contextlib.suppress(BlockingIOError), _locked(folder / f"{other}{_LOCK}", wait=False):
                # Whoever held the lock a moment ago may have finished it, and then it has its name no more.
                shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Holds a lock, which ends with the last process that has its file descriptor.

    Raises:
        BlockingIOError: Another holds it, and it was not to be waited for.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            logger.info("another process is making the cache's entry %s; waiting for it", path.stem)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
