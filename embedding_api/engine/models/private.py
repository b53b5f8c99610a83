"""Folders and files that nobody but this user, and root, can change."""

import os
import stat
from pathlib import Path


def claim(folder: Path) -> None:
    """Make a folder for this user alone, if it is not there.

    Raises:
        PermissionError: Another user can write to the folder, or can put another one in its place.
        OSError: The folder cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    if not is_ours(folder) or not _cannot_be_replaced_in(folder.parent):
        raise PermissionError(f"others can write to {folder} or replace it, and so decide what this service answers")


def is_ours(path: Path) -> bool:
    """Return True if only this user, and perhaps a group (as with Kubernetes' fsGroup), can write; False for a link."""
    status = path.stat(follow_symlinks=False)
    return status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWOTH and not path.is_symlink()


def _cannot_be_replaced_in(folder: Path) -> bool:
    """Return True if only this user and root can replace what this user has in the folder.

    In a folder with the sticky bit only the owner of an entry can replace it.
    """
    status = folder.stat()
    return status.st_uid in (os.geteuid(), 0) and (
        not status.st_mode & stat.S_IWOTH or bool(status.st_mode & stat.S_ISVTX)
    )
