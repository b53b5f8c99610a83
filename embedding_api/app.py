"""The application factory: the one place where the web room and the engine room meet."""

import logging
from typing import TYPE_CHECKING

from flask import Flask

from embedding_api import __version__, web
from embedding_api.engine.engine import Engine, load_engine
from embedding_api.errors import SettingsError
from embedding_api.service import Service
from embedding_api.settings import Settings, load_settings
from embedding_api.telemetry import metrics

if TYPE_CHECKING:
    from embedding_api.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> Flask:
    """Builds the WSGI application.

    Args:
        settings: What the service is told; read from the environment if None.
        engine: What computes; loaded from the settings if None, which takes seconds.

    Raises:
        StartError: The service cannot start as it is told to.
    """
    settings = settings or load_settings()
    # Before the models are loaded: it ends the start if it cannot be, and is shared by all workers.
    tracing = _tracing(settings)
    engine = engine or load_engine(settings)
    # Whether others can reach it without one is known only to whoever opens the sockets.
    if settings.require_auth:
        logger.info("a key is needed", extra={"fields": {"keys": len(settings.api_key_secret)}})
    metrics.BUILD_INFO.labels(__version__).set(1)
    app = Flask("embedding_api", static_folder=None)
    web.init_app(app, Service(settings, engine, tracing))
    return app


def _tracing(settings: Settings) -> "Tracing | None":
    if not settings.otel_exporter_otlp_endpoint:
        return None
    try:
        # Here, since it is an optional part of the installation, and costs memory and time.
        from embedding_api.telemetry.tracing import Tracing

        tracing = Tracing(settings)
    except ImportError as error:
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed ({error}); pip install "
            "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or unset it"
        ) from error
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            f"OpenTelemetry cannot be set up as its variables say ({error}); mend or unset those that begin with OTEL_"
        ) from error
    logger.info("traces are sent", extra={"fields": {"endpoint": settings.otel_exporter_otlp_endpoint}})
    return tracing
