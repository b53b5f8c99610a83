"""Brings a model from the Hugging Face hub into its cache. Run as a program, in a process of its own.

A download starts threads, which a master that forks must not have. Imports nothing of this package.
"""

import collections
import errno
import functools
import json
import logging
import os
import re
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
from huggingface_hub import HfApi, constants, errors, get_token, set_client_factory, snapshot_download
from huggingface_hub.file_download import REGEX_COMMIT_HASH
from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status, parse_ratelimit_headers

# Files that neither torch nor a tokenizer reads.
_IGNORED = [
    "*.onnx",
    "onnx/*",
    "openvino/*",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.tflite",
    "coreml/*",
    "*.mlmodel",
]
_PICKLES = ["*.bin", "*.pt", "*.pth", "*.pkl"]

# Which files of a repository are downloaded, by what is asked for.
_PATTERNS: dict[str, dict[str, Any]] = {
    "all": {"ignore_patterns": _IGNORED},
    "safe": {"ignore_patterns": _IGNORED + _PICKLES},
    "code": {"allow_patterns": ["*.py"]},
}
# The longest wait for an answer where the library sets none, and the longest that a hub may ask for.
_TIMEOUT_S, _LONGEST_WAIT_S = float(constants.HF_HUB_ETAG_TIMEOUT), 60
# How often one piece of a file may be given. Where nobody can resume, the library would begin anew without end.
_MOST_TRIES = 6

# What a folder that cannot be written to, or is full, says.
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)


class _BrokenOffError(Exception):
    """The same piece of a file broke off each time."""


class _CertificatesError(Exception):
    """The file or folder of trusted certificates cannot be read."""


class _ProxyAddressError(Exception):
    """A variable that names a proxy cannot be understood."""


def main(name: str, revision: str, files: str) -> dict[str, Any]:
    """Downloads what is missing; takes what the cache has if the hub fails.

    Args:
        name: The repository's.
        revision: Which; its main branch's newest if empty.
        files: Which of its files: `all`, `safe` for those without pickles, or `code` for Python's alone.

    Returns:
        `path` of the folder and `warnings`, or `problem`: what went wrong and what to do, in one line.
    """
    set_client_factory(_client)
    download = functools.partial(snapshot_download, name, revision=revision or None, **_PATTERNS[files])
    try:
        # A download would take what the cache has without a word of why. A commit never changes, so nothing is asked.
        if not REGEX_COMMIT_HASH.fullmatch(revision):
            HfApi().model_info(name, revision=revision or None, timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - a program's last resort: whatever it is goes to the operator in a line
        return _cached(error, download)
    try:
        return {"path": download(), "warnings": []}
    except Exception as error:  # noqa: BLE001 - the same
        return {"problem": _problem(error)}


def _cached(error: Exception, download: Callable[..., Any]) -> dict[str, Any]:
    """What the cache has, and why the hub did not give it; or why there is nothing."""
    problem = _problem(error)
    if isinstance(error, errors.RevisionNotFoundError):
        return {"problem": problem}
    try:
        path = download(local_files_only=True)
    except errors.IncompleteSnapshotError:
        return {"problem": f"{problem} (the cache holds only a part of it)"}
    except Exception:  # noqa: BLE001 - what the cache lacks is no news beside what the hub said
        return {"problem": problem}
    is_wanted = isinstance(error, errors.OfflineModeIsEnabled)
    return {"path": path, "warnings": [] if is_wanted else [f"it is served as the cache has it: {problem}"]}


# How the hub is asked


def _client() -> httpx2.Client:
    """The library's own client, which neither waits nor tries without end."""
    try:
        client = default_client_factory()
    except OSError as error:
        raise _CertificatesError(str(error)) from error
    except (ValueError, ImportError, httpx2.InvalidURL) as error:
        raise _ProxyAddressError(str(error)) from error
    n_given = collections.Counter[tuple[str, ...]]()

    def limit(request: httpx2.Request) -> None:
        timeouts = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {key: value or _TIMEOUT_S for key, value in timeouts.items()}

    def end(response: httpx2.Response) -> None:
        request = response.request
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS and (_retry_after_s(response) or 0) > _LONGEST_WAIT_S:
            response.read()
            hf_raise_for_status(response)
        if request.method == "GET" and response.is_success:
            piece = (str(request.url), request.headers.get("Range", ""))
            n_given[piece] += 1
            if n_given[piece] > _MOST_TRIES:
                raise _BrokenOffError

    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks["request"], limit], "response": [*hooks["response"], end]}
    return client


def _retry_after_s(response: httpx2.Response) -> int | None:
    limits = parse_ratelimit_headers(response.headers)
    if limits is not None and limits.remaining == 0:
        return int(limits.reset_in_seconds)
    seconds = response.headers.get("Retry-After", "")
    return int(seconds) if seconds.isdecimal() else None


# What went wrong


def _problem(error: BaseException) -> str:
    """What went wrong and what to do, in one line without a token."""
    chain = [error]
    # The library hides behind its own error what was seen, and httpx2 behind its own what a socket said.
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    # Of plain Python's errors those that were raised in the end count, and not what was caught on the way.
    explained = (
        explain(cause)
        for kinds, explain in _EXPLANATIONS
        for cause in (chain[:1] if explain is _no_hub else chain)
        if isinstance(cause, kinds)
    )
    return _line(next(filter(None, explained), None) or _unknown(error))


def _line(text: str) -> str:
    """The text in one line, without the token, without passwords in addresses and without what signs them."""
    text = re.sub(r"(?<=//)[^/\s]+@|(?<=\S)\?\S+=\S*", "", " ".join(text.split()))
    return text.replace(token, "(hidden)") if (token := _token()) else text


@functools.cache
def _token() -> str | None:
    try:
        return get_token()
    except Exception:  # noqa: BLE001 - one that cannot be had is sent to nobody
        return None


def _token_name() -> str:
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else f"the token in {constants.HF_TOKEN_PATH}"


def _url(error: BaseException) -> str:
    """What was asked for when an error came up, or else the hub's own address."""
    try:
        return str(error.request.url)  # type: ignore[attr-defined] # of httpx2's errors
    except (AttributeError, RuntimeError):
        return str(constants.ENDPOINT)


def _host(url: str) -> str:
    """Host and port of an address, without a password."""
    return (urlsplit(url).netloc or url).rpartition("@")[2]


def _proxy(url: str) -> str:
    """The variable that names a proxy for an address, and the proxy; empty if there is none."""
    proxies = urllib.request.getproxies()
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    if name := next((name for name in (scheme, "all") if name in proxies), ""):
        return "" if urllib.request.proxy_bypass(host) else f"{name.upper()}_PROXY ({_host(proxies[name])})"
    return ""


def _reached(error: BaseException) -> tuple[str, str]:
    """Whoever was to be reached, and what to check if that fails."""
    url = _url(error)
    if proxy := _proxy(url):
        return f"the proxy of {proxy}", f"correct or unset {proxy.partition(' ')[0]}"
    if "HF_ENDPOINT" in os.environ:
        return _host(url), "check HF_ENDPOINT and the network"
    return _host(url), "check the network, or set HTTPS_PROXY if it has a proxy"


def _unreached(how: str) -> Callable[[BaseException], str]:
    def explain(error: BaseException) -> str:
        host, cure = _reached(error)
        return f"{host} {how}; {cure}, or name a local folder"

    return explain


def _offline(_: BaseException) -> str:
    name = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    return (
        f"{name}={os.environ.get(name, '')} forbids to ask the hub, and the cache {constants.HF_HUB_CACHE} does not "
        f"hold it; unset {name} for one start, set HF_HOME to a cache that has it, or name a local folder"
    )


def _no_url(_: BaseException) -> str:
    endpoint = re.sub(r"[^/\s]+@", "", constants.ENDPOINT)
    return f"HF_ENDPOINT={endpoint!r} is no address of a hub; write https:// and the host, or unset it"


def _token_unsendable(_: BaseException) -> str:
    return f"{_token_name()} holds characters that no token has; copy it again, or unset it if the model is public"


def _untrusted(error: BaseException) -> str:
    # httpx2 reads neither REQUESTS_CA_BUNDLE nor CURL_CA_BUNDLE.
    reason = getattr(error, "verify_message", "") or error
    return (
        f"the certificate of {_host(constants.ENDPOINT)} is not trusted ({reason}); if the network's own authority "
        "made it, set SSL_CERT_FILE to a file with that authority's certificate"
    )


def _certificates_unreadable(error: BaseException) -> str:
    name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
    return f"{name}={os.environ.get(name, '')} cannot be read as certificates ({error}); correct or unset {name}"


def _no_tls(error: BaseException) -> str:
    return f"{_host(constants.ENDPOINT)} does not speak TLS as it should ({error}); check HF_ENDPOINT and HTTPS_PROXY"


def _no_proxy(error: BaseException) -> str:
    return f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names no proxy ({error}); write http://host:port, or unset it"


def _proxy_refuses(error: BaseException) -> str:
    proxy = _proxy(_url(error)) or "HTTPS_PROXY"
    name = proxy.partition(" ")[0]
    return (
        f"the proxy of {proxy} refuses to connect to {_host(_url(error))} ({error}); let the proxy allow it, correct "
        f"{name} (a user and password belong into it), or name a local folder"
    )


def _no_connection(error: BaseException) -> str:
    host, cure = _reached(error)
    return f"{host} cannot be reached ({error or type(error).__name__}); {cure}, or name a local folder"


def _lost(error: BaseException) -> str:
    host, cure = _reached(error)
    return f"the connection to {host} broke off ({error}); try again, {cure}, or name a local folder"


def _broken_off(_: BaseException) -> str:
    return (
        "the download broke off at the same place each time; a proxy or a firewall may limit its size: lift that, or "
        "name a local folder"
    )


def _no_hub(_: BaseException) -> str:
    cure = "check HF_ENDPOINT" if "HF_ENDPOINT" in os.environ else "log in where the network asks for it"
    return (
        f"{_host(constants.ENDPOINT)} answers, but not as a hub does (a log-in page or another server may answer in "
        f"its place); {cure}, or name a local folder"
    )


def _no_name(error: BaseException) -> str:
    return f"the hub can have no such model ({error}); check the name"


def _unwritable(error: OSError) -> str | None:
    if error.errno not in _UNWRITABLE:
        return None
    where = error.filename or constants.HF_HUB_CACHE
    return (
        f"{where} cannot be written ({error.strerror}); set HF_HOME to a folder that this user can write to and that "
        "has room, or name a local folder"
    )


def _unknown(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    return f"the download failed ({type(error).__name__}: {line}); try again, or name a local folder"


# What a status of the hub, or of whoever answers in its place, means


def _refused(error: BaseException) -> str:
    response: httpx2.Response = error.response  # type: ignore[attr-defined] # an HfHubHTTPError
    code, status = response.headers.get("X-Error-Code"), response.status_code
    if explain := _BY_CODE.get(code) or _BY_STATUS.get(status):
        return explain(response)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"the hub is down or overloaded ({_answer(response)}); try again later, or name a local folder"
    return f"the hub refuses ({_answer(response)}); check the name and HF_ENDPOINT, or name a local folder"


def _answer(response: httpx2.Response) -> str:
    """Who said what: the status, and the hub's own words for it."""
    said = response.headers.get("X-Error-Message") or response.reason_phrase
    return f"{_host(str(response.request.url))} answers {response.status_code}{said and ': '}{said[:200]}"


def _unknown_model(response: httpx2.Response) -> str:
    if response.request.headers.get("Authorization"):
        return f"the hub has no such model, or {_token_name()} may not read it; check both"
    return "the hub has no such model, or it is private; check the name, or set HF_TOKEN"


def _unknown_revision(response: httpx2.Response) -> str:
    revision = unquote(response.request.url.path.partition("/revision/")[2])
    return f"the hub has no revision {revision!r} of it; check what stands behind @"


def _unauthorized(response: httpx2.Response) -> str:
    if not response.request.headers.get("Authorization"):
        return _unknown_model(response)
    return (
        f"the hub does not accept {_token_name()} ({_answer(response)}); put a valid token in its place, or remove it "
        "if the model is public"
    )


def _forbidden(response: httpx2.Response) -> str:
    if response.request.headers.get("Authorization") and response.headers.get("X-Error-Message"):
        return f"{_token_name()} may not read it ({_answer(response)}); give the token that right, or use another"
    return (
        f"a proxy or firewall forbids it ({_answer(response)}); let this machine reach "
        f"{_host(str(response.request.url))}, set HF_ENDPOINT to a mirror, or name a local folder"
    )


def _too_many(response: httpx2.Response) -> str:
    seconds = _retry_after_s(response)
    wait = f"wait {seconds} s" if seconds else "wait some minutes"
    more = "" if response.request.headers.get("Authorization") else ", or set HF_TOKEN: a token raises the limit"
    return f"the hub gets too many requests from here ({_answer(response)}); {wait}{more}"


def _proxy_wants_password(response: httpx2.Response) -> str:
    name = _proxy(str(response.request.url)).partition(" ")[0] or "HTTPS_PROXY"
    return f"the proxy wants a user and a password ({_answer(response)}); write them into {name}"


_BY_CODE: dict[str | None, Callable[[httpx2.Response], str]] = {
    "RevisionNotFound": _unknown_revision,
    "GatedRepo": lambda _: "it is gated; ask for access on its page, then set HF_TOKEN to a token of that account",
    "RepoNotFound": _unknown_model,
}
_BY_STATUS: dict[int, Callable[[httpx2.Response], str]] = {
    HTTPStatus.UNAUTHORIZED: _unauthorized,
    HTTPStatus.FORBIDDEN: _forbidden,
    HTTPStatus.NOT_FOUND: lambda response: (
        f"the hub has no such model ({_answer(response)}); check the name and HF_ENDPOINT"
    ),
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: _proxy_wants_password,
    HTTPStatus.TOO_MANY_REQUESTS: _too_many,
}

# From the narrower to the wider: a certificate's error is one of TLS, and most are OSErrors.
_EXPLANATIONS: tuple[tuple[type | tuple[type, ...], Callable[[Any], str | None]], ...] = (
    (errors.OfflineModeIsEnabled, _offline),
    (errors.HFValidationError, _no_name),
    (_CertificatesError, _certificates_unreadable),
    (_ProxyAddressError, _no_proxy),
    ((httpx2.InvalidURL, httpx2.UnsupportedProtocol), _no_url),
    ((httpx2.LocalProtocolError, UnicodeEncodeError), _token_unsendable),
    (_BrokenOffError, _broken_off),
    (ssl.SSLCertVerificationError, _untrusted),
    (ssl.SSLError, _no_tls),
    (socket.gaierror, _unreached("is no name that resolves")),
    (ConnectionRefusedError, _unreached("refuses connections")),
    (httpx2.ProxyError, _proxy_refuses),
    ((httpx2.TimeoutException, TimeoutError), _unreached("did not answer in time")),
    (errors.HfHubHTTPError, _refused),
    (httpx2.ConnectError, _no_connection),
    ((httpx2.TransportError, ConnectionError), _lost),
    (OSError, _unwritable),
    (
        (
            httpx2.TooManyRedirects,
            httpx2.DecodingError,
            json.JSONDecodeError,
            KeyError,
            TypeError,
            AttributeError,
            AssertionError,
            errors.FileMetadataError,
        ),
        _no_hub,
    ),
)


class _OneLine(logging.Formatter):
    """Whoever ran this program reads a message a line."""

    def format(self, record: logging.LogRecord) -> str:
        return _line(record.getMessage())


def _write_warnings_in_lines() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(handlers=[handler])
    # Its own would write each a second time.
    logging.getLogger("huggingface_hub").handlers.clear()
    logging.captureWarnings(capture=True)


if __name__ == "__main__":
    _write_warnings_in_lines()
    print(json.dumps(main(*sys.argv[1:])))  # noqa: T201 - its answer to whoever ran it
