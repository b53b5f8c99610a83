"""GET /openapi.json."""

from flask import Response, current_app

from embedding_api.web.operation import JSON, Routes

bp = Routes("openapi")


@bp.serve("/openapi.json", id="get_openapi", summary="This document", content={JSON: {"type": "object"}})
def show() -> Response:
    """Return the document that was made when the application was."""
    return Response(current_app.extensions["openapi"], content_type=JSON)
