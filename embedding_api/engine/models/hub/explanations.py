"""What an error of a download means, and what to do."""

import errno
import json
import os
import re
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httpx2
from huggingface_hub import constants, errors
from huggingface_hub.utils._http import parse_ratelimit_headers

from embedding_api.engine.models.hub.addresses import host, one_line, proxy, token_name, url

# The system's numbers for a folder that cannot be written to, or is full.
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)

# What httpx2 and the library raise on an answer that they do not expect. Only the last error of a chain counts, since
# the library catches such errors on its way.
_NOT_OF_A_HUB = (
    httpx2.TooManyRedirects, httpx2.DecodingError, json.JSONDecodeError, errors.FileMetadataError, KeyError, TypeError,
    AttributeError, AssertionError,
)  # fmt: skip


class ExplainedError(Exception):
    """A failure whose message already says what went wrong and what to do."""


def explain(error: BaseException) -> str:
    """Return what went wrong and what to do, in one line without a secret."""
    chain = [error]
    # The library raises its own error from what it saw, and httpx2 its own from the error of a socket.
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    explained = (meaning(cause) for kinds, meaning in _EXPLANATIONS for cause in chain if isinstance(cause, kinds))
    return one_line(next(filter(None, explained), None) or _unexpected(error))


def retry_after_s(response: httpx2.Response) -> int:
    """Return the seconds that the hub asks to wait; 0 if it does not ask for any."""
    limits = parse_ratelimit_headers(response.headers)
    if limits is not None and limits.remaining == 0:
        return int(limits.reset_in_seconds)
    seconds = response.headers.get("Retry-After", "")
    return int(seconds) if seconds.isdecimal() else 0


def _refused(error: errors.HfHubHTTPError) -> str:
    """Return what a status of the hub, or of a server in its place, means."""
    response: httpx2.Response = error.response
    status, server = response.status_code, host(url(error))
    variable = proxy(url(error)).partition(" ")[0] or "HTTPS_PROXY"
    message = response.headers.get("X-Error-Message")
    words = (message or response.reason_phrase)[:200]
    quote = f"{server} answers {status}{words and ': '}{words}"
    revision = unquote(response.request.url.path.partition("/revision/")[2])
    unknown = "the hub has no such model, or it is private; check the name, or set HF_TOKEN"
    seconds = retry_after_s(response)
    wait = f"wait {seconds} s" if seconds else "wait some minutes"
    # By the hub's own code for an error, and by status.
    meanings = {
        "RevisionNotFound": f"the hub has no revision {revision!r} of it; check what stands behind @",
        "GatedRepo": "it is gated; ask for access on its page, then set HF_TOKEN to a token of that account",
        "RepoNotFound": unknown,
        401: unknown,
        403: f"a proxy or firewall forbids it ({quote}); let this machine reach {server}, set HF_ENDPOINT to a mirror, "
        "or name a local folder",
        404: f"the hub has no such model ({quote}); check the name and HF_ENDPOINT",
        407: f"the proxy wants a user and a password ({quote}); write them into {variable}",
        429: f"the hub gets too many requests from here ({quote}); {wait}",
    }
    if not response.request.headers.get("Authorization"):
        meanings[429] += ", or set HF_TOKEN: a token raises the limit"
    else:
        meanings["RepoNotFound"] = f"the hub has no such model, or {token_name()} may not read it; check both"
        meanings[401] = (
            f"the hub does not accept {token_name()} ({quote}); put a valid token in its place, or remove it if the "
            "model is public"
        )
        if message:
            meanings[403] = f"{token_name()} may not read it ({quote}); give the token that right, or use another"
    other = f"the hub refuses ({quote}); check the name and HF_ENDPOINT, or name a local folder"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        other = f"the hub is down or overloaded ({quote}); try again later, or name a local folder"
    return meanings.get(response.headers.get("X-Error-Code")) or meanings.get(status, other)


def _unreached(error: BaseException) -> str:
    address = url(error)
    server = host(address)
    if name := proxy(address):
        server += f" through the proxy of {name}"
        cure = f"let the proxy allow it, or correct {name.partition(' ')[0]} (a user and password belong into it)"
    elif "HF_ENDPOINT" in os.environ:
        cure = "check HF_ENDPOINT and the network"
    else:
        cure = "check the network, or set HTTPS_PROXY if it has a proxy"
    reason = str(error) or type(error).__name__
    return f"the connection to {server} failed ({reason}); {cure}, try again, or name a local folder"


def _offline(_: BaseException) -> str:
    name = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    return (
        f"{name}={os.environ.get(name, '')} forbids to ask the hub, and the cache {constants.HF_HUB_CACHE} does not "
        f"hold it; unset {name} for one start, set HF_HOME to a cache that has it, or name a local folder"
    )


def _no_url(_: BaseException) -> str:
    endpoint = re.sub(r"[^/\s]+@", "", constants.ENDPOINT)
    return f"HF_ENDPOINT={endpoint!r} is no address of a hub; write https:// and the host, or unset it"


def _no_token(_: BaseException) -> str:
    return f"{token_name()} holds characters that no token has; copy it again, or unset it for a public model"


def _insecure(error: ssl.SSLError) -> str:
    server = host(constants.ENDPOINT)
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"{server} fails at TLS ({error}); check HF_ENDPOINT and HTTPS_PROXY"
    # httpx2 reads neither REQUESTS_CA_BUNDLE nor CURL_CA_BUNDLE.
    reason = getattr(error, "verify_message", "") or error
    return (
        f"the certificate of {server} is not trusted ({reason}); if the network's own authority made it, set "
        "SSL_CERT_FILE to a file with that authority's certificate"
    )


def _unwritable(error: OSError) -> str | None:
    if error.errno not in _UNWRITABLE:
        return None
    where = error.filename or constants.HF_HUB_CACHE
    return (
        f"{where} cannot be written ({error.strerror}); set HF_HOME to a folder that this user can write to and that "
        "has room, or name a local folder"
    )


def _unexpected(error: BaseException) -> str:
    if isinstance(error, _NOT_OF_A_HUB):
        cure = "check HF_ENDPOINT" if "HF_ENDPOINT" in os.environ else "log in where the network asks for it"
        return (
            f"{host(constants.ENDPOINT)} answers, but not as a hub does (a log-in page or another server may answer in "
            f"its place); {cure}, or name a local folder"
        )
    line = next(iter(str(error).splitlines()), "")
    return f"the download failed ({type(error).__name__}: {line}); try again, or name a local folder"


# The narrow classes before the wide ones: most are OSErrors.
_EXPLANATIONS: tuple[tuple[type | tuple[type, ...], Callable[[Any], str | None]], ...] = (
    (ExplainedError, str),
    (errors.OfflineModeIsEnabled, _offline),
    (errors.HFValidationError, lambda error: f"the hub can have no such model ({error}); check the name"),
    ((httpx2.InvalidURL, httpx2.UnsupportedProtocol), _no_url),
    ((httpx2.LocalProtocolError, UnicodeEncodeError), _no_token),
    (ssl.SSLError, _insecure),
    (errors.HfHubHTTPError, _refused),
    ((httpx2.TransportError, ConnectionError, TimeoutError), _unreached),
    (OSError, _unwritable),
)
