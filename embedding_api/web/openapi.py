"""The OpenAPI document, made from the routes with their operations, their schemas and the classes of errors."""

from collections import defaultdict
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask
from werkzeug.routing import Rule

from embedding_api import __version__
from embedding_api.errors import REPORTED, InvalidKeyError, MethodNotAllowedError, ServiceError, TransportError, type_of
from embedding_api.service import Service, service_of
from embedding_api.settings import Settings
from embedding_api.telemetry.access import REQUEST_ID
from embedding_api.web import auth
from embedding_api.web.operation import (
    COUNT,
    JSON,
    STRING,
    Operation,
    header,
    object_schema,
    openapi_path,
    operation_of,
)
from embedding_api.web.request_schema import model_names

_REQUEST_ID, _KEY = "X-Request-ID", "key"

# Statuses of responses that the server may send before a request reaches Flask; its connection then closes.
_OF_THE_SERVER = {error.status for error in REPORTED if issubclass(error, TransportError)} | {500}
# Statuses of the failures of every route.
_ANYWHERE = _OF_THE_SERVER | {MethodNotAllowedError.status}

_ERROR = object_schema(
    error=object_schema(
        message={"type": "string", "description": "What is wrong, the value, the rule and the cure."},
        type={"type": "string", "description": "The kind of error, in OpenAI's words."},
        param={"type": ["string", "null"], "description": "Path of the field at fault, such as input[3]."},
        code={"type": "string", "description": "A word for programs."},
    )
)
_HEADERS = {
    _REQUEST_ID: header(
        "The id that the request sent, or a new one. The server's log has the same id.",
        {**STRING, "pattern": f"^{REQUEST_ID}$"},
    ),
    "WWW-Authenticate": header("How to send a key.", {"const": "Bearer"}),
    "Allow": header("The methods that the path accepts.", STRING),
    "Retry-After": header("Seconds to wait before the next attempt.", {**COUNT, "minimum": 1}),
    "Connection": header("`close` if the connection cannot carry another request.", STRING, is_required=False),
}
_REQUEST_ID_PARAMETER = header(
    f"An id for the request, returned in the response and logged: `{REQUEST_ID}`. Others are ignored.",
    STRING,
    is_required=False,
)


def document(app: Flask) -> dict[str, Any]:
    """Return the OpenAPI document of an application that has all its routes, its service and its request schemas."""
    service = service_of(app)
    spec = APISpec(
        "Memementor Embedding Service",
        __version__,
        "3.1.0",
        plugins=[MarshmallowPlugin()],
        info={
            "description": "Sentence embeddings over HTTP, compatible with OpenAI's API. Every failure has one body.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
    )
    operations = [(rule, operation_of(app, rule)) for rule in app.url_map.iter_rules()]
    _add_components(spec, [operation for _, operation in operations], service.settings)
    for rule, operation in operations:
        (method,) = (rule.methods or set()) - {"HEAD"}
        described = _describe(rule, operation, service)
        if (schema := app.extensions["request_schemas"].get(rule.endpoint)) is not None:
            content = {"schema": schema, "examples": operation["examples"](model_names(service.engine.models)[0])}
            described["requestBody"] = {"required": True, "content": {JSON: content}}
        spec.path(openapi_path(rule.rule), operations={method.lower(): described})
    return spec.to_dict()


def _add_components(spec: APISpec, operations: list[Operation], settings: Settings) -> None:
    """Add what operations name. The document shows only the failures that an operation has."""
    schemas, headers = {"Error": _ERROR}, dict(_HEADERS)
    for operation in operations:
        schemas |= operation.get("schemas", {})
        headers |= operation.get("headers", {})
    for name, schema in schemas.items():
        spec.components.schema(name, schema)
    for name, component in headers.items():
        spec.components.header(name, component)
    spec.components.parameter(_REQUEST_ID, "header", _REQUEST_ID_PARAMETER)
    if settings.require_auth:
        description = "One of the keys in the server's API_KEY_SECRET."
        spec.components.security_scheme(_KEY, {"type": "http", "scheme": "bearer", "description": description})
    meanings: dict[int, dict[str, str]] = defaultdict(dict)
    for error in REPORTED:
        for code in error.codes:
            # Several errors may share a code; the first explains it.
            meanings[error.status].setdefault(code, (error.__doc__ or "").partition("\n")[0])
    for error in {error.status: error for error in REPORTED}.values():
        spec.components.response(f"Error{error.status}", _failure(error, meanings[error.status]), lazy=True)


def _failure(error: type[ServiceError], meanings: dict[str, str]) -> dict[str, Any]:
    """Return the response of all errors of one status; `meanings` has the meaning of each of their codes."""
    words = {"type": {"enum": [type_of(error.status)]}, "code": {"enum": list(meanings)}}
    code, meaning = next(iter(meanings.items()))
    example = {"error": {"message": meaning, "type": type_of(error.status), "param": None, "code": code}}
    schema = {"allOf": ["Error", {"properties": {"error": {"properties": words}}}], "examples": [example]}
    closes = ["Connection"] if error.status in _OF_THE_SERVER else []
    lines = [f"- `{code}`: {meaning}\n" for code, meaning in meanings.items()]
    return _response("".join(lines), {JSON: schema}, [_REQUEST_ID, *error.headers, *closes])


def _response(description: str, content: Any, headers: list[str]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {name: name for name in headers},
        "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
    }


def _describe(rule: Rule, operation: Operation, service: Service) -> dict[str, Any]:
    statuses = _ANYWHERE | {error.status for error in operation.get("failures", ())}
    values = [*operation["path_values"](service.engine.models)] if rule.arguments else []
    parameters = [{"in": "path", "name": name, "schema": {**STRING, "enum": values}} for name in rule.arguments]
    content = operation.get("content") or {JSON: next(iter(operation["schemas"]))}
    described: dict[str, Any] = {
        "operationId": operation["id"],
        "summary": operation["summary"],
        "tags": [rule.endpoint.partition(".")[0]],
        "parameters": [_REQUEST_ID, *parameters],
    }
    if operation["description"]:
        described["description"] = operation["description"]
    if auth.needs_key(rule.endpoint, service.settings):
        described["security"] = [{_KEY: []}]
        statuses |= {InvalidKeyError.status}
    described["responses"] = {
        200: _response("OK", content, [_REQUEST_ID, *operation.get("headers", ())]),
        **{status: f"Error{status}" for status in sorted(statuses)},
    }
    return described
