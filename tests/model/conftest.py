"""Engines of real models, closed after each test."""

import pytest

# The engines of the current test.
LOADED = []


@pytest.fixture(autouse=True)
def close_engines():
    """Close the engines of each test, because an open engine keeps its sockets open."""
    yield
    while LOADED:
        LOADED.pop().close()
