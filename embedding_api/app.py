"""The application factory: the one place where the web room and the engine room meet."""

import logging

from flask import Flask

from embedding_api import __version__, metrics, web
from embedding_api.config import Settings, load_settings
from embedding_api.engine.engine import Engine, load_engine

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
    if settings.is_open_to_others:
        logger.warning(
            "anyone who reaches %s can use this service: set API_KEY_SECRET, or HOST to 127.0.0.1", settings.bind
        )
    metrics.BUILD_INFO.labels(__version__).set(1)
    app = Flask("embedding_api", static_folder=None)
    web.init_app(app, settings, engine or load_engine(settings))
    return app
