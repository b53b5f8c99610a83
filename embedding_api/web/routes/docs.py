"""GET /docs: the OpenAPI document as a page to read and to try it, by Swagger UI. All of it is served from here."""

from importlib import resources

from flask import Blueprint, Response, abort, request

bp = Blueprint("docs", __name__)

_OURS = resources.files("embedding_api.web") / "static"
_SWAGGER_UI = resources.files("flask_swagger_ui") / "dist"

# The page's files by name, and what each is. No other can be asked for.
FILES = {
    "docs.js": (_OURS, "text/javascript; charset=utf-8"),
    "swagger-ui-bundle.js": (_SWAGGER_UI, "text/javascript; charset=utf-8"),
    "swagger-ui.css": (_SWAGGER_UI, "text/css; charset=utf-8"),
    "favicon-32x32.png": (_SWAGGER_UI, "image/png"),
}

# Swagger UI's style sheet has its icons inside, as data.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@bp.get("/docs")
def page() -> Response:
    """The page. Its links are relative, so that a proxy may serve it below a path."""
    html = (_OURS / "docs.html").read_text()
    if request.path.endswith("/"):
        html = html.replace('"docs/', '"')
    return Response(html, content_type="text/html; charset=utf-8")


@bp.get("/docs/<file>")
def file(file: str) -> Response:
    """One of the page's files."""
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
