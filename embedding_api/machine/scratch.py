"""Where temporary files go: those of libraries, and the heartbeat files of workers."""

import os
import tempfile

from embedding_api.errors import StartError

# Memory, in which a heartbeat never waits for a disk. Containers have it where they have no /tmp to write to.
_MEMORY = "/dev/shm"  # noqa: S108 - tempfile makes the names


def prepare() -> None:
    """Lets this process and its children make temporary files in memory if they can nowhere else; torch needs some."""
    if _flaw(None) and not _flaw(_MEMORY):
        os.environ["TMPDIR"] = _MEMORY


def heartbeat_folder() -> str:
    """A folder for the heartbeat files of workers.

    Raises:
        StartError: This process can make files in none.
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
    """Why no file can be made in a folder, by default in that of temporary files; empty if one can."""
    try:
        # Permissions alone say nothing of what is read-only or full.
        with tempfile.NamedTemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
