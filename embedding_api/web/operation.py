"""A route with its words for the OpenAPI document beside it. `openapi.py` makes the document of them."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

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


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What the OpenAPI document says of one method of one path.

    In `content`, `schemas` and `headers` the name of a component stands for the component.

    Attributes:
        id: The name of the function in generated clients.
        summary: One line.
        description: More, in Markdown.
        content: The JSON Schema of a response with status 200, for each media type.
        schemas: Components of the document, for `content`.
        headers: Headers of a response with status 200, beside X-Request-ID.
        failures: Errors of this route, beside those of every route.
        request: The schema of the body; None for a route without a body.
        examples: Examples of the body, made from the name of a model.
        path_values: The values of the path's parameter.
    """

    id: str
    summary: str
    content: Mapping[str, Any]
    description: str = ""
    schemas: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    failures: Iterable[type[ServiceError]] = ()
    request: type[RequestSchema] | None = None
    examples: Callable[[str], dict[str, Any]] | None = None
    path_values: Callable[[Registry], Iterable[str]] | None = None


class Routes(Blueprint):
    """A blueprint whose routes have their operations.

    Attributes:
        operations: The operation of each path, in Flask's notation.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, __name__)
        self.operations: dict[str, Operation] = {}

    def serve(
        self,
        path: str,
        operation: Operation,
        *,
        method: str = "GET",
        alias: str | None = None,
        alias_id: str | None = None,
    ) -> Callable[[_View], _View]:
        """Return a decorator that serves a view at a path.

        Args:
            path: The path, in Flask's notation.
            operation: What the OpenAPI document says of it.
            method: The method; a GET serves HEAD, too.
            alias: Another path of the same view.
            alias_id: The alias's `Operation.id`; `<id>_alias` if None.
        """
        operations = {path: operation}
        if alias is not None:
            operations[alias] = dataclasses.replace(
                operation, id=alias_id or f"{operation.id}_alias", summary=f"The same as {method} {openapi_path(path)}"
            )
        self.operations |= operations

        def add(view: _View) -> _View:
            for rule in operations:
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
    """Return the schema of the body for the endpoint of each route that has a body."""
    kinds = {rule.endpoint: operation_of(app, rule).request for rule in app.url_map.iter_rules()}
    return {endpoint: kind.of(settings, models) for endpoint, kind in kinds.items() if kind is not None}


def load_request() -> dict[str, Any]:
    """Return the body of the current request, validated by the schema of its route.

    Raises:
        RequestError: The body cannot be read, is not JSON, or has a field that the schema refuses.
    """
    schema: RequestSchema = current_app.extensions["request_schemas"][request.endpoint]
    fields: dict[str, Any] = schema.load(json_body.load())
    return fields


def object_schema(*, optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """Return the JSON Schema of an object whose properties are required, but for those named in `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}
