"""What the master and its workers tell each other, in memory that they share: made before the fork, without a name."""

import mmap


class Flag:
    """A byte that is true or false for the whole server."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def __bool__(self) -> bool:
        return self._byte[0] != 0

    def set(self, *, value: bool = True) -> None:
        """Make it true, or what `value` says."""
        self._byte[0] = value


# The whole server stops. A worker gets the same SIGTERM when it is only renewed, and others serve in its place.
SERVER_STOPS = Flag()
# A worker has begun to serve, so the start is over.
HAS_SERVED = Flag()
# A worker could not have the threads that it needs.
LACKS_THREADS = Flag()
