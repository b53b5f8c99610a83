"""GET /docs: the OpenAPI document as a page, by Swagger UI. The server serves all of its files."""

from importlib import resources

from flask import Response, abort, request

from embedding_api.errors import NotFoundError
from embedding_api.web.operation import STRING, Routes

bp = Routes("docs")

_OURS = resources.files("embedding_api.web") / "static"
_SWAGGER_UI = resources.files("flask_swagger_ui") / "dist"

# The files of the page: name, folder and content type. No other file can be fetched.
FILES = {
    "docs.js": (_OURS, "text/javascript; charset=utf-8"),
    "swagger-ui-bundle.js": (_SWAGGER_UI, "text/javascript; charset=utf-8"),
    "swagger-ui.css": (_SWAGGER_UI, "text/css; charset=utf-8"),
    "favicon-32x32.png": (_SWAGGER_UI, "image/png"),
}

# Swagger UI's style sheet contains its icons as data.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@bp.serve("/docs", content={"text/html": STRING})
def get_docs() -> Response:
    """Return this document as a page to read and to try it."""
    # Its links are relative, so that a proxy may serve it below a path.
    html = (_OURS / "docs.html").read_text()
    if request.path.endswith("/"):
        html = html.replace('"docs/', '"')
    return Response(html, content_type="text/html; charset=utf-8")


@bp.serve(
    "/docs/<file>",
    content={"text/javascript": STRING, "text/css": STRING, "image/png": {}},
    failures=[NotFoundError],
    path_values=lambda _: FILES,
)
def get_docs_file(file: str) -> Response:
    """Return a file of that page."""
    if file not in FILES:
        abort(404)
    folder, content_type = FILES[file]
    response = Response((folder / file).read_bytes(), content_type=content_type)
    response.cache_control.max_age = 3600
    return response


@bp.after_request
def _fence(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
