"""What is found out about a model before and while it is loaded: what its operator is told, and what refuses it."""

import logging
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from embedding_api.telemetry.library_warnings import one_line


class Finding(NamedTuple):
    """Something that the operator of a model should know. It is logged at every start.

    Attributes:
        level: As `logging` numbers them.
        message: One line, without the model's name.
    """

    level: int
    message: str


class UnservableError(Exception):
    """No backend can serve the model as it is. The message says why and what to do, in one line."""


def warning(message: str) -> Finding:
    """A finding that the operator should act on."""
    return Finding(logging.WARNING, message)


def listed(names: Iterable[str], *, most: int = 5) -> str:
    """Names for a message: the first few in alphabetical order, and how many there are in all."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:most])
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"


def in_a_line(error: BaseException) -> str:
    """What an exception of a library says, in one line of at most 500 characters, with its class before it."""
    # OpenVINO says where in its own code it failed first, and which operation it has no rule for last.
    text = one_line(str(error)).rpartition("Summary:")[2]
    line = f"{type(error).__name__}: {textwrap.shorten(text, 500) or 'no message'}"
    is_memory = isinstance(error, MemoryError) or "allocate" in text
    return f"{line}; free some memory, or choose a smaller model" if is_memory else line
