"""The record of one request: its head and body, its client, and its deadline. Imports errors alone.

The worker that holds the connection makes the record and puts it into the WSGI environment. Routes and the engine read
it.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from embedding_api.errors import DeadlineExceededError

# The key of a request's record in its WSGI environment.
REQUEST = "embedding_api.request"
# The key in an application's `extensions` of a mapping: (method, path) of each route whose body the server writes to a
# file, to the most bytes that this body may have. All other bodies are held in memory, up to MAX_BODY_BYTES.
FILE_BODIES = "embedding_api.file_bodies"

# The most bytes of a request's head. More than any proxy lets through; within Gunicorn's own limits each client could
# make a worker hold 800 KB.
MAX_HEAD_BYTES = 65_536

# Headers in which OpenAI's SDKs say how many seconds they wait, anew with each retry. Python sends the first with every
# request, as 600 or 0.5. JavaScript sends the second with a call that has a timeout of its own, rounded down: 0 means
# less than a second.
TIMEOUT_HEADERS = ("x-stainless-read-timeout", "x-stainless-timeout")


class Event(Protocol):
    """What a thread or a greenlet waits for until another thread sets it, as with a `threading.Event`."""

    def set(self) -> None:
        """Let the one that waits go on. Any thread may call it."""

    def wait(self, timeout: float | None, /) -> bool:
        """Wait until the event is set, but no longer than `timeout` seconds. Return True if it is set."""


class Caller:
    """The client of one request. Safe for several threads.

    Attributes:
        arrived_s: Time on the monotonic clock at which the request was complete.
        deadline_s: Time on the monotonic clock until which the client waits; infinity if for ever.
        new_event: Makes what the thread, or the greenlet, that answers the client can wait for.
    """

    def __init__(self) -> None:
        self.arrived_s = time.monotonic()
        self.deadline_s = math.inf
        self._limit = "the deadline"
        self.new_event: Callable[[], Event] = threading.Event
        self._departure: Future[None] = Future()

    def remaining_s(self) -> float | None:
        """Return the seconds until the deadline, at least 0; None if there is no deadline."""
        return None if math.isinf(self.deadline_s) else max(0.0, self.deadline_s - time.monotonic())

    def wait_at_most(self, timeout_s: float, limit: str) -> None:
        """Set the deadline to `timeout_s` after the arrival, unless it is earlier already.

        Args:
            timeout_s: Seconds; infinity for no limit.
            limit: What sets this time, for the message to a request that exceeds it.
        """
        if (deadline_s := self.arrived_s + timeout_s) < self.deadline_s:
            self.deadline_s, self._limit = deadline_s, limit

    def limit_wait(self, timeout_s: float, header: Callable[[str, str], str]) -> None:
        """Set the deadline to the earliest of REQUEST_TIMEOUT_S and the client's own timeouts.

        Args:
            timeout_s: REQUEST_TIMEOUT_S.
            header: Returns the value of a header of the request by its name, or the second argument if it is missing.
        """
        self.wait_at_most(timeout_s, "REQUEST_TIMEOUT_S")
        for name in TIMEOUT_HEADERS:
            self.wait_at_most(_seconds(header(name, "")), f"the client's own timeout ({name})")

    def require_time(self) -> None:
        """Check that the deadline has not passed.

        Raises:
            DeadlineExceededError: It has.
        """
        if self.remaining_s() == 0:
            raise self.deadline_error()

    def deadline_error(self) -> DeadlineExceededError:
        """Return the error for a request that exceeded its deadline. It names the limit that ended it, and the cure."""
        return DeadlineExceededError(
            f"the request was not answered within the {self.deadline_s - self.arrived_s:g} s of {self._limit}; "
            f"send fewer texts at once, or raise {self._limit}"
        )

    def leave(self) -> None:
        """Call back those who asked to know that the client left. Call it once."""
        self._departure.set_result(None)

    def when_left(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the client leaves, in the thread that notices it; at once if it has left already."""
        self._departure.add_done_callback(lambda _: callback())


def _seconds(sent: str) -> float:
    """Return the timeout in a header; infinity if it is missing, malformed or not above zero."""
    with contextlib.suppress(ValueError):
        if (timeout_s := float(sent)) > 0:
            return timeout_s
    return math.inf


@dataclass(slots=True)
class Request:
    """One request whose head has been parsed.

    Attributes:
        headers: Values by name in lower case; those of a name that came twice are joined by commas.
        body: The decoded body, an `io.BytesIO` or, if the route is one of FILE_BODIES, a file. None if the server has
            not read it.
        head: The head, as the parser of the server gives it.
        n_head_bytes: Bytes of the head.
        n_body_bytes: Bytes of the body that are held in memory.
        caller: The client.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    body: IO[bytes] | None = None
    head: Any = None
    n_head_bytes: int = 0
    n_body_bytes: int = 0
    caller: Caller = field(default_factory=Caller)


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return values by name in lower case, those of a name that came twice joined by commas, as WSGI joins them."""
    values: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        values[key] = f"{values[key]},{value}" if key in values else value
    return values
