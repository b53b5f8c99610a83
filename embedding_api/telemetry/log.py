"""Logging of this service, Gunicorn and libraries in one format. Texts and keys are never logged.

Libraries log from WARNING on, whatever LOG_LEVEL says: we cannot know what they would log below it.
"""

import json
import logging
import logging.config
import sys
import warnings
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

from embedding_api import settings as config
from embedding_api.errors import StartError
from embedding_api.settings import Settings
from embedding_api.telemetry import streams
from embedding_api.telemetry.library_warnings import log_warning, one_line

logger = logging.getLogger(__name__)

ACCESS = "embedding_api.access"

_NO_IDS: Mapping[str, str] = MappingProxyType({})
_ids: ContextVar[Mapping[str, str]] = ContextVar("ids", default=_NO_IDS)


def begin_request(**ids: str) -> None:
    """Add these ids to each line that this thread logs, until `end_request`."""
    _ids.set(ids)


def end_request() -> None:
    """Add no ids to the lines that this thread logs from now on."""
    _ids.set(_NO_IDS)


def for_request(call: Callable[[], None]) -> Callable[[], None]:
    """Return the call such that its log lines carry the current request's ids, whichever thread runs it.

    It does not run in a copy of this thread's context, which would keep the whole request alive.
    """
    context = Context()
    context.run(_ids.set, _ids.get())
    return partial(context.run, call)


def add_ids(record: logging.LogRecord) -> bool:
    """Put the ids of the current request before a record's own fields, and return True to keep the record."""
    if ids := _ids.get():
        record.fields = {**ids, **getattr(record, "fields", {})}
    return True


def configuration(settings: Settings) -> dict[str, Any]:
    """Return the `logging.config` dictionary for these settings. Gunicorn uses the same one."""
    level = getattr(logging, settings.log_level)
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    stderr = {"class": "logging.StreamHandler", "stream": streams.stderr(), "formatter": "line", "filters": [add_ids]}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": stderr},
        "root": {"level": max(logging.WARNING, level), "handlers": ["stderr"]},
        "loggers": {
            "embedding_api": {"level": settings.log_level},
            # Below INFO, Gunicorn logs paths and the bytes that it received.
            "gunicorn.error": {"level": max(logging.INFO, level), "propagate": True, "handlers": []},
            "gunicorn.access": {"propagate": False, "handlers": []},
        },
    }


def configure(settings: Settings) -> None:
    """Set up logging for this process, including what libraries log or warn about."""
    logging.config.dictConfig(configuration(settings))
    logging.Logger.callHandlers = streams.call_handlers  # type: ignore[method-assign] # no handler sees all records
    warnings.showwarning = log_warning  # type: ignore[assignment] # it ignores the last two arguments


def take_over(settings: Settings) -> None:
    """Set up logging for a process of the service, including what it writes to stderr and what fails unnoticed."""
    configure(settings)
    streams.route_stderr_and_exceptions()


def refuse(error: StartError) -> NoReturn:
    """Exit with code 1 after one line that says why the service cannot start: plain, or JSON if LOG_FORMAT=json."""
    handler = logging.StreamHandler(streams.stderr())
    handler.setFormatter(JsonFormatter() if config.log_format() == "json" else logging.Formatter())
    handler.handle(logger.makeRecord(logger.name, logging.CRITICAL, "", 0, error.line, (), None))
    sys.exit(1)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object a line, with the entries of its `fields` beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        entries: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": one_line(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entries["exception"] = self.formatException(record.exc_info)
        # Not orjson: it raises for lone surrogates, which paths and exceptions can hold.
        return json.dumps(entries, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record as time, level, process id and message, then the entries of its `fields` as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(message)s", "%Y-%m-%d %H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line, without its exception."""
        record.message = one_line(record.message)
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{key}={_quoted(value)}" for key, value in fields.items())])


def _quoted(value: object) -> str:
    """Return the value as text, in quotes if its end could be misread in `key=value`."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' "=') and text else json.dumps(text)
