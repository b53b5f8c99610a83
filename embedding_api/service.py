"""What one process serves: its settings, its engine and its traces. Below `server` and `web`, above `engine`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from embedding_api.engine.engine import Engine
from embedding_api.settings import Settings

if TYPE_CHECKING:
    # OpenTelemetry is optional: only `app.create_app` imports this module, where traces are configured.
    from embedding_api.telemetry.tracing import Tracing

# The key in an application's `extensions` that holds its Service.
KEY = "embedding_api"


@dataclass(frozen=True)
class Service:
    """The parts that `create_app` joined.

    Attributes:
        settings: The settings, which do not change while the process runs.
        engine: The engine with its models.
        tracing: The maker of spans; None where no traces are configured.
    """

    settings: Settings
    engine: Engine
    tracing: "Tracing | None" = None


def service_of(app: Any) -> Service:
    """Return the service of a WSGI application that `create_app` made."""
    return cast("Service", app.extensions[KEY])
