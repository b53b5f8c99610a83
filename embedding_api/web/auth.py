"""Who may ask: every route needs a key, when keys are asked for, unless it is on the open list."""

import hmac

from flask import Flask, request

from embedding_api.errors import InvalidKeyError
from embedding_api.settings import Settings
from embedding_api.web.parts import parts

# Endpoints that answer without a key. What is not named here is protected; the metrics are, unless they are public.
OPEN_ENDPOINTS = frozenset({"health.index", "health.live", "health.ready", "openapi.show", "docs.page", "docs.file"})
METRICS_ENDPOINT = "metrics.show"


def init_app(app: Flask) -> None:
    """Registers the check, for every route there is and will be."""
    app.before_request(_require_key)


def needs_key(endpoint: str, settings: Settings) -> bool:
    """Whether a route answers only those who have a key."""
    is_open = endpoint in OPEN_ENDPOINTS or (endpoint == METRICS_ENDPOINT and settings.metrics_public)
    return settings.require_auth and not is_open


def _require_key() -> None:
    settings = parts().settings
    # An unknown path or method has no endpoint, and its 404 or 405 tells nothing.
    if request.endpoint is None or not needs_key(request.endpoint, settings):
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Spaces and tabs alone: as latin-1 the last bytes of some letters in UTF-8 count as white space too.
    given = given.strip(" \t")
    if scheme.lower() != "bearer" or not given:
        raise InvalidKeyError("a key is needed: send the header `Authorization: Bearer <key>`")
    # WSGI hands over header bytes as latin-1; a key of other characters was sent, and is compared, as UTF-8.
    sent = given.encode("latin-1", "replace")
    # All keys are compared, and each in constant time, so that the time taken tells nothing about any of them.
    matches = [hmac.compare_digest(sent, key.encode()) for key in settings.api_key_secret]
    if not any(matches):
        raise InvalidKeyError("this key is not known here; check API_KEY_SECRET on the server, or ask for a new key")
