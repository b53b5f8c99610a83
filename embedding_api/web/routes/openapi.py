"""GET /openapi.json."""

from flask import Response, current_app

from embedding_api.web.operation import JSON, Routes

bp = Routes("openapi")


@bp.serve("/openapi.json", content={JSON: {"type": "object"}})
def get_openapi() -> Response:
    """Return this document."""
    return Response(current_app.extensions["openapi"], content_type=JSON)
