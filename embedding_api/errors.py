"""Every error by name, and how HTTP reports it. Imports nothing of this package.

ServiceError
├── StartError                  SettingsError, AddressError, DeviceNotFoundError, ModelLoadError
├── RequestError                the client can correct it; the message says how
│   ├── TransportError          InvalidRequestError, RequestTimeoutError, UriTooLongError, HeadersTooLargeError,
│   │                           ExpectationFailedError
│   ├── (route and key)         NotFoundError, MethodNotAllowedError, InvalidKeyError
│   ├── (body)                  BodyTooLargeError, UnsupportedEncodingError, InvalidBodyError, InvalidJsonError,
│   │                           InvalidFieldError
│   ├── (model)                 ModelNotFoundError, UnsupportedDimensionsError, UnknownPromptError, EmptyTextError,
│   │                           ContextLengthExceededError, TokenIdsNotAcceptedError, UnsupportedTokenError
│   └── (queue)                 OverloadedError, ClientGoneError
└── EngineError                 NotReadyError, DeadlineExceededError, NonFiniteVectorError
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class ServiceError(Exception):
    """The root of the tree.

    Args:
        message: What is wrong, the value, the rule and the cure, in one sentence. Never a text or a key.
        param: Path of the field at fault, such as `input[3]`, or None.
        code: One of the codes of its row in TABLE; None for the first.
    """

    # Headers of the response whose values only this error knows.
    headers: Mapping[str, str] = _NO_HEADERS

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


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


class RequestError(ServiceError):
    """The client can correct the request."""


class TransportError(RequestError):
    """The request cannot be read from its connection, which closes after the response."""


class InvalidRequestError(TransportError):
    """The request line or a header is malformed."""


class RequestTimeoutError(TransportError):
    """The request did not arrive in time."""


class UriTooLongError(TransportError):
    """The request line is too long."""


class HeadersTooLargeError(TransportError):
    """The headers are too many or too long."""


class ExpectationFailedError(TransportError):
    """The header Expect asks for something other than 100-continue."""


class NotFoundError(RequestError):
    """There is no such path, or no such model at this path."""


class MethodNotAllowedError(RequestError):
    """The path does not accept this method.

    Args:
        message: See `ServiceError`.
        allowed: The methods that the path accepts, separated by commas.
    """

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.headers = {"Allow": allowed}


class InvalidKeyError(RequestError):
    """The key is missing or wrong."""


class BodyTooLargeError(RequestError):
    """The body is larger than the server accepts."""


class UnsupportedEncodingError(RequestError):
    """The body has a Content-Encoding that the server does not support."""


class InvalidBodyError(RequestError):
    """The body is incomplete, or its chunks are malformed."""


class InvalidJsonError(RequestError):
    """The body is not JSON in UTF-8, or not an object."""


class InvalidFieldError(RequestError):
    """A field is missing, has the wrong type, or is out of range."""


class ModelNotFoundError(RequestError):
    """The field `model` names a model that this server does not serve."""


class UnsupportedDimensionsError(RequestError):
    """The request asks for more dimensions than the model has."""


class UnknownPromptError(RequestError):
    """The model has no prompt of this name."""


class EmptyTextError(RequestError):
    """The model's tokenizer makes no tokens of a text."""


class ContextLengthExceededError(RequestError):
    """A text is longer than the model's window, and the request does not allow truncation."""


class TokenIdsNotAcceptedError(RequestError):
    """The input holds token ids where the server accepts only texts, or ids that the model does not have."""


class UnsupportedTokenError(RequestError):
    """A text has a token for which the model has no embedding row."""


class OverloadedError(RequestError):
    """The queue is full.

    Args:
        message: See `ServiceError`.
        retry_after_s: Seconds after which the queue should have room.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = {"Retry-After": str(retry_after_s)}


class ClientGoneError(RequestError):
    """The client closed the connection before the response."""


class EngineError(ServiceError):
    """The server failed. The log has the cause, the client learns only the request id."""


class NotReadyError(EngineError):
    """The server is starting or stopping, or its engine does not respond."""


class DeadlineExceededError(EngineError):
    """The request's deadline passed before the response."""


class NonFiniteVectorError(EngineError):
    """The model computed NaN or infinity."""


class Row(NamedTuple):
    """How HTTP reports a class of errors.

    Attributes:
        status: The HTTP status.
        codes: Words for programs. An error that carries none has the first.
        headers: Headers of the response; the error's own replace them.
    """

    status: int
    codes: tuple[str, ...]
    headers: Mapping[str, str] = _NO_HEADERS

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"


# The only table of errors. The first line of a class's docstring is its meaning.
TABLE: dict[type[ServiceError], Row] = {
    NotFoundError: Row(404, ("not_found", "model_not_found")),
    MethodNotAllowedError: Row(405, ("method_not_allowed",), {"Allow": ""}),
    InvalidKeyError: Row(401, ("invalid_api_key",), {"WWW-Authenticate": "Bearer"}),
    BodyTooLargeError: Row(413, ("body_too_large",)),
    UnsupportedEncodingError: Row(415, ("unsupported_encoding",)),
    InvalidBodyError: Row(400, ("invalid_body",)),
    InvalidJsonError: Row(400, ("invalid_json",)),
    InvalidFieldError: Row(422, ("missing_field", "invalid_type", "invalid_value", "empty_input", "too_many_inputs")),
    ModelNotFoundError: Row(400, ("model_not_found",)),
    UnsupportedDimensionsError: Row(400, ("unsupported_dimensions",)),
    UnknownPromptError: Row(400, ("unknown_prompt",)),
    EmptyTextError: Row(422, ("empty_input",)),
    ContextLengthExceededError: Row(400, ("context_length_exceeded",)),
    TokenIdsNotAcceptedError: Row(400, ("token_ids_not_accepted",)),
    UnsupportedTokenError: Row(400, ("unsupported_token",)),
    OverloadedError: Row(429, ("server_overloaded",), {"Retry-After": "1"}),
    # nginx's number. Only a client that closed one direction alone can read it.
    ClientGoneError: Row(499, ("client_gone",)),
    InvalidRequestError: Row(400, ("invalid_request",)),
    RequestTimeoutError: Row(408, ("request_timeout",)),
    UriTooLongError: Row(414, ("uri_too_long",)),
    HeadersTooLargeError: Row(431, ("headers_too_large",)),
    ExpectationFailedError: Row(417, ("expectation_failed",)),
    EngineError: Row(500, ("internal_error",)),
    NotReadyError: Row(503, ("not_ready",), {"Retry-After": "5"}),
    DeadlineExceededError: Row(504, ("deadline_exceeded",)),
    NonFiniteVectorError: Row(500, ("internal_error",)),
}
