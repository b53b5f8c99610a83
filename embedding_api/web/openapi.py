"""GET /openapi.json: what the service takes and answers, made from its routes, its schema and its tables of errors."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import orjson
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Blueprint, Flask, Response, current_app
from werkzeug.routing import Map, Rule

from embedding_api import __version__, errors
from embedding_api.settings import Settings
from embedding_api.web import auth, components, schemas
from embedding_api.web.operations import ANYWHERE, BEFORE_A_VIEW, OPERATIONS, Operation
from embedding_api.web.routes import docs

bp = Blueprint("openapi", __name__)

_REQUEST_ID, _KEY = "X-Request-ID", "key"


@bp.get("/openapi.json")
def show() -> Response:
    """The document, as it was made when the application was."""
    return Response(current_app.extensions["openapi"], content_type="application/json")


def init_app(app: Flask, settings: Settings, request: schemas.EmbeddingRequest) -> None:
    """Makes the document of an application that has all its routes."""
    app.extensions["openapi"] = orjson.dumps(document(app.url_map, settings, request))


def document(routes: Map, settings: Settings, request: schemas.EmbeddingRequest) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        routes: Whose methods and endpoints count.
        settings: What the service is told.
        request: What validates requests.
    """
    marshmallow = MarshmallowPlugin()
    spec = APISpec(
        "Memementor Embedding Service",
        __version__,
        "3.1.0",
        plugins=[marshmallow],
        info={
            "description": "Sentence embeddings over HTTP, as OpenAI's API has them. Every failure has one body.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
    )
    # The specification has made it.
    converter: Any = marshmallow.converter
    converter.add_attribute_function(_as_it_says)
    _add_components(spec, settings)
    rules = {path_of(rule): rule for rule in routes.iter_rules()}
    for path, operation in OPERATIONS.items():
        _add_operation(spec, rules[path], operation, settings, request)
    return spec.to_dict()


def path_of(rule: Rule) -> str:
    """`/v1/models/<path:model_id>` as OpenAPI writes it."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def _as_it_says(_: Any, field: schemas.StrictField, ret: dict[str, Any]) -> dict[str, Any]:
    """What a field says of itself, beside its description and default; null is no default to be told."""
    if ret.get("default", ...) is None:
        del ret["default"]
    return field.json_schema


def _add_components(spec: APISpec, settings: Settings) -> None:
    """Adds what operations name; of the failures, the document will hold those that one does."""
    for name, schema in components.SCHEMAS.items():
        spec.components.schema(name, schema)
    for name, header in components.HEADERS.items():
        spec.components.header(name, header)
    spec.components.parameter(_REQUEST_ID, "header", components.REQUEST_ID_PARAMETER)
    if settings.require_auth:
        description = "One of the keys in the server's API_KEY_SECRET."
        spec.components.security_scheme(_KEY, {"type": "http", "scheme": "bearer", "description": description})
    by_status = defaultdict(list)
    for error, row in errors.TABLE.items():
        by_status[row.status].append((error, row))
    for status, rows in by_status.items():
        spec.components.response(_failure_name(status), _failure_response(status, rows), lazy=True)


def _failure_name(status: int) -> str:
    return f"Error{status}"


def _failure_response(status: int, rows: list[tuple[type[errors.ServiceError], errors.Row]]) -> dict[str, Any]:
    codes: list[str] = []
    lines = []
    for error, row in rows:
        meaning = (error.__doc__ or "").partition("\n")[0]
        # Several errors may share a code; the first explains it.
        if new := [code for code in row.codes if code not in codes]:
            codes += new
            lines.append(f"- {', '.join(f'`{code}`' for code in new)}: {meaning}\n")
    first, row = rows[0]
    schema = components.error(row.type, codes, (first.__doc__ or "").partition("\n")[0])
    headers = [_REQUEST_ID, *row.headers]
    if status in BEFORE_A_VIEW:
        headers.append("Connection")
    return _response("".join(lines), {"application/json": schema}, headers)


def _response(description: str, content: dict[str, Any], headers: Iterable[str]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {name: name for name in headers},
        "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
    }


def _add_operation(
    spec: APISpec, rule: Rule, operation: Operation, settings: Settings, request: schemas.EmbeddingRequest
) -> None:
    (method,) = (rule.methods or set()) - {"HEAD"}
    failures = ANYWHERE | operation.failures
    told: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [rule.endpoint.partition(".")[0]],
        "parameters": [_REQUEST_ID, *(_path_parameter(name, request) for name in sorted(rule.arguments))],
    }
    if operation.description:
        told["description"] = operation.description
    if method == "POST":
        told["requestBody"] = _request_body(request)
    if auth.needs_key(rule.endpoint, settings):
        told["security"] = [{_KEY: []}]
        failures |= {errors.TABLE[errors.InvalidKeyError].status}
    told["responses"] = {
        200: _response("OK", operation.content, (_REQUEST_ID, *operation.headers)),
        **{status: _failure_name(status) for status in sorted(failures)},
    }
    spec.path(path_of(rule), operations={method.lower(): told})


def _path_parameter(name: str, request: schemas.EmbeddingRequest) -> dict[str, Any]:
    known = {"model_id": request.known["model"], "file": docs.FILES}
    return {"in": "path", "name": name, "schema": {"type": "string", "enum": list(known[name])}}


def _request_body(request: schemas.EmbeddingRequest) -> dict[str, Any]:
    model = request.known["model"][0]
    several = {"input": ["First sentence to embed.", "Second sentence to embed."], "encoding_format": "base64"}
    examples = {
        "text": {
            "summary": "A text",
            "value": {"model": model, "input": "The quick brown fox jumps over the lazy dog."},
        },
        "texts": {"summary": "Several, as base64", "value": {"model": model, **several}},
    }
    return {"required": True, "content": {"application/json": {"schema": request, "examples": examples}}}
