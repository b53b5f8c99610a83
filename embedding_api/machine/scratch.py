"""Choose the folder of temporary files: those of libraries, and the heartbeat files of workers."""

import os
import tempfile

from embedding_api.errors import StartError

# A folder in memory, where a heartbeat never waits for a disk. A container without a writable /tmp has it, too.
_MEMORY = "/dev/shm"  # noqa: S108 - tempfile makes the names


def prepare() -> None:
    """Put temporary files of this process and its children into memory if no other folder works. torch needs some."""
    if _flaw(None) and not _flaw(_MEMORY):
        os.environ["TMPDIR"] = _MEMORY


def heartbeat_folder() -> str:
    """Return a folder for the heartbeat files of workers.

    Raises:
        StartError: This process can write to no such folder.
    """
    prepare()
    if not _flaw(_MEMORY):
        return _MEMORY
    if flaw := _flaw(None):
        raise StartError(
            f"there is no place for temporary files: {_MEMORY} cannot be written to, and {flaw}; mount a "
            "tmpfs on /tmp, or set TMPDIR to a folder that this user can write to"
        )
    return tempfile.gettempdir()


def _flaw(folder: str | None) -> str:
    """Return why no file can be made in a folder; empty if one can. None stands for the folder of temporary files."""
    try:
        # Permissions do not show that a disk is read-only or full.
        with tempfile.NamedTemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
