"""What the views work with: the settings and the engine of the application that is serving."""

from typing import NamedTuple, cast

from flask import current_app

from embedding_api.config import Settings
from embedding_api.engine.engine import Engine


class Parts(NamedTuple):
    """What `create_app` joined."""

    settings: Settings
    engine: Engine


def parts() -> Parts:
    """The parts of the application that handles the current request."""
    return cast("Parts", current_app.extensions["embedding_api"])
