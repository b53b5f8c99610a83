"""What libraries warn of, by logging or by Python's warnings: in one line each, and collected where that is wanted."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

# The first parts of the names of loggers that are no library's; werkzeug serves where the service is developed.
_OURS = ("embedding_api", "gunicorn", "werkzeug")
# What colours a terminal, or makes a link in it.
_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))")


def is_ours(record: logging.LogRecord) -> bool:
    """True for what no library logs."""
    return record.name.partition(".")[0] in _OURS


def one_line(text: str) -> str:
    """The text without line breaks and colours."""
    return " ".join(_ANSI.sub("", text).split())


def log_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """Logs a library's warning; Python would print two lines, in a format of its own."""
    logging.getLogger("py.warnings").warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Collects what libraries warn of in the block, by logging or by Python's warnings, instead of logging it.

    Works in any program, whether its logging is configured or not, and whatever handlers a library gives its loggers.

    Yields:
        A list that fills with the messages from level WARNING on: one line each, in their order, each once.
    """
    lines: list[str] = []
    call_handlers, show_warning = logging.Logger.callHandlers, warnings.showwarning

    def collect(self: logging.Logger, record: logging.LogRecord) -> None:
        if is_ours(record) or record.levelno < logging.WARNING:
            call_handlers(self, record)
        elif (line := one_line(record.getMessage())) not in lines:
            lines.append(line)

    # Python shows a warning once for each place in the code; entering this lets it show them again.
    with warnings.catch_warnings():
        pass
    # Not by a handler at the root: some libraries' loggers do not propagate, and print by handlers of their own.
    logging.Logger.callHandlers = collect  # type: ignore[method-assign]
    warnings.showwarning = log_warning  # type: ignore[assignment] # the rest of its arguments is of no use
    try:
        yield lines
    finally:
        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
        warnings.showwarning = show_warning
