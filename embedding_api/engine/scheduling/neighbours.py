"""What a scheduler knows of the other workers, and what it tells them."""

from typing import Protocol

from embedding_api.engine.work import Address


class Neighbours(Protocol):
    """What the workers of a server tell each other: numbers that each can read at once."""

    address: Address

    def rank(self) -> int:
        """Return the number of older workers. It only falls, so a worker that may compute may always."""

    def n_workers(self) -> int:
        """Return the number of workers, this one included."""

    def is_present(self, worker: Address) -> bool:
        """Return False once the master knows that a worker is gone."""

    def accepting(self) -> list[Address]:
        """Return the other workers that accept a batch."""

    def claim(self, worker: Address) -> None:
        """Note that a worker gets a batch, and accepts no other until it says so again."""

    def waiting(self) -> list[int]:
        """Return the seats of the other workers in which texts wait."""

    def publish_waiting(self, n_tokens: int) -> None:
        """Tell the others how many tokens wait in this worker."""

    def publish_accepts(self, *, accepts: bool) -> bool:
        """Tell the others if this worker accepts a batch. Return True if it did not before, and does now."""

    def count_answered(self, n_tokens: int) -> None:
        """Add to the tokens that this worker has answered."""
