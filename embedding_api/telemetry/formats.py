"""The two formats of log lines: text and JSON."""

import json
import logging
from typing import Any

from embedding_api.telemetry.library_warnings import one_line


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
