"""All log lines have one format, text or JSON, and libraries log from WARNING on."""

import json
import logging
import sys
import threading
import warnings

import pytest

from embedding_api.errors import SettingsError
from embedding_api.settings import load_settings
from embedding_api.telemetry import library_warnings, log
from embedding_api.telemetry.log import JsonFormatter, TextFormatter


def record(**extra):
    made = logging.makeLogRecord({"name": "embedding_api.x", "levelname": "INFO", "msg": "done %s", "args": ("now",)})
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def caught():
    try:
        raise ValueError("inner")
    except ValueError as error:
        return type(error), error, error.__traceback__


def test_json_lines_hold_message_fields_and_exception():
    line = json.loads(JsonFormatter().format(record(fields={"request_id": "r", "texts": 2}, exc_info=caught())))
    assert (line["message"], line["request_id"], line["texts"]) == ("done now", "r", 2)
    assert "ValueError: inner" in line["exception"]
    assert "exception" not in json.loads(JsonFormatter().format(record()))


def test_text_lines_hold_message_fields_and_exception():
    text = TextFormatter().format(record(fields={"request_id": "r", "texts": 2}, exc_info=caught()))
    assert "done now request_id=r texts=2\nTraceback" in text


@pytest.mark.parametrize(("level", "libraries"), [("DEBUG", "WARNING"), ("ERROR", "ERROR")])
def test_libraries_log_from_warning_on(monkeypatch, level, libraries):
    monkeypatch.setenv("LOG_LEVEL", level)
    configuration = log.configuration(load_settings())
    assert configuration["root"]["level"] == getattr(logging, libraries)
    assert configuration["loggers"]["embedding_api"]["level"] == level


def test_text_values_that_could_be_misread_are_quoted():
    line = TextFormatter().format(record(fields={"a": "two words", "b": 'x="y"', "c": "", "d": "1\n2", "e": "é/x"}))
    assert line.endswith(r'a="two words" b="x=\"y\"" c="" d="1\n2" e=é/x')


def test_a_json_line_can_hold_anything():
    line = json.loads(JsonFormatter().format(record(fields={"path": "\udcff", "what": {1}})))
    assert (line["path"], line["what"]) == ("\udcff", "{1}")


@pytest.fixture
def ids():
    """Return a function that gives the ids in a line logged now."""
    yield lambda: (log.add_ids(line := record()), getattr(line, "fields", {}))[1]
    log.end_request()


def test_lines_carry_the_ids_of_the_current_request_until_it_ends(ids):
    assert ids() == {}
    log.begin_request(request_id="r", trace_id="t")
    assert ids() == {"request_id": "r", "trace_id": "t"}
    line = record(fields={"request_id": "own", "status": 400})
    log.add_ids(line)
    assert line.fields == {"request_id": "own", "trace_id": "t", "status": 400}
    log.end_request()
    assert ids() == {}


def test_a_call_for_a_request_logs_its_ids_in_any_thread(ids):
    seen = []
    log.begin_request(request_id="r")
    calls = [lambda: seen.append(ids()), log.for_request(lambda: seen.append(ids()))]
    log.begin_request(request_id="another")
    thread = threading.Thread(target=lambda: [call() for call in calls])
    thread.start()
    thread.join()
    assert seen == [{}, {"request_id": "r"}]


@pytest.fixture
def configured(monkeypatch, capfd):
    """Return a function that sets up logging as the service does, and returns one that gives what was written since."""
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"), (sys, "stderr")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)
    before = logging.root.handlers[:], logging.root.level

    def configure(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        log.take_over(load_settings())
        return lambda: capfd.readouterr().err

    with warnings.catch_warnings():
        yield configure
    logging.root.handlers, logging.root.level = before


def test_a_librarys_log_and_warning_have_the_logs_format(configured):
    written = configured()
    warnings.simplefilter("always")
    warnings.warn_explicit("mind\nthat", UserWarning, "its.py", 7)
    _of_library("a_library", sys.stderr).warning("\x1b[1mtable\n  a | b\x1b]8;;x\x07")
    logging.getLogger("a_library").info("no news")
    lines = written().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("] UserWarning: mind that (its.py:7)")
    assert lines[1].endswith("] table a | b")


def test_libraries_do_not_log_below_the_level_of_the_log(configured):
    written = configured(LOG_LEVEL="ERROR")
    library = _of_library("a_library", sys.stderr)
    library.setLevel(logging.INFO)
    library.warning("no news")
    assert written() == ""


def test_what_is_written_to_stderr_is_logged_in_lines(configured):
    written = configured(LOG_FORMAT="json")
    print("one", "line", file=sys.stderr)
    sys.stderr.writelines(["half a ", "line"])
    assert [json.loads(line)["message"] for line in written().splitlines()] == ["one line"]
    sys.stderr.flush()
    assert [json.loads(line)["message"] for line in written().splitlines()] == ["half a line"]
    assert (sys.stderr.isatty(), sys.stderr.encoding) == (False, "utf-8")


def test_a_log_that_cannot_be_written_causes_no_endless_loop(configured, monkeypatch):
    written = configured()
    monkeypatch.setattr(logging.root.handlers[0], "stream", None)
    sys.stderr.write("lost\n")
    logging.getLogger("a_library").error("lost")
    assert written() == ""


def test_uncaught_exceptions_are_logged(configured):
    written = configured(LOG_FORMAT="json")

    class Unraisable:
        def __del__(self):
            raise ValueError("in it")

    Unraisable()
    for end in (ZeroDivisionError("in a thread"), SystemExit()):
        thread = threading.Thread(target=lambda end=end: (_ for _ in ()).throw(end), name="t")
        thread.start()
        thread.join()
    sys.excepthook(*caught())
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    lines = [json.loads(line) for line in written().splitlines()]
    assert [(line["level"], line["message"].partition("<")[0]) for line in lines] == [
        ("ERROR", "Exception ignored in: "),
        ("ERROR", "thread t died of an uncaught exception"),
        ("CRITICAL", "uncaught exception"),
        ("WARNING", "interrupted"),
    ]
    assert [line["exception"].rpartition(": ")[2] for line in lines[:3]] == ["in it", "in a thread", "inner"]


@pytest.mark.parametrize("where", ["the environment", ".env"])
def test_a_refused_start_ends_with_a_line_in_the_logs_format(monkeypatch, capfd, tmp_path, where):
    def refused():
        with pytest.raises(SystemExit) as end:
            log.refuse(SettingsError("PORT='x' must be a number"))
        assert end.value.code == 1
        return capfd.readouterr().err

    assert refused() == "memementor-embedding-service cannot start: PORT='x' must be a number\n"
    if where == ".env":
        (tmp_path / ".env").write_text("PRT=x\nLOG_FORMAT='JSON'\n")
    else:
        (tmp_path / ".env").write_bytes(b"\xff")
        monkeypatch.setenv("LOG_FORMAT", '"json"')
    line = json.loads(refused())
    assert (line["level"], line["message"]) == (
        "CRITICAL",
        "memementor-embedding-service cannot start: PORT='x' must be a number",
    )
    monkeypatch.setenv("LOG_FORMAT", "xml")
    assert refused().startswith("memementor-embedding-service cannot start: ")


def _of_library(name, stream):
    """Return a logger like those of transformers: with a handler of its own, and not propagating."""
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(stream)]
    return logger


def test_warnings_of_libraries_are_collected_and_not_logged(capsys, caplog):
    library = _of_library("a_library_that_is_collected", sys.stderr)

    def warn():
        warnings.warn("mind\n\x1b[33mthat\x1b[0m", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for _ in range(2):
            with library_warnings.collected() as lines:
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
    with pytest.raises(ValueError, match="it"), library_warnings.collected() as lines:
        raise ValueError("it")
    logging.getLogger("a_library_that_propagates").warning("mind that")
    assert (lines, caplog.messages) == ([], ["mind that"])
