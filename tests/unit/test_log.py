"""One format for everything, text or JSON; libraries stay quiet."""

import json
import logging

import pytest

from embedding_api import log
from embedding_api.config import load_settings


def record(**extra):
    made = logging.makeLogRecord({"name": "embedding_api.x", "levelname": "INFO", "msg": "said %s", "args": ("it",)})
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def caught():
    try:
        raise ValueError("inner")
    except ValueError as error:
        return type(error), error, error.__traceback__


def test_json_lines_hold_message_fields_and_exception():
    line = json.loads(log.JsonFormatter().format(record(fields={"request_id": "r", "texts": 2}, exc_info=caught())))
    assert (line["message"], line["request_id"], line["texts"]) == ("said it", "r", 2)
    assert "ValueError: inner" in line["exception"]
    assert "exception" not in json.loads(log.JsonFormatter().format(record()))


def test_text_lines_hold_message_fields_and_exception():
    text = log.TextFormatter().format(record(fields={"request_id": "r", "texts": 2}, exc_info=caught()))
    assert "said it request_id=r texts=2\nTraceback" in text


def test_a_worker_is_said_to_lack_memory_if_the_kernel_counted_it_and_else_not(monkeypatch):
    monkeypatch.setattr(log.cgroup, "n_oom_kills", lambda: 2)
    monkeypatch.setattr(log.cgroup, "memory_limit", lambda: 2**29)
    killed = log.Killed()

    def said():
        line = record(msg="Worker (pid:%s) was sent %s! Perhaps out of memory?", args=(7, "SIGKILL"))
        assert killed.filter(line)
        return line.getMessage()

    assert said() == "Worker (pid:7) was sent SIGKILL!"
    monkeypatch.setattr(log.cgroup, "n_oom_kills", lambda: 3)
    assert "(pid:7) was sent SIGKILL! It was killed for lack of memory, of which" in said()
    assert said() == "Worker (pid:7) was sent SIGKILL!"
    monkeypatch.setattr(log.cgroup, "n_oom_kills", lambda: 4)
    monkeypatch.setattr(log.cgroup, "memory_limit", lambda: None)
    assert "for lack of memory: give it more" in said()


@pytest.mark.parametrize(("level", "libraries"), [("DEBUG", "WARNING"), ("ERROR", "ERROR")])
def test_libraries_log_from_warning_on(monkeypatch, level, libraries):
    monkeypatch.setenv("LOG_LEVEL", level)
    configuration = log.configuration(load_settings())
    assert configuration["root"]["level"] == getattr(logging, libraries)
    assert configuration["loggers"]["embedding_api"]["level"] == level
