"""The parts of a request's trace as plain data. Imports no OpenTelemetry, so that any module may make them."""

from collections.abc import Mapping
from typing import NamedTuple

Attributes = Mapping[str, str | bool | int | float]


class Part(NamedTuple):
    """A span below another one.

    Attributes:
        name: Name of the span.
        begun_s: Start, in seconds on the monotonic clock.
        ended_s: End, in seconds on the monotonic clock.
        attributes: Attributes of the span.
        parts: Spans below this one.
    """

    name: str
    begun_s: float
    ended_s: float
    attributes: Attributes | None = None
    parts: tuple["Part", ...] = ()
