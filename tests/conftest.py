"""Isolation for every test: no setting from outside, no .env, no thread left behind."""

import dataclasses
import logging
import os
import shutil
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest

from embedding_api.settings import Settings

pytest_plugins = ["tests.server.reliability"]

# One for the whole session, so that no model is converted twice, and never that of who runs it. A pytest that a test
# starts uses the outer one's.
IS_INNER = "TESTS_CACHE_DIR" in os.environ
if not IS_INNER:
    os.environ["TESTS_CACHE_DIR"] = tempfile.mkdtemp(prefix="memementor-tests-")
CACHE_DIR = Path(os.environ["TESTS_CACHE_DIR"])

SETTINGS = [field.name.upper() for field in dataclasses.fields(Settings)]


def until(condition, *, deadline_s=60.0, what="it"):
    """What `condition` gives once that is true; fails if it never is."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s} s"
        time.sleep(0.02)
    return value


def pytest_sessionfinish():
    if not IS_INNER:
        shutil.rmtree(CACHE_DIR, ignore_errors=True)


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch, tmp_path):
    """No test sees the settings of who runs it, from the environment or from a .env in the working folder."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CACHE_DIR", str(CACHE_DIR))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def clean_logging():
    """No test logs as another one configured it."""
    loggers = [logging.getLogger(name) for name in ("", "embedding_api", "gunicorn.error", "gunicorn.access")]
    before = [(each.level, each.propagate, each.handlers[:], each.filters[:]) for each in loggers]
    call_handlers, show_warning = logging.Logger.callHandlers, warnings.showwarning
    yield
    logging.Logger.callHandlers, warnings.showwarning = call_handlers, show_warning
    for each, (level, propagate, handlers, filters) in zip(loggers, before, strict=True):
        each.level, each.propagate, each.filters = level, propagate, filters
        # pytest adds and removes handlers of its own around each phase of a test.
        each.handlers = [one for one in each.handlers if one in handlers or type(one).__module__.startswith("_pytest")]
    logging.root.manager._clear_cache()


@pytest.fixture(autouse=True)
def no_leaked_threads():
    """A test that leaves a thread running fails."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while leaked := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, f"threads left behind: {leaked}"
        next(iter(leaked)).join(0.05)
