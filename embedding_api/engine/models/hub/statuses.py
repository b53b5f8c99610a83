"""What an HTTP status of the hub, or of a server in its place, means, and what to do."""

from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import unquote

import httpx2
from huggingface_hub.utils._http import parse_ratelimit_headers

from embedding_api.engine.models.hub.addresses import host, proxy, token_name


def explain(error: BaseException) -> str:
    """Return what the status of an HfHubHTTPError means and what to do."""
    response: httpx2.Response = error.response  # type: ignore[attr-defined] # an HfHubHTTPError
    code, status = response.headers.get("X-Error-Code"), response.status_code
    if meaning := _MEANINGS.get(code) or _MEANINGS.get(status):
        return meaning(response)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"the hub is down or overloaded ({_quote(response)}); try again later, or name a local folder"
    return f"the hub refuses ({_quote(response)}); check the name and HF_ENDPOINT, or name a local folder"


def retry_after_s(response: httpx2.Response) -> int | None:
    """Return the seconds that the hub asks to wait, if it does."""
    limits = parse_ratelimit_headers(response.headers)
    if limits is not None and limits.remaining == 0:
        return int(limits.reset_in_seconds)
    seconds = response.headers.get("Retry-After", "")
    return int(seconds) if seconds.isdecimal() else None


def _quote(response: httpx2.Response) -> str:
    """Return the host, the status and the server's own words for it."""
    words = response.headers.get("X-Error-Message") or response.reason_phrase
    return f"{host(str(response.request.url))} answers {response.status_code}{words and ': '}{words[:200]}"


def _unknown_model(response: httpx2.Response) -> str:
    if response.request.headers.get("Authorization"):
        return f"the hub has no such model, or {token_name()} may not read it; check both"
    return "the hub has no such model, or it is private; check the name, or set HF_TOKEN"


def _unknown_revision(response: httpx2.Response) -> str:
    revision = unquote(response.request.url.path.partition("/revision/")[2])
    return f"the hub has no revision {revision!r} of it; check what stands behind @"


def _unauthorized(response: httpx2.Response) -> str:
    if not response.request.headers.get("Authorization"):
        return _unknown_model(response)
    return (
        f"the hub does not accept {token_name()} ({_quote(response)}); put a valid token in its place, or remove it "
        "if the model is public"
    )


def _forbidden(response: httpx2.Response) -> str:
    if response.request.headers.get("Authorization") and response.headers.get("X-Error-Message"):
        return f"{token_name()} may not read it ({_quote(response)}); give the token that right, or use another"
    return (
        f"a proxy or firewall forbids it ({_quote(response)}); let this machine reach "
        f"{host(str(response.request.url))}, set HF_ENDPOINT to a mirror, or name a local folder"
    )


def _too_many(response: httpx2.Response) -> str:
    seconds = retry_after_s(response)
    wait = f"wait {seconds} s" if seconds else "wait some minutes"
    more = "" if response.request.headers.get("Authorization") else ", or set HF_TOKEN: a token raises the limit"
    return f"the hub gets too many requests from here ({_quote(response)}); {wait}{more}"


def _proxy_wants_password(response: httpx2.Response) -> str:
    variable = proxy(str(response.request.url)).partition(" ")[0] or "HTTPS_PROXY"
    return f"the proxy wants a user and a password ({_quote(response)}); write them into {variable}"


# By the hub's own code for an error, and by status.
_MEANINGS: dict[str | int | None, Callable[[httpx2.Response], str]] = {
    "RevisionNotFound": _unknown_revision,
    "GatedRepo": lambda _: "it is gated; ask for access on its page, then set HF_TOKEN to a token of that account",
    "RepoNotFound": _unknown_model,
    401: _unauthorized,
    403: _forbidden,
    404: lambda response: f"the hub has no such model ({_quote(response)}); check the name and HF_ENDPOINT",
    407: _proxy_wants_password,
    429: _too_many,
}
