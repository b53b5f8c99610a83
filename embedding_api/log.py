"""Logging: one format for this service and Gunicorn, as text or JSON. Texts and keys are never logged.

Libraries log from WARNING on whatever LOG_LEVEL says: what they print below that is not ours to vouch for.
"""

import logging
import logging.config
from typing import Any

import orjson

from embedding_api import cgroup
from embedding_api.config import Settings

ACCESS = "embedding_api.access"


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a record carries under `fields` stands beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


class TextFormatter(logging.Formatter):
    """Time, level and process, the message, then what the record carries under `fields` as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(message)s", "%Y-%m-%d %H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line of a record, without its exception."""
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{key}={value}" for key, value in fields.items())])


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
        "filters": {"killed": {"()": Killed}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
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
    """Sets up logging for this process."""
    logging.config.dictConfig(configuration(settings))
