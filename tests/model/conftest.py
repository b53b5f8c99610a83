"""Engines of real models, closed after each test."""

import pytest

from embedding_api.machine import cores

# The engines of the current test.
LOADED = []


@pytest.fixture(autouse=True)
def no_soloist(monkeypatch):
    """Have as many workers as cores: where torch has used several threads, a forked process cannot measure with any."""
    monkeypatch.setenv("WORKERS", str(cores.count()))


@pytest.fixture(autouse=True)
def close_engines():
    """Close the engines of each test, because an open engine keeps its sockets open."""
    yield
    while LOADED:
        LOADED.pop().close()
