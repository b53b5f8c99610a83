"""The application factory. All parts of the service meet here and nowhere else."""

import logging
from typing import TYPE_CHECKING

from flask import Flask

from embedding_api import __version__, web
from embedding_api.engine.engine import Engine
from embedding_api.engine.start import load_engine
from embedding_api.errors import SettingsError
from embedding_api.service import Service
from embedding_api.settings import Settings, load_settings
from embedding_api.telemetry import metrics

if TYPE_CHECKING:
    from embedding_api.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> Flask:
    """Return the WSGI application.

    Args:
        settings: The settings; read from the environment if None.
        engine: The engine with its models; loaded as the settings say if None, which takes seconds.

    Raises:
        StartError: The service cannot start with these settings.
    """
    settings = settings or load_settings()
    # Before the models are loaded, so that a mistake in OpenTelemetry's variables ends the start at once.
    tracing = _tracing(settings)
    engine = engine or load_engine(settings)
    # Without keys, the warning comes from the code that opens the sockets and so knows who can connect.
    if settings.require_auth:
        logger.info("a key is needed", extra={"fields": {"keys": len(settings.api_key_secret)}})
    metrics.BUILD_INFO.labels(__version__).set(1)
    app = Flask("embedding_api", static_folder=None)
    web.init_app(app, Service(settings, engine, tracing))
    return app


def _tracing(settings: Settings) -> "Tracing | None":
    """Return the maker of spans, or None if the settings name no collector."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    try:
        # Imported only here: OpenTelemetry is optional, and its import takes time and memory.
        from embedding_api.telemetry.tracing import Tracing

        tracing = Tracing(settings)
    except ImportError as error:
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed ({error}); run pip install "
            "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or unset it"
        ) from error
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            f"OpenTelemetry rejects its settings ({error}); correct or unset the variables that begin with OTEL_"
        ) from error
    logger.info("traces are sent", extra={"fields": {"endpoint": settings.otel_exporter_otlp_endpoint}})
    return tracing
