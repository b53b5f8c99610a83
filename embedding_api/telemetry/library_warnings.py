"""Libraries' warnings, from logging and from Python's `warnings`: put into one line each, or collected."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

# First parts of the names of loggers that belong to no library. werkzeug is the server used in development.
_OURS = ("embedding_api", "gunicorn", "werkzeug")
# Terminal escape sequences: colours and links.
_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))")


def is_ours(record: logging.LogRecord) -> bool:
    """Return True if no library logged the record."""
    return record.name.partition(".")[0] in _OURS


def one_line(text: str) -> str:
    """Return the text without line breaks and terminal escape sequences."""
    return " ".join(_ANSI.sub("", text).split())


def log_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """Log a library's warning in one line. Python would print two, in a format of its own."""
    logging.getLogger("py.warnings").warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the warnings of libraries in the block instead of logging them.

    Works whether or not logging is configured, and whatever handlers a library gives its loggers.

    Yields:
        A list that fills with the messages of level WARNING and above: one line each, in order, without repetitions.
    """
    lines: list[str] = []
    call_handlers, show_warning = logging.Logger.callHandlers, warnings.showwarning

    def collect(self: logging.Logger, record: logging.LogRecord) -> None:
        if is_ours(record) or record.levelno < logging.WARNING:
            call_handlers(self, record)
        elif (line := one_line(record.getMessage())) not in lines:
            lines.append(line)

    # Python shows a warning once for each line of code. Entering this context makes it forget which it has shown.
    with warnings.catch_warnings():
        pass
    # A handler at the root would miss libraries whose loggers do not propagate and have handlers of their own.
    logging.Logger.callHandlers = collect  # type: ignore[method-assign] # see above
    warnings.showwarning = log_warning  # type: ignore[assignment] # it ignores the last two arguments
    try:
        yield lines
    finally:
        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign] # see above
        warnings.showwarning = show_warning
