"""Engines of real models, closed after each test."""

import pytest

# The engines of the test that runs.
LOADED = []


@pytest.fixture(autouse=True)
def close_engines():
    """An engine that a test does not close would leave its sockets open."""
    yield
    while LOADED:
        LOADED.pop().close()
