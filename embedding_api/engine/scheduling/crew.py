"""Who computes: the oldest worker may be the soloist, and the next ones are members, one for each core.

A member computes one batch at a time on its core. The soloist computes on all cores what waits alone, and nothing else:
threads that it has once used would take their share of the cores from the members.
"""

from collections.abc import Container
from typing import NamedTuple

from embedding_api.engine.scheduling.board import NO_ROOM, Board
from embedding_api.engine.work import Address


class Crew(NamedTuple):
    """The workers that compute at one moment, as one of all workers sees them.

    Attributes:
        is_member: True if this worker is a member.
        soloist: The soloist; None if there is none.
        rooms: The other members that can compute, with the tokens that fit into their next batch, below 0 if more
            waits there: idle ones first, then those with the most room.
        n_idle: How many of them are idle.
        is_idle: True if all others that compute are idle.
        has_other: True if another worker computes.
    """

    is_member: bool
    soloist: Address | None
    rooms: list[tuple[Address, int]]
    n_idle: int
    is_idle: bool
    has_other: bool

    def shares(
        self, n_waiting: int, n_target: int, n_least: float, served: Container[Address]
    ) -> list[tuple[Address, float]]:
        """Return the members that get a batch of this worker's texts, and the tokens of each.

        Afterwards all cores have as much to do, as far as the board tells.

        Args:
            n_waiting: Tokens that wait in this worker.
            n_target: Tokens of a full batch.
            n_least: The fewest tokens that a busy member gets; 0 if this worker has no core for them.
            served: Members that have a batch of this worker already. Each other member gets one even if it has no room,
                from a worker without a core: a member computes own batches and received ones in turns.
        """
        # A busy core has half of a full batch to go, on average.
        queued = [
            (worker, -n_target / 2 if number < self.n_idle else n_target - n_room)
            for number, (worker, n_room) in enumerate(self.rooms)
            if number < self.n_idle or n_room > 0 or not (n_least or worker in served)
        ]
        level = (n_waiting + sum(n_queued for _, n_queued in queued)) / (len(queued) + (n_least > 0) or 1)
        return [
            (worker, level - n_queued)
            for number, (worker, n_queued) in enumerate(queued)
            if number < self.n_idle or level - n_queued > n_least
        ]


def look(board: Board, address: Address, n_members: int, *, has_soloist: bool) -> Crew:
    """Return who computes now.

    Age decides, and not the seat: a new worker must not take the right to compute from one that has batches of others.

    Args:
        board: All workers.
        address: This worker.
        n_members: The most members.
        has_soloist: True if the oldest worker is the soloist, unless it is the only one.
    """
    columns = board.columns
    workers = sorted(board.workers(), key=lambda worker: worker.generation)
    soloist = workers[0] if has_soloist and len(workers) > 1 else None
    n_first = int(soloist is not None)
    members = workers[n_first : n_first + n_members]
    others = [worker for worker in members if worker != address]
    idle = [worker for worker in others if columns.is_idle[worker.seat]]
    rooms = [(worker, columns.room_tokens[worker.seat]) for worker in others]
    rooms = [(worker, n_tokens) for worker, n_tokens in rooms if n_tokens > NO_ROOM or worker in idle]
    rooms.sort(key=lambda room: (room[0] in idle, room[1]), reverse=True)
    is_solo_idle = soloist in (None, address) or bool(columns.is_idle[workers[0].seat])
    return Crew(
        is_member=address in members,
        soloist=soloist,
        rooms=rooms,
        n_idle=len(idle),
        is_idle=len(idle) == len(others) and is_solo_idle,
        has_other=bool(others) or soloist not in (None, address),
    )
