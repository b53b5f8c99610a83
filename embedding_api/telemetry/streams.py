"""Sends to the log what does not log by itself: lines on stderr, uncaught exceptions, and libraries' own handlers."""

import logging
import re
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from embedding_api.telemetry.library_warnings import is_ours

logger = logging.getLogger(__name__)

_logging_call_handlers = logging.Logger.callHandlers


def route_stderr_and_exceptions() -> None:
    """Log each line that this process writes to stderr, and each exception that nobody catches.

    Gunicorn prints some of its errors, and Python prints uncaught exceptions.
    """
    sys.stderr = LoggedStream(stderr())
    sys.excepthook = _log_exception
    threading.excepthook = _log_end_of_thread
    sys.unraisablehook = _log_unraisable


def stderr() -> Any:
    """Return the stream that the log is written to: stderr itself, even while a `LoggedStream` replaces it."""
    return sys.stderr.stream if isinstance(sys.stderr, LoggedStream) else sys.stderr


def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    """Give a library's record to the root's handlers alone. The library's own would print it in another format.

    Replaces `logging.Logger.callHandlers`.
    """
    if is_ours(record):
        _logging_call_handlers(self, record)
    elif record.levelno >= logging.root.level:
        _logging_call_handlers(logging.root, record)


class LoggedStream:
    """A stream whose lines are logged. Everything else goes to the stream that it replaces.

    Attributes:
        stream: The stream that this one replaces.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        # Per thread: the text since its last line end, and whether it is logging a line at the moment.
        self._state = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Log the complete lines, and keep the rest for the next call."""
        *lines, self._state.rest = re.split(r"[\r\n]", getattr(self._state, "rest", "") + text)
        for line in lines:
            self._log(line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Log the lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Log an incomplete line as well."""
        self.write("\n")

    def isatty(self) -> bool:
        """Return False: a log has no use for colours and progress bars."""
        return False

    def _log(self, line: str) -> None:
        # logging writes to stderr when it cannot log; that must not come back here.
        if line.strip() and not getattr(self._state, "is_logging", False):
            self._state.is_logging = True
            try:
                # At a level that always passes: Gunicorn writes here why it exits.
                logging.getLogger("stderr").log(max(logging.WARNING, logging.root.level), "%s", line)
            finally:
                self._state.is_logging = False


def _log_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        logger.warning("interrupted")
    else:
        logger.critical("uncaught exception", exc_info=(kind, error, traceback))


def _log_end_of_thread(end: threading.ExceptHookArgs) -> None:
    if not issubclass(end.exc_type, SystemExit):
        name = end.thread.name if end.thread else "(unnamed)"
        logger.error("thread %s died of an uncaught exception", name, exc_info=end.exc_value)


def _log_unraisable(failure: "sys.UnraisableHookArgs") -> None:
    message = f"{failure.err_msg or 'Exception ignored in:'} {failure.object!r}"
    logger.error("%s", message, exc_info=failure.exc_value)
