"""What the views work with: settings, engine and schema of the application that is serving."""

from typing import TYPE_CHECKING, NamedTuple, cast

from flask import current_app

from embedding_api.engine.engine import Engine
from embedding_api.settings import Settings
from embedding_api.web.schemas import EmbeddingRequest

if TYPE_CHECKING:
    # It is imported where traces are wanted, and may not be installed.
    from embedding_api.telemetry.tracing import Tracing


class Parts(NamedTuple):
    """What `create_app` joined; `tracing` is None where no traces are wanted."""

    settings: Settings
    engine: Engine
    embedding_request: EmbeddingRequest
    tracing: "Tracing | None" = None


def parts() -> Parts:
    """The parts of the application that handles the current request."""
    return cast("Parts", current_app.extensions["embedding_api"])
