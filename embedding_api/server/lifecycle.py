"""The phases of a worker, from serving to its end. Pure: it reads no clock and touches no socket.

`server/worker.py` tells it what happens. There, a SIGTERM to the master sets `flags.SERVER_STOPS`, which tells workers
that the whole server stops. `engine/scheduling/phase.py` has the phases of a worker's part in computing.
"""

import enum
import math

# A signal to a worker can arrive before its master has said that the whole server stops.
SETTLE_S = 0.2
# Seconds in which other workers compute what waited in a worker that hangs, and seconds to send the last responses.
RETIRE_S, LAST_RESPONSES_S = 5.0, 1.0
# The part of the grace time in which the engine ends and the last spans are sent, before the master kills the worker.
_MAX_END_S, _END_SHARE = 2.0, 0.25


class Phase(enum.Enum):
    """What a worker does now."""

    SERVING = enum.auto()
    # It was told to stop, and waits a moment to learn whether the whole server stops.
    SETTLING = enum.auto()
    # The whole server stops. The worker still accepts connections, and refuses work.
    DRAINING = enum.auto()
    # It accepts nothing, answers what it has, and closes idle connections.
    WINDING_UP = enum.auto()
    # Its engine hangs. It accepts nothing, and other workers compute what waited here.
    RETIRING = enum.auto()
    # Its engine hangs, and the others had their time. It refuses what still waits.
    REFUSING = enum.auto()
    ENDED = enum.auto()

    @property
    def accepts(self) -> bool:
        """True in the phases in which new connections are accepted."""
        return self in {Phase.SERVING, Phase.DRAINING}


class Lifecycle:
    """The phase of a worker, from what happens to it.

    Args:
        drain_s: Seconds in which a worker goes on accepting after the server was told to stop.
        grace_s: Seconds after which the master kills a worker that was told to stop.

    Attributes:
        phase: The phase as of the last `advance`.
    """

    def __init__(self, drain_s: float, grace_s: float) -> None:
        self.phase = Phase.SERVING
        self._drain_s = drain_s
        self._last_s = grace_s - min(_MAX_END_S, grace_s * _END_SHARE)
        self._stopped_s = self._retired_s = math.inf

    @property
    def is_retired(self) -> bool:
        """True once the engine was found hanging."""
        return self._retired_s < math.inf

    def retire(self, now_s: float) -> None:
        """Begin the end of a worker whose engine hangs."""
        self._retired_s = min(self._retired_s, now_s)

    def advance(self, now_s: float, *, is_told_to_stop: bool, server_stops: bool, n_connections: int) -> Phase:
        """Return the phase at this moment.

        Args:
            now_s: Seconds on the monotonic clock.
            is_told_to_stop: The worker got its signal, or lost its master.
            server_stops: The whole server stops, so no other worker serves in the place of this one.
            n_connections: Connections that are open.
        """
        if is_told_to_stop:
            self._stopped_s = min(self._stopped_s, now_s)
        self.phase = self._phase(now_s, server_stops=server_stops, has_connections=n_connections > 0)
        return self.phase

    def _phase(self, now_s: float, *, server_stops: bool, has_connections: bool) -> Phase:
        if self.is_retired:
            if not has_connections or now_s >= self._retired_s + RETIRE_S + LAST_RESPONSES_S:
                return Phase.ENDED
            return Phase.REFUSING if now_s >= self._retired_s + RETIRE_S else Phase.RETIRING
        stopping_s = now_s - self._stopped_s
        if stopping_s < 0:
            return Phase.SERVING
        if server_stops and stopping_s < self._drain_s:
            return Phase.DRAINING
        if stopping_s < SETTLE_S:
            return Phase.SETTLING
        return Phase.WINDING_UP if has_connections and stopping_s < self._last_s else Phase.ENDED
