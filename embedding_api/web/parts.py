"""What the views work with: settings, engine and schema of the application that is serving."""

from typing import NamedTuple, cast

from flask import current_app

from embedding_api.config import Settings
from embedding_api.engine.engine import Engine
from embedding_api.web.schemas import EmbeddingRequest


class Parts(NamedTuple):
    """What `create_app` joined."""

    settings: Settings
    engine: Engine
    embedding_request: EmbeddingRequest


def parts() -> Parts:
    """The parts of the application that handles the current request."""
    return cast("Parts", current_app.extensions["embedding_api"])
