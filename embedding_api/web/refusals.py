"""Answers for what never reaches Flask, as bytes: what Gunicorn's parser refuses, and what does not arrive in time."""

import http
import logging
import uuid
from collections.abc import Callable
from typing import NamedTuple

import orjson
from gunicorn.config import Config
from gunicorn.http import errors

from embedding_api.telemetry import metrics
from embedding_api.web import answer

logger = logging.getLogger(__name__)


# The word for programs, for each status that is told here.
CODES = {
    400: "invalid_request",
    408: "request_timeout",
    414: "uri_too_long",
    417: "expectation_failed",
    431: "headers_too_large",
    500: "internal_error",
}


class Refusal(NamedTuple):
    """A failure as its client is told; `status` is one of CODES."""

    status: int
    message: str

    @property
    def code(self) -> str:
        """The word for programs."""
        return CODES[self.status]

    def tell(self, send: Callable[[bytes], object], cause: Exception | None = None) -> None:
        """Sends the whole response, after which the connection must close, and logs it under the same request id.

        Args:
            send: Takes the bytes.
            cause: What is logged if the fault is ours.
        """
        is_ours, request_id = self.status >= 500, uuid.uuid4().hex
        said = {408: "late request refused", 500: "request failed"}.get(self.status, "malformed request refused")
        fields = {"request_id": request_id, "status": self.status, "code": self.code}
        # What the parser raised quotes the request.
        logger.log(
            # Anybody can send what is malformed, and as often as they like: there is nothing to mend here.
            logging.ERROR if is_ours else logging.INFO,
            said,
            exc_info=cause if is_ours else None,
            extra={"fields": fields},
        )
        metrics.REFUSED.labels(self.code).inc()
        metrics.REQUESTS.labels("-", "-", self.status, "").inc()
        body = orjson.dumps(answer.failure(answer.type_of(self.status), self.code, self.message))
        head = (
            f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n\r\n"
        )
        send(head.encode() + body)


INTERNAL = Refusal(500, answer.INTERNAL)

# More than one class may apply: the first does. The messages quote nothing of the request, which may be anything.
_MALFORMED: dict[type[Exception], str] = {
    errors.InvalidRequestMethod: "the method is malformed; it must be 3 to 20 upper-case letters, such as POST",
    errors.InvalidHTTPVersion: "the version of HTTP is not taken; send HTTP/1.1",
    errors.InvalidRequestLine: "the request line is malformed; it must be `POST /path HTTP/1.1` in printable ASCII, "
    "ended by CRLF; this port speaks plain HTTP",
    errors.ObsoleteFolding: "a header goes on in a second line; write each in one line",
    errors.UnsupportedTransferCoding: "a Transfer-Encoding is not understood; send the body with Content-Length, or "
    "with `Transfer-Encoding: chunked`",
    errors.InvalidHeaderName: "the name of a header is malformed; it must be letters, digits and hyphens, with a colon "
    "right behind",
    errors.InvalidHeader: "a header is malformed or contradicts another; each must be one line `Name: value` without "
    "control characters, with no more than one Host, and one Content-Length of digits or "
    "`Transfer-Encoding: chunked`",
    errors.InvalidSchemeHeaders: "the headers that tell https from http contradict each other; mend them in the proxy",
    errors.ConfigurationProblem: "the path is not below the SCRIPT_NAME that is given for it; mend that in the proxy",
}


def not_arrived(timeout_s: float) -> Refusal:
    """For a request that began and was not there as a whole in time."""
    return Refusal(408, f"the request had not arrived whole {timeout_s:g} s after its first byte; send it again")


def of(error: Exception, config: Config) -> Refusal:
    """For what Gunicorn raised while it read a request or answered it."""
    # What the application tried to send is its fault, whatever these are derived from.
    is_ours = isinstance(error, errors.InvalidResponseHeader | errors.InvalidResponseHeaderName)
    if is_ours or not isinstance(error, errors.ParseException):
        return INTERNAL
    if isinstance(error, errors.LimitRequestLine):
        rule = f"the request line is over the {config.limit_request_line} bytes that are taken"
        return Refusal(414, f"{rule}; send what is long as the body of a POST")
    if isinstance(error, errors.LimitRequestHeaders):
        rule = f"{config.limit_request_fields} headers of {config.limit_request_field_size} bytes each, 64 KiB in all"
        return Refusal(431, f"the headers are over what is taken: {rule}; send fewer or shorter")
    if isinstance(error, errors.ExpectationFailed):
        return Refusal(417, "the header Expect can only be 100-continue; leave it out")
    message = next((text for kind, text in _MALFORMED.items() if isinstance(error, kind)), "the request is malformed")
    return Refusal(400, message)
