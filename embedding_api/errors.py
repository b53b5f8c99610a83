"""Every error by name, and how HTTP reports it. Imports nothing of this package.

ServiceError
├── StartError                  SettingsError, AddressError, DeviceNotFoundError, ModelLoadError, ScarcityError
├── RequestError                the client can act; the message says how
│   ├── TransportError          InvalidRequestError, RequestTimeoutError, UriTooLongError, HeadersTooLargeError,
│   │                           ExpectationFailedError
│   ├── (route and key)         NotFoundError, MethodNotAllowedError, InvalidKeyError
│   ├── (body)                  BodyTooLargeError, UnsupportedEncodingError, InvalidBodyError, InvalidJsonError,
│   │                           InvalidFieldError
│   ├── (model)                 ModelNotFoundError, UnsupportedDimensionsError, UnknownPromptError, EmptyTextError,
│   │                           ContextLengthExceededError, TokenIdsNotAcceptedError, UnsupportedTokenError
│   └── (load and time)         OverloadedError, ClientGoneError
└── EngineError                 NotReadyError, DeadlineExceededError, NonFiniteVectorError
"""

from collections.abc import Mapping
from typing import Any

_SERVER_FAILED = "the server failed; its log has the cause under this X-Request-ID"

# The classes with a status of their own, in the order of this file. The first line of a docstring is the meaning.
REPORTED: list[type["ServiceError"]] = []


class ServiceError(Exception):
    """The root of the tree.

    A class statement gives the status, the codes and the headers of the class. Without a status, a class inherits them.

    Args:
        message: What is wrong, the value, the rule and the cure, in one sentence. Never a text or a key.
        param: Path of the field at fault, such as `input[3]`, or None.
        code: One of the class's codes; None for the first.

    Attributes:
        status: The HTTP status.
        codes: Words for programs.
        headers: Headers of the response. An error may replace their values.
    """

    status = 500
    codes: tuple[str, ...] = ("internal_error",)
    headers: Mapping[str, str] = {}

    def __init_subclass__(
        cls, *, status: int | None = None, codes: tuple[str, ...] = (), headers: Mapping[str, str] = {}
    ) -> None:
        super().__init_subclass__()
        if status is not None:
            cls.status, cls.codes, cls.headers = status, codes, headers
            REPORTED.append(cls)

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.codes[0]

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the response, in OpenAI's shape. It reveals nothing of a fault of the server."""
        message = _SERVER_FAILED if self.status == 500 else self.message
        return {"error": {"message": message, "type": type_of(self.status), "param": self.param, "code": self.code}}


def type_of(status: int) -> str:
    """Return OpenAI's word for the kind of the errors that have this status."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


class StartError(ServiceError):
    """The service cannot start. The operator reads the message."""

    @property
    def line(self) -> str:
        """The log line for the operator; see `log.refuse`."""
        return f"memementor-embedding-service cannot start: {self.message}"


class SettingsError(StartError):
    """A setting is wrong, or two contradict each other."""


class AddressError(StartError):
    """The service cannot listen on the configured address."""


class DeviceNotFoundError(StartError):
    """The machine has no such device."""


class ModelLoadError(StartError):
    """A model cannot be loaded. The message names the model, its source, the reason and the cure."""


class ScarcityError(StartError):
    """The system refuses a thread or a process.

    Args:
        what: What it refuses.
    """

    def __init__(self, what: str) -> None:
        cure = "raise the limit on processes and threads (ulimit -u, pids of a container, TasksMax)"
        super().__init__(f"the system refuses {what}; {cure}")


class RequestError(ServiceError):
    """The client can correct the request or send it again, or has left."""


class TransportError(RequestError):
    """The request cannot be read from its connection, which closes after the response."""


class InvalidRequestError(TransportError, status=400, codes=("invalid_request",)):
    """The request line or a header is malformed."""


class RequestTimeoutError(TransportError, status=408, codes=("request_timeout",)):
    """The request did not arrive in time."""


class UriTooLongError(TransportError, status=414, codes=("uri_too_long",)):
    """The request line is too long."""


class HeadersTooLargeError(TransportError, status=431, codes=("headers_too_large",)):
    """The headers are too many or too long."""


class ExpectationFailedError(TransportError, status=417, codes=("expectation_failed",)):
    """The header Expect asks for something other than 100-continue."""


class NotFoundError(RequestError, status=404, codes=("not_found", "model_not_found")):
    """There is no such path, or no such model at this path."""


class MethodNotAllowedError(RequestError, status=405, codes=("method_not_allowed",), headers={"Allow": ""}):
    """The path does not accept this method.

    Args:
        message: See `ServiceError`.
        allowed: The methods that the path accepts, separated by commas.
    """

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.headers = {"Allow": allowed}


class InvalidKeyError(RequestError, status=401, codes=("invalid_api_key",), headers={"WWW-Authenticate": "Bearer"}):
    """The key is missing or wrong."""


class BodyTooLargeError(RequestError, status=413, codes=("body_too_large",)):
    """The body is larger than the server accepts."""


class UnsupportedEncodingError(RequestError, status=415, codes=("unsupported_encoding",)):
    """The body has a Content-Encoding that the server does not support."""


class InvalidBodyError(RequestError, status=400, codes=("invalid_body",)):
    """The body is incomplete, or its chunks are malformed."""


class InvalidJsonError(RequestError, status=400, codes=("invalid_json",)):
    """The body is not JSON in UTF-8, or not an object."""


class InvalidFieldError(
    RequestError, status=422, codes=("missing_field", "invalid_type", "invalid_value", "empty_input", "too_many_inputs")
):
    """A field is missing, has the wrong type, or is out of range."""


class ModelNotFoundError(RequestError, status=400, codes=("model_not_found",)):
    """The field `model` names a model that this server does not serve."""


class UnsupportedDimensionsError(RequestError, status=400, codes=("unsupported_dimensions",)):
    """The request asks for more dimensions than the model has."""


class UnknownPromptError(RequestError, status=400, codes=("unknown_prompt",)):
    """The model has no prompt of this name."""


class EmptyTextError(RequestError, status=422, codes=("empty_input",)):
    """The model's tokenizer makes no tokens of a text."""


class ContextLengthExceededError(RequestError, status=400, codes=("context_length_exceeded",)):
    """A text is longer than the model's window, and the request does not allow truncation."""


class TokenIdsNotAcceptedError(RequestError, status=400, codes=("token_ids_not_accepted",)):
    """The input holds token ids where the server accepts only texts, or ids that the model does not have."""


class UnsupportedTokenError(RequestError, status=400, codes=("unsupported_token",)):
    """A text has a token for which the model has no embedding row."""


class OverloadedError(RequestError, status=429, codes=("server_overloaded",), headers={"Retry-After": "1"}):
    """The queue is full, or the requests without a response hold too many bytes.

    `Admission.overloaded` in `engine/scheduling/admission.py` makes it.

    Args:
        message: See `ServiceError`.
        retry_after_s: Seconds after which the queue should have room.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after_s)}


# nginx's status. Only a client that closed one direction alone can read it.
class ClientGoneError(RequestError, status=499, codes=("client_gone",)):
    """The client closed the connection before the response."""


class EngineError(ServiceError, status=500, codes=("internal_error",)):
    """The server failed. The log has the cause, the client learns only the request id."""


class NotReadyError(EngineError, status=503, codes=("not_ready",), headers={"Retry-After": "5"}):
    """The server is starting or stopping, or its engine does not respond."""


class DeadlineExceededError(EngineError, status=504, codes=("deadline_exceeded",)):
    """The request's deadline passed before the response."""


class NonFiniteVectorError(EngineError):
    """The model computed NaN or infinity."""
