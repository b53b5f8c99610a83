"""Gunicorn's exceptions as errors of ours."""

from gunicorn.config import Config
from gunicorn.http import errors

from embedding_api.errors import (
    EngineError,
    ExpectationFailedError,
    HeadersTooLargeError,
    InvalidRequestError,
    ServiceError,
    UriTooLongError,
)

# The message of the first class that fits. It repeats nothing of the request, which may contain anything.
_MESSAGES: dict[type[Exception], str] = {
    errors.LimitRequestLine: "the request line is longer than {config.limit_request_line} bytes; send long values in "
    "the body of a POST",
    errors.LimitRequestHeaders: "the headers exceed the limit of {config.limit_request_fields} headers, "
    "{config.limit_request_field_size} bytes each and 64 KiB together; send fewer or shorter headers",
    errors.ExpectationFailed: "the header Expect is not 100-continue, the only supported value; leave it out",
    errors.InvalidRequestMethod: "the method is malformed; send 3 to 20 upper-case letters, such as POST",
    errors.InvalidHTTPVersion: "the server does not support this version of HTTP; send HTTP/1.1",
    errors.InvalidRequestLine: "the request line is malformed; send `POST /path HTTP/1.1` in printable ASCII, ended by "
    "CRLF, as plain HTTP: this port has no TLS",
    errors.ObsoleteFolding: "a header continues on a second line; send each header on one line",
    errors.UnsupportedTransferCoding: "the server does not support this Transfer-Encoding; send the body with "
    "Content-Length, or with `Transfer-Encoding: chunked`",
    errors.InvalidHeaderName: "the name of a header is malformed; send letters, digits and hyphens, with no space "
    "before the colon",
    errors.InvalidHeader: "a header is malformed or contradicts another; send each as one line `Name: value` without "
    "control characters, at most one Host, and either one Content-Length of digits or `Transfer-Encoding: chunked`",
    errors.InvalidSchemeHeaders: "the headers that tell https from http contradict each other; correct them in the "
    "proxy",
    errors.ConfigurationProblem: "the path does not begin with the SCRIPT_NAME in the headers; correct it in the proxy",
    errors.ParseException: "the request is malformed",
}
# All others are malformed requests.
_ERRORS: dict[type[Exception], type[ServiceError]] = {
    errors.LimitRequestLine: UriTooLongError,
    errors.LimitRequestHeaders: HeadersTooLargeError,
    errors.ExpectationFailed: ExpectationFailedError,
}


def of(error: BaseException, config: Config) -> ServiceError:
    """Return our error for what Gunicorn raised while it read a request or sent its response."""
    if isinstance(error, ServiceError):
        return error
    # These two are ParseExceptions, but the application made the headers.
    is_ours = isinstance(error, errors.InvalidResponseHeader | errors.InvalidResponseHeaderName)
    kind = next((kind for kind in _MESSAGES if isinstance(error, kind) and not is_ours), None)
    if kind is None:
        return EngineError(f"Gunicorn raised {type(error).__name__}")
    return _ERRORS.get(kind, InvalidRequestError)(_MESSAGES[kind].format(config=config))
