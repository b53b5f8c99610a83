"""The batches that a core computes as one: texts of several workers fill a pack that none could fill alone."""

from embedding_api.engine.scheduling.cost import Cost, Sizing, seconds
from embedding_api.engine.work import Lane, Work


class Pack:
    """Batches of one lane.

    Args:
        first: The batch whose turn it is.
        sizing: How many tokens its backend computes.
        cost: What a batch costs there.

    Attributes:
        works: The batches.
    """

    def __init__(self, first: Work, sizing: Sizing, cost: Cost) -> None:
        self.works = [first]
        self._sizing = sizing
        self._cost = cost
        self._size = _size(first)

    @property
    def lane(self) -> Lane:
        """The lane of all batches."""
        return self.works[0].lane

    @property
    def room_tokens(self) -> int:
        """The tokens that fit beside the batches."""
        if self.works[0].is_alone:
            return 0
        return self._sizing.target_batch_tokens - self._sizing.n_computed(*self._size)

    def take(self, work: Work) -> bool:
        """Add a batch if it fits and is computed sooner so than by itself. Return False if it stays out."""
        if work.lane != self.lane or work.is_alone or self.works[0].is_alone:
            return False
        (n_texts, longest, n_tokens), other = self._size, _size(work)
        size = n_texts + other[0], max(longest, other[1]), n_tokens + other[2]
        if self._sizing.n_computed(*size) > self._sizing.target_batch_tokens:
            return False
        if self._seconds(size) > self._seconds(self._size) + self._seconds(other):
            return False
        self.works.append(work)
        self._size = size
        return True

    def _seconds(self, size: tuple[int, int, int]) -> float:
        return seconds(self._sizing, self._cost, *size)


def _size(work: Work) -> tuple[int, int, int]:
    """Return a batch's texts, the tokens of its longest text, and its tokens."""
    return len(work.inputs), max(map(len, work.inputs)), work.n_tokens
