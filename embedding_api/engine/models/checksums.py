"""SHA-256 checksums of files. Those of large files are remembered between starts, as long as a file is unchanged.

`sources.py` checks the packaged weights with them. `conversion.py` and `cache.py` make keys of converted models from
them, and check what the cache holds.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from embedding_api.engine.models import private

# Smaller files are hashed at each start: it takes less than a millisecond.
_LEAST_BYTES = 2**20

# Two changes of a file within one tick of the file system's clock leave the same times. Therefore a checksum is
# remembered only if the file's last change was so long before the hashing that a later change must show another time.
# The coarsest clock in use, that of FAT, ticks every 2 s. git calls this problem "racy git".
_TICK_NS = 2_000_000_000

_CHECKSUM = re.compile("[0-9a-f]{64}")

# What is remembered of a file: its identity and its checksum.
_Known = tuple[list[int], str]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checksums:
    """Computes checksums, and remembers those of large files.

    A remembered checksum holds while device, inode, size, mtime and ctime of the file stay the same. Any write, and any
    change of the mtime itself, sets a new ctime, which no program can choose.

    Args:
        folder: Where the record is kept between starts; only in memory if None, or if others can write to the folder.
        clock_ns: The clock of the file system, in nanoseconds since 1970.
    """

    def __init__(self, folder: Path | None = None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._folder = folder
        self._clock_ns = clock_ns
        self._known = self._read()

    def sha256(self, path: Path, *, anew: bool = False) -> str:
        """Return the SHA-256 of a file's content, in hexadecimal.

        Args:
            path: The file.
            anew: True to read the file in any case.
        """
        name, identity, started_ns = os.path.realpath(path), _identity(path), self._clock_ns()
        known = self._known.get(name)
        if known is not None and known[0] == identity and not anew:
            return known[1]
        checksum = sha256(path)
        *_, n_bytes, mtime_ns, ctime_ns = identity
        is_settled = max(mtime_ns, ctime_ns) < started_ns - _TICK_NS and _identity(path) == identity
        if n_bytes >= _LEAST_BYTES and is_settled:
            self._known[name] = (identity, checksum)
        return checksum

    def save(self) -> None:
        """Write the record, if it has changed. Without it the next start reads the files again."""
        # Another process may have written meanwhile.
        stored = self._read()
        known = {name: each for name, each in (stored | self._known).items() if Path(name).exists()}
        if self._folder is None or known == stored:
            return
        with contextlib.suppress(OSError):
            private.claim(self._folder)
            with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as file:
                json.dump(known, file)
            Path(file.name).replace(self._folder / "checksums.json")

    def _read(self) -> dict[str, _Known]:
        """Return the record of earlier starts; nothing if it is damaged, or if others can write to it."""
        if self._folder is None:
            return {}
        file = self._folder / "checksums.json"
        try:
            if not private.is_ours(file):
                return {}
            private.claim(self._folder)
            content = json.loads(file.read_bytes())
            return {
                name: (identity, checksum)
                for name, (identity, checksum) in content.items()
                if _CHECKSUM.fullmatch(checksum)
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _identity(path: Path) -> list[int]:
    """Return device, inode, size, mtime and ctime (in nanoseconds) of a file."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
