"""Ctrl-C while the service starts ends it in one line, until Gunicorn handles signals itself."""

import os
import signal
from types import FrameType

from embedding_api.errors import StartError
from embedding_api.telemetry import log


def end_start_in_a_line() -> None:
    """Let SIGINT end a start in one line. Later, when Gunicorn has set its own handlers, this changes nothing."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    # SIGTERM ends any other process. The first process of a container gets no signal that it has no handler for.
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's
    log.refuse(StartError(f"it was interrupted by {signal.Signals(number).name}"))
