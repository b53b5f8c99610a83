"""API keys: where keys are required, every route needs one unless it is on the open list."""

import hmac
from collections.abc import Sequence

from flask import Flask, current_app, request

from embedding_api.errors import InvalidKeyError
from embedding_api.service import service_of
from embedding_api.settings import Settings

# Endpoints that need no key. All others do; the metrics do unless METRICS_PUBLIC is set.
_HEALTH = {"health.get_service", "health.get_live", "health.get_ready"}
_DOCUMENTATION = {"openapi.get_openapi", "docs.get_docs", "docs.get_docs_file"}
OPEN_ENDPOINTS = frozenset(_HEALTH | _DOCUMENTATION)


def init_app(app: Flask) -> None:
    """Register the check for every route, including routes that are added later."""
    app.before_request(_require_key)


def needs_key(endpoint: str, settings: Settings) -> bool:
    """Return whether a route needs a key under these settings."""
    is_open = endpoint in OPEN_ENDPOINTS or (endpoint == "metrics.get_metrics" and settings.metrics_public)
    return settings.require_auth and not is_open


def check_key(authorization: str, keys: Sequence[str]) -> None:
    """Accept a request whose header holds one of the keys. Needs nothing of Flask.

    Args:
        authorization: The value of the header Authorization, its bytes as latin-1; empty if it is missing.
        keys: The keys of the settings.

    Raises:
        InvalidKeyError: The header holds no key, or one that is not among them.
    """
    scheme, _, key = authorization.partition(" ")
    # Spaces and tabs alone: as latin-1, the last bytes of some letters in UTF-8 count as white space.
    key = key.strip(" \t")
    if scheme.lower() != "bearer" or not key:
        raise InvalidKeyError("the request has no key; send the header `Authorization: Bearer <key>`")
    # Servers decode headers as latin-1. A client that sends other characters sends UTF-8.
    sent = key.encode("latin-1", "replace")
    # Every key is compared, each in constant time, so that the time taken says nothing about any of them.
    matches = [hmac.compare_digest(sent, known.encode()) for known in keys]
    if not any(matches):
        raise InvalidKeyError("the server does not know this key; check API_KEY_SECRET on the server, or use another")


def _require_key() -> None:
    settings = service_of(current_app).settings
    # An unknown path or method has no endpoint, and its 404 or 405 reveals nothing.
    if request.endpoint is not None and needs_key(request.endpoint, settings):
        check_key(request.headers.get("Authorization", ""), settings.api_key_secret)
