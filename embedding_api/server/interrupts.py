"""Ctrl-C while the service starts: one line and an end, until Gunicorn handles signals itself."""

import os
import signal
from types import FrameType

from embedding_api.errors import StartError
from embedding_api.telemetry import log


def end_start_in_a_line() -> None:
    """Lets SIGINT end a start in one line; after it, when handlers are others', it changes nothing."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    # Any other process it ends at once; the first of a container gets no signal that it does not handle.
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's
    log.refuse(StartError(f"it was interrupted by {signal.Signals(number).name}"))
