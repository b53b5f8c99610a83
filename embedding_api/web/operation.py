"""Routes with their descriptions beside them, of which `openapi.py` makes the OpenAPI document."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, TypeVar, Unpack, cast

from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.routing import Rule

from embedding_api.engine.models.registry import Registry
from embedding_api.errors import ServiceError
from embedding_api.settings import Settings
from embedding_api.web import json_body
from embedding_api.web.request_schema import RequestSchema

JSON = "application/json"
STRING = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}

_View = TypeVar("_View", bound=Callable[..., Response])


class Operation(TypedDict, total=False):
    """What the OpenAPI document says of one method of one path.

    In `content`, `schemas` and `headers` the name of a component stands for the component.

    Attributes:
        id: The name of the function in generated clients: that of the view, or the one that an alias has.
        summary: The first line of the view's docstring.
        description: The rest of it, in Markdown.
        schemas: Components of the document. The first is the body of a response with status 200.
        content: That body for each media type, if it is not JSON alone.
        headers: Headers of that response, beside X-Request-ID.
        failures: Errors of this route, beside those of every route.
        request: The schema of the request's body.
        examples: Returns examples of the request's body for the name of a model.
        path_values: Returns the values of the path's parameter.
    """

    id: str
    summary: str
    description: str
    schemas: Mapping[str, Any]
    content: Mapping[str, Any]
    headers: Mapping[str, Any]
    failures: Iterable[type[ServiceError]]
    request: type[RequestSchema]
    examples: Callable[[str], dict[str, Any]]
    path_values: Callable[[Registry], Iterable[str]]


class Routes(Blueprint):
    """A blueprint whose routes have their operations.

    Attributes:
        operations: The operation of each path, in Flask's notation.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, __name__)
        self.operations: dict[str, Operation] = {}

    def serve(
        self, path: str, method: str = "GET", *, aliases: Mapping[str, str] = {}, **operation: Unpack[Operation]
    ) -> Callable[[_View], _View]:
        """Return a decorator that serves a view at a path.

        Args:
            path: The path, in Flask's notation.
            method: The method; a GET serves HEAD, too.
            aliases: Other paths of the same view, each with its `Operation.id`.
            operation: What the OpenAPI document says of the path, beside what the view's name and docstring say.
        """

        def add(view: _View) -> _View:
            summary, _, operation["description"] = (inspect.getdoc(view) or "").partition("\n\n")
            self.operations[path] = {**operation, "id": view.__name__, "summary": summary.removesuffix(".")}
            same = f"The same as {method} {openapi_path(path)}"
            for alias, id_ in aliases.items():
                self.operations[alias] = {**operation, "id": id_, "summary": same}
            for rule in (path, *aliases):
                self.add_url_rule(rule, view.__name__, view, methods=[method])
            return view

        return add


def operation_of(app: Flask, rule: Rule) -> Operation:
    """Return the operation of a route."""
    name, _, _ = rule.endpoint.partition(".")
    return cast("Routes", app.blueprints[name]).operations[rule.rule]


def openapi_path(path: str) -> str:
    """Return `/v1/models/<path:model_id>` in OpenAPI's notation, `/v1/models/{model_id}`."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)


def request_schemas(app: Flask, settings: Settings, models: Registry) -> dict[str, RequestSchema]:
    """Return the schema of the request's body for each endpoint that has one."""
    operations = {rule.endpoint: operation_of(app, rule) for rule in app.url_map.iter_rules()}
    return {name: one["request"](settings, models) for name, one in operations.items() if "request" in one}


def load_request() -> dict[str, Any]:
    """Return the body of the current request, validated by the schema of its route.

    Raises:
        RequestError: The body cannot be read, is not JSON, or has a field that the schema refuses.
    """
    schema: RequestSchema = current_app.extensions["request_schemas"][request.endpoint]
    fields: dict[str, Any] = schema.load(json_body.load())
    return fields


def header(description: str, schema: Mapping[str, Any], *, is_required: bool = True) -> dict[str, Any]:
    """Return the component of a header; `is_required` is true if every response that can have it has it."""
    return {"description": description, "schema": schema} | ({"required": True} if is_required else {})


def object_schema(*, optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """Return the JSON Schema of an object whose properties are required, but for those named in `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}
