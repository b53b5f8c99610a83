"""The phases of a worker's part in computing. `server/lifecycle.py` has those of the worker itself."""

import enum


class SchedulerPhase(enum.Enum):
    """What a worker still does."""

    SERVING = enum.auto()
    # A backend cannot compute here: other workers compute all.
    BROKEN = enum.auto()
    # A batch hung: this worker accepts nothing, and ends once other workers have computed what it holds.
    RETIRED = enum.auto()
    CLOSED = enum.auto()

    @property
    def accepts(self) -> bool:
        """True if a new job is accepted."""
        return self in (SchedulerPhase.SERVING, SchedulerPhase.BROKEN)
