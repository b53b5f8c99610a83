"""What each path is for, for the OpenAPI document: its words, what it answers, and how it can fail."""

from typing import Any, NamedTuple

from embedding_api import errors
from embedding_api.errors import TABLE

_JSON = "application/json"

# What can come back from any path: refused before it reaches a view, not its method, or a fault of ours.
BEFORE_A_VIEW = frozenset(
    row.status
    for error, row in TABLE.items()
    if error is errors.EngineError or issubclass(error, errors.TransportError)
)
ANYWHERE = BEFORE_A_VIEW | {405}

_NOT_OF_EMBEDDINGS = {errors.InvalidKeyError, errors.NotFoundError}
_OF_EMBEDDINGS = frozenset(row.status for error, row in TABLE.items() if error not in _NOT_OF_EMBEDDINGS)


class Operation(NamedTuple):
    """The one method of a path.

    Attributes:
        id: The name of the function in a client that is generated.
        summary: A line.
        content: What a 200 holds, by media type: a name in `components.SCHEMAS`, or a JSON Schema.
        description: More, in Markdown.
        headers: What else a 200 carries, by name in `components.HEADERS`.
        failures: The statuses of its own failures, beyond ANYWHERE and that of a missing key.
    """

    id: str
    summary: str
    content: dict[str, Any]
    description: str = ""
    headers: tuple[str, ...] = ()
    failures: frozenset[int] = frozenset()


_CREATE = Operation(
    "create_embeddings",
    "Turn texts into vectors",
    {_JSON: "Embeddings"},
    "OpenAI's embeddings API. null means absent, fields not named here are ignored, and the body may have any "
    "Content-Type. `data` is in the order of `input`.",
    headers=("Server-Timing", "X-Truncated-Inputs"),
    failures=_OF_EMBEDDINGS,
)
_LIST = Operation("list_models", "The models that are served, in the configured order", {_JSON: "Models"})
_GET = Operation("get_model", "One model, by its name or alias", {_JSON: "Model"}, failures=frozenset({404}))
_READY = Operation(
    "get_ready",
    "Whether the engine answers or has nothing to do",
    {_JSON: "Ready"},
    "The worker that gets the question speaks for itself.",
    failures=frozenset({503}),
)
_TEXT = {"type": "string"}

OPERATIONS = {
    "/v1/embeddings": _CREATE,
    "/embeddings": _CREATE._replace(id="create_embeddings_alias", summary="The same as POST /v1/embeddings"),
    "/v1/models": _LIST,
    "/models": _LIST._replace(id="list_models_alias", summary="The same as GET /v1/models"),
    "/v1/models/{model_id}": _GET,
    "/models/{model_id}": _GET._replace(id="get_model_alias", summary="The same as GET /v1/models/{model_id}"),
    "/": Operation("get_service", "What this is, how it is, and which models it serves", {_JSON: "Service"}),
    "/health/live": Operation("get_live", "Whether the process can answer at all", {_JSON: "Live"}),
    "/health/ready": _READY,
    "/health": _READY._replace(id="get_health", summary="The same as GET /health/ready"),
    "/metrics": Operation(
        "get_metrics",
        "What all workers count, for Prometheus",
        {"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
        "In Prometheus' text format, or in OpenMetrics' for a client whose Accept says so.",
    ),
    "/openapi.json": Operation("get_openapi", "This document", {_JSON: {"type": "object"}}),
    "/docs": Operation("get_docs", "This document as a page to read and to try it", {"text/html": _TEXT}),
    "/docs/{file}": Operation(
        "get_docs_file",
        "A file of that page",
        {"text/javascript": _TEXT, "text/css": _TEXT, "image/png": {}},
        failures=frozenset({404}),
    ),
}
