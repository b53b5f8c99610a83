"""Logging: one format for this service, Gunicorn and libraries, as text or JSON. Texts and keys are never logged.

Libraries log from WARNING on whatever LOG_LEVEL says: what they print below that is not ours to vouch for.
"""

import json
import logging
import logging.config
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, ContextVar
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn

from embedding_api import settings as config
from embedding_api.errors import StartError
from embedding_api.machine import cgroup
from embedding_api.settings import Settings
from embedding_api.telemetry.library_warnings import is_ours, log_warning, one_line

logger = logging.getLogger(__name__)

ACCESS = "embedding_api.access"

_NOTHING: Mapping[str, str] = MappingProxyType({})
_ids: ContextVar[Mapping[str, str]] = ContextVar("ids", default=_NOTHING)


def begin_request(**ids: str) -> None:
    """Lets each line from here on, in this thread, carry these ids, until `end_request`."""
    _ids.set(ids)


def end_request() -> None:
    """What this thread logs from here on belongs to no request."""
    _ids.set(_NOTHING)


def for_request(call: Callable[[], None]) -> Callable[[], None]:
    """The same call, whose lines carry the ids of the request in work now, whichever thread makes it.

    Not in a copy of this thread's context, which would keep the whole request alive.
    """
    context = Context()
    context.run(_ids.set, _ids.get())
    return partial(context.run, call)


class OfRequest(logging.Filter):
    """Puts the ids of the request in work before a line's own fields."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps the record, with the ids in it."""
        if ids := _ids.get():
            record.fields = {**ids, **getattr(record, "fields", {})}
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a record carries under `fields` stands beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": one_line(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Not orjson: that raises for halves of surrogate pairs, which paths and exceptions can hold.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level and process, the message, then what the record carries under `fields` as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(message)s", "%Y-%m-%d %H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line of a record, without its exception."""
        record.message = one_line(record.message)
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{key}={_shown(value)}" for key, value in fields.items())])


def _shown(value: object) -> str:
    """As it is, or in quotes if somebody who reads key=value could not tell where it ends."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' "=') and text else json.dumps(text)


class Killed(logging.Filter):
    """Puts what the kernel counted in the place of Gunicorn's guess that a worker which got SIGKILL ran out of memory.

    Gunicorn's line is the one place that says which worker got it. Had the kernel killed another process of the control
    group since it was last looked at, that would be taken for the worker.
    """

    _GUESS = " Perhaps out of memory?"

    def __init__(self) -> None:
        super().__init__()
        self._n_seen = cgroup.n_oom_kills()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps the record, with the truth in it."""
        message = record.getMessage()
        if message.endswith(self._GUESS):
            n_oom_kills = cgroup.n_oom_kills()
            record.msg, record.args = message.removesuffix(self._GUESS), ()
            if n_oom_kills > self._n_seen:
                record.msg += _lack_of_memory()
            self._n_seen = n_oom_kills
        return True


def _lack_of_memory() -> str:
    limit = cgroup.memory_limit()
    most = "" if limit is None else f", of which its control group may use {limit // 2**20} MB"
    return (
        f" It was killed for lack of memory{most}: give it more, serve fewer or smaller models, or lower "
        "MAX_QUEUED_TOKENS or MAX_BODY_BYTES"
    )


def configuration(settings: Settings) -> dict[str, Any]:
    """The `logging.config` dictionary for these settings; Gunicorn takes the same one."""
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    ours = {"level": settings.log_level}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "filters": {"killed": {"()": Killed}, "of_request": {"()": OfRequest}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": _stderr(),
                "formatter": "line",
                "filters": ["of_request"],
            }
        },
        "root": {"level": max(logging.WARNING, getattr(logging, settings.log_level)), "handlers": ["stderr"]},
        "loggers": {
            "embedding_api": ours,
            "gunicorn.error": {
                # Below INFO it logs paths and what it received.
                "level": max(logging.INFO, getattr(logging, settings.log_level)),
                "propagate": True,
                "handlers": [],
                "filters": ["killed"],
            },
            "gunicorn.access": {"propagate": False, "handlers": []},
        },
    }


def configure(settings: Settings) -> None:
    """Sets up logging for this process; what libraries log or warn of goes the same way."""
    logging.config.dictConfig(configuration(settings))
    logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign]
    warnings.showwarning = log_warning  # type: ignore[assignment] # the rest of its arguments is of no use


def take_over(settings: Settings) -> None:
    """The same for a process of the service: whatever is written to stderr, and whatever fails unseen, is logged.

    Gunicorn prints some of its errors, and Python the exceptions that nobody catches.
    """
    configure(settings)
    sys.stderr = Lines(_stderr())
    sys.excepthook = _log_exception
    threading.excepthook = _log_end_of_thread
    sys.unraisablehook = _log_unraisable


def refuse(error: StartError) -> NoReturn:
    """Ends a start that cannot be with one line: as it is, or in LOG_FORMAT=json as an object."""
    is_json = config.log_format() == "json"
    handler = logging.StreamHandler(_stderr())
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter())
    handler.handle(logger.makeRecord(logger.name, logging.CRITICAL, "", 0, error.line, (), None))
    sys.exit(1)


_logging_call_handlers = logging.Logger.callHandlers


def _call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    """Gives what a library logs to the root's handlers alone: those of its own would print it in another format."""
    if is_ours(record):
        _logging_call_handlers(self, record)
    elif record.levelno >= logging.root.level:
        _logging_call_handlers(logging.root, record)


class Lines:
    """A stream whose lines are logged. In all else it is the one in whose place it stands."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        # Of each thread: what it wrote since its last line ended, and whether its line is being logged.
        self._state = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Logs the lines that are whole, and keeps the rest."""
        *lines, self._state.rest = re.split(r"[\r\n]", getattr(self._state, "rest", "") + text)
        for line in lines:
            self._log(line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Logs the lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Logs what is no whole line, too."""
        self.write("\n")

    def isatty(self) -> bool:
        """False: colours and progress bars are of no use in a log."""
        return False

    def _log(self, line: str) -> None:
        # logging itself writes to stderr if it cannot log.
        if line.strip() and not getattr(self._state, "is_logging", False):
            self._state.is_logging = True
            try:
                # As high as a line must be to pass: Gunicorn tells here why it ends.
                logging.getLogger("stderr").log(max(logging.WARNING, logging.root.level), "%s", line)
            finally:
                self._state.is_logging = False


def _stderr() -> Any:
    """Where the log goes, whether a `Lines` stands in its place or not."""
    return sys.stderr.stream if isinstance(sys.stderr, Lines) else sys.stderr


def _log_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        logger.warning("interrupted")
    else:
        logger.critical("an error that nobody caught", exc_info=(kind, error, traceback))


def _log_end_of_thread(told: threading.ExceptHookArgs) -> None:
    if not issubclass(told.exc_type, SystemExit):
        error = told.exc_value or told.exc_type()
        name = told.thread.name if told.thread else "of no name"
        logger.error("thread %s died", name, exc_info=(told.exc_type, error, told.exc_traceback))


def _log_unraisable(told: "sys.UnraisableHookArgs") -> None:
    error = told.exc_value or told.exc_type()
    message = f"{told.err_msg or 'an error that cannot be raised in'} {told.object!r}"
    logger.error("%s", message, exc_info=(told.exc_type, error, told.exc_traceback))
