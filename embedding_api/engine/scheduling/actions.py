"""What a scheduler decides, for the loops around it to carry out in order."""

from collections.abc import Sequence
from typing import NamedTuple

from embedding_api.engine.scheduling.job import Job
from embedding_api.engine.work import Address, Result, Undone, Work


class Compute(NamedTuple):
    """Compute these batches here, as one, and report how it ended.

    Attributes:
        works: Batches of one lane.
        on_all_cores: True if all other cores are idle.
    """

    works: Sequence[Work]
    on_all_cores: bool


class Send(NamedTuple):
    """Send this batch to another worker; report it as `unsent` if that worker does not take it."""

    work: Work
    to: Address


class SendBack(NamedTuple):
    """Send the owner of a batch its result, or why it is not computed here."""

    work: Work
    outcome: Result | Undone


class Wake(NamedTuple):
    """Let another worker look at the board: this one accepts a batch now."""

    worker: Address


class Answer(NamedTuple):
    """A job is done: answer its request."""

    job: Job


Action = Compute | Send | SendBack | Wake | Answer
