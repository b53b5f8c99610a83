"""One format for everything, text or JSON; libraries stay quiet."""

import json
import logging
import sys
import threading
import warnings

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


def test_text_values_that_could_be_misread_are_quoted():
    line = log.TextFormatter().format(record(fields={"a": "two words", "b": 'x="y"', "c": "", "d": "1\n2", "e": "é/x"}))
    assert line.endswith(r'a="two words" b="x=\"y\"" c="" d="1\n2" e=é/x')


def test_a_json_line_can_hold_anything():
    line = json.loads(log.JsonFormatter().format(record(fields={"path": "\udcff", "what": {1}})))
    assert (line["path"], line["what"]) == ("\udcff", "{1}")


@pytest.fixture
def ids():
    """What a line logged now has of the request in work."""
    yield lambda: (log.OfRequest().filter(line := record()), getattr(line, "fields", {}))[1]
    log.end_request()


def test_lines_carry_the_ids_of_the_request_in_work_and_then_no_more(ids):
    assert ids() == {}
    log.begin_request(request_id="r", trace_id="t")
    assert ids() == {"request_id": "r", "trace_id": "t"}
    line = record(fields={"request_id": "own", "status": 400})
    log.OfRequest().filter(line)
    assert line.fields == {"request_id": "own", "trace_id": "t", "status": 400}
    log.end_request()
    assert ids() == {}


def test_another_thread_carries_the_ids_of_a_request_for_which_it_is_called(ids):
    seen = []
    log.begin_request(request_id="r")
    calls = [lambda: seen.append(ids()), log.for_request(lambda: seen.append(ids()))]
    log.begin_request(request_id="another")
    thread = threading.Thread(target=lambda: [call() for call in calls])
    thread.start()
    thread.join()
    assert seen == [{}, {"request_id": "r"}]


def test_a_warning_of_a_library_is_a_line_like_any_other(monkeypatch, capsys, caplog):
    monkeypatch.setattr(logging.config, "dictConfig", lambda configuration: None)
    with warnings.catch_warnings():
        log.configure(load_settings())
        warnings.simplefilter("always")
        warnings.warn_explicit("mind\nthat", UserWarning, "its.py", 7)
    assert capsys.readouterr().err == ""
    (line,) = caplog.records
    assert (line.name, line.levelname) == ("py.warnings", "WARNING")
    assert line.getMessage().endswith("(its.py:7)")
    assert "\n" not in log.TextFormatter().format(line)


def _of_library(name, stream):
    """A logger as transformers makes its own: with a handler, and without ours."""
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(stream)]
    return logger


def test_warnings_of_libraries_are_collected_and_not_logged(capsys, caplog):
    library = _of_library("a_library", sys.stderr)

    def warn():
        warnings.warn("mind\n\x1b[33mthat\x1b[0m", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for _ in range(2):
            with log.collected() as lines:
                warn()
                library.info("so far")
                for _ in range(2):
                    library.warning("\x1b[1mtable of %s\x1b[0m\n  a | b\n", "weights")
                logging.getLogger("embedding_api.x").warning("ours")
            assert lines[1:] == ["table of weights a | b"]
            assert lines[0].startswith("UserWarning: mind that (")
    assert capsys.readouterr().err == ""
    assert [line.getMessage() for line in caplog.records] == ["ours"] * 2


def test_after_a_failure_warnings_are_logged_again(caplog):
    with pytest.raises(ValueError, match="it"), log.collected() as lines:
        raise ValueError("it")
    logging.getLogger("a_library_that_propagates").warning("mind that")
    assert (lines, caplog.messages) == ([], ["mind that"])
