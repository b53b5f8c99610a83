"""Isolation of every test: settings come from no other place, and no thread remains after a test."""

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
from prometheus_client import CollectorRegistry

from embedding_api.settings import Settings

pytest_plugins = ["tests.server.reliability"]

# All tests of a session share one cache, so that each model is converted once. The user's own cache stays untouched. A
# pytest that a test starts uses the cache of the outer pytest.
IS_INNER = "TESTS_CACHE_DIR" in os.environ
if not IS_INNER:
    os.environ["TESTS_CACHE_DIR"] = tempfile.mkdtemp(prefix="memementor-tests-")
CACHE_DIR = Path(os.environ["TESTS_CACHE_DIR"])

SETTINGS = [field.name.upper() for field in dataclasses.fields(Settings)]


def until(condition, *, deadline_s=60.0, what="it"):
    """Call `condition` until its result is true, and return that. Fail after `deadline_s`."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s} s"
        time.sleep(0.02)
    return value


def samples(counters):
    """Return a function that returns a number of GET /metrics by its name and labels, or None."""
    registry = CollectorRegistry()
    registry.register(counters)
    return registry.get_sample_value


def pytest_sessionfinish():
    if not IS_INNER:
        shutil.rmtree(CACHE_DIR, ignore_errors=True)


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch, tmp_path):
    """Hide the user's settings from each test: those in the environment, and those in a .env in the working folder."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CACHE_DIR", str(CACHE_DIR))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def clean_logging():
    """Restore the configuration of logging after each test."""
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
    """Fail a test that leaves a thread running."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while leaked := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, f"threads left behind: {leaked}"
        next(iter(leaked)).join(0.05)
