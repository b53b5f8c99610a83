"""Findings: facts about a model that its operator should know, and errors that refuse a model."""

import logging
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from embedding_api.telemetry.library_warnings import one_line


class Finding(NamedTuple):
    """A fact that the operator of a model should know. Every start logs it.

    Attributes:
        level: A level of `logging`.
        message: One line, without the model's name.
    """

    level: int
    message: str


class UnservableError(Exception):
    """No backend can serve the model as it is. The message says why and what to do, in one line."""


def warning(message: str) -> Finding:
    """Return a finding that the operator should act on."""
    return Finding(logging.WARNING, message)


def listed(names: Iterable[str], *, most: int = 5) -> str:
    """Return the first few names in alphabetical order, and how many more there are."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:most])
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"


def lacks_threads(error: BaseException) -> bool:
    """Return True if a library failed because the system refused it a thread: in Python, or in C++."""
    return any(words in str(error) for words in ("can't start new thread", "Resource temporarily unavailable"))


def in_a_line(error: BaseException) -> str:
    """Return the class and the message of a library's exception, in one line of about 500 characters."""
    # OpenVINO begins with the place in its own code, and ends with a summary.
    text = one_line(str(error)).rpartition("Summary:")[2]
    line = f"{type(error).__name__}: {textwrap.shorten(text, 500) or 'no message'}"
    is_memory = isinstance(error, MemoryError) or "allocate" in text
    return f"{line}; free some memory, or choose a smaller model" if is_memory else line
