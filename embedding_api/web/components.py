"""What answers are made of, for the OpenAPI document, in JSON Schema: their bodies and their headers.

A name in the place of a schema stands for the schema of that name.
"""

from typing import Any

from embedding_api.telemetry.access import REQUEST_ID

_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def _object(*, optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


SCHEMAS: dict[str, dict[str, Any]] = {
    "Embeddings": _object(
        object={"const": "list"},
        data={"type": "array", "minItems": 1, "items": "Embedding", "description": "In the order of `input`."},
        model={"type": "string", "description": "The model, as the request named it."},
        usage="Usage",
    )
    | {
        "examples": [
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": 0, "embedding": [0.1098761, 0.21182972, 0.46818143, 0.8508006]}
                ],
                "model": "sentence-transformers/all-MiniLM-L6-v2",
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            }
        ]
    },
    "Embedding": _object(
        object={"const": "embedding"},
        index={**_COUNT, "description": "The place of its text in `input`."},
        embedding={
            "description": "The vector; in base64 the bytes of little-endian float32.",
            "anyOf": [
                {"title": "Numbers", "type": "array", "minItems": 1, "items": {"type": "number"}},
                {"title": "Base64", "type": "string", "contentEncoding": "base64"},
            ],
        },
        truncated={"const": True, "description": "There if the text was cut to the model's window."},
        optional=("truncated",),
    ),
    "Usage": _object(
        prompt_tokens={**_COUNT, "description": "Tokens that the model read, special tokens and prompts included."},
        total_tokens={**_COUNT, "description": "The same."},
    ),
    "Models": _object(object={"const": "list"}, data={"type": "array", "minItems": 1, "items": "Model"}),
    "Model": _object(
        id={"type": "string", "description": "Its public name."},
        object={"const": "model"},
        created={"type": "integer", "description": "When it was loaded, in seconds since 1970."},
        owned_by={"type": "string", "description": "The organisation on the hub, or local."},
        dimensions={"type": "integer", "minimum": 1, "description": "Components of its vectors."},
        max_input_tokens={"type": ["integer", "null"], "description": "Its window; null if it has none."},
        prompts={"type": "object", "additionalProperties": _STRING, "description": "Its prompts by name."},
        backend={"type": "string", "description": "What computes it."},
        precision={"type": "string", "description": "What it computes in."},
        proof="Proof",
    ),
    "Proof": _object(
        measure={
            "type": "string",
            "description": "How its vectors were compared with those of `SentenceTransformer.encode` at start-up: "
            "largest_difference of any component, as a share of the vector's length, or cosine of the worst text.",
        },
        value={"type": "number"},
        bound={"type": "number", "description": "Beyond it the model would not be served."},
    ),
    "Service": _object(
        service=_STRING,
        status={"type": "string", "enum": ["healthy", "unhealthy"]},
        version=_STRING,
        available_models={"type": "array", "minItems": 1, "items": _STRING},
    ),
    "Error": _object(
        error=_object(
            message={"type": "string", "description": "What is wrong, the value, the rule and the cure."},
            type={"type": "string", "description": "The kind, as OpenAI's API has it."},
            param={"type": ["string", "null"], "description": "Path of the field at fault, such as input[3]."},
            code={"type": "string", "description": "A word for programs."},
        )
    ),
    "Live": _object(status={"const": "live"}),
    "Ready": _object(status={"const": "ready"}),
}


def error(type_: str, codes: list[str], message: str) -> dict[str, Any]:
    """The body of a failure that has this type and one of these codes; the message is an example."""
    words = {"type": {"enum": [type_]}, "code": {"enum": codes}}
    example = {"error": {"message": message, "type": type_, "param": None, "code": codes[0]}}
    return {"allOf": ["Error", {"properties": {"error": {"properties": words}}}], "examples": [example]}


# Whether a header is there whenever its status is told, and what it says.
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {
        "required": True,
        "description": "The request's own, if it sent one, else a new one. The line in the server's log has the same.",
        "schema": {"type": "string", "pattern": f"^{REQUEST_ID}$"},
    },
    "Server-Timing": {
        "required": True,
        "description": "Where the time went, in milliseconds: `tokenize`, `queue`, `inference`, `total`.",
        "schema": _STRING,
    },
    "X-Truncated-Inputs": {
        "description": "How many texts were cut to the model's window; absent if none was.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"required": True, "description": "How to send a key.", "schema": {"const": "Bearer"}},
    "Allow": {"required": True, "description": "The methods that the path takes.", "schema": _STRING},
    "Retry-After": {
        "required": True,
        "description": "Seconds after which to come again.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Connection": {"description": "`close` where no other request can follow on the connection.", "schema": _STRING},
}
REQUEST_ID_PARAMETER = {
    "description": f"A name for the request, in its answer and the server's log: `{REQUEST_ID}`. Another is ignored.",
    "schema": _STRING,
}
