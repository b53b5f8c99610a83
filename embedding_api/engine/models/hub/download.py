"""The download itself: what is fetched, with which time-outs, and when the cache is enough."""

import collections
import functools
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, errors, set_client_factory, snapshot_download
from huggingface_hub.file_download import REGEX_COMMIT_HASH
from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status

from embedding_api.engine.models import formats
from embedding_api.engine.models.hub.explanations import ExplainedError, explain, retry_after_s

# Weights that this service does not read.
_IGNORED = [*(f"*{ending}" for ending in formats.OTHER_WEIGHTS), *(f"{name}/*" for name in formats.OTHER_FOLDERS)]
_PICKLES = ["*.bin", "*.pt", "*.pth", "*.pkl"]

# The files of a repository that are downloaded, by the third argument of `download`.
_PATTERNS: dict[str, dict[str, Any]] = {
    "all": {"ignore_patterns": _IGNORED},
    "safe": {"ignore_patterns": _IGNORED + _PICKLES},
    "code": {"allow_patterns": ["*.py"]},
}
# The time-out of a request where the library sets none, and the longest wait that a hub may ask for.
_TIMEOUT_S, _LONGEST_WAIT_S = float(constants.HF_HUB_ETAG_TIMEOUT), 60
# The most requests for one piece of a file. Where a server cannot resume, the library would try again without end.
_MOST_TRIES = 6


def download(name: str, revision: str, files: str) -> dict[str, Any]:
    """Download what the cache lacks. Use the cache alone if the hub fails.

    Args:
        name: The name of the repository.
        revision: A commit, branch or tag; the newest commit of the main branch if empty.
        files: `all`, `safe` for all but pickles, or `code` for Python files alone.

    Returns:
        `path` of the folder and `warnings`, or `problem`: what went wrong and what to do, in one line.
    """
    set_client_factory(_client)
    fetch = functools.partial(snapshot_download, name, revision=revision or None, **_PATTERNS[files])
    try:
        # The library's download uses the cache without a word if the hub fails; so ask the hub first. A commit never
        # changes, so that nothing needs to be asked.
        if not REGEX_COMMIT_HASH.fullmatch(revision):
            HfApi().model_info(name, revision=revision or None, timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - the operator gets any failure of the program in one line
        return _cached(error, fetch)
    try:
        return {"path": fetch(), "warnings": []}
    except Exception as error:  # noqa: BLE001 - the same
        return {"problem": explain(error)}


def _cached(error: Exception, fetch: Callable[..., Any]) -> dict[str, Any]:
    """Return the path in the cache and a warning about the hub's failure, or the problem if the cache lacks a file."""
    problem = explain(error)
    if isinstance(error, errors.RevisionNotFoundError):
        return {"problem": problem}
    try:
        path = fetch(local_files_only=True)
    except errors.IncompleteSnapshotError:
        return {"problem": f"{problem} (the cache holds only a part of it)"}
    except Exception:  # noqa: BLE001 - the failure of the hub matters, and not what the cache lacks
        return {"problem": problem}
    is_wanted = isinstance(error, errors.OfflineModeIsEnabled)
    return {"path": path, "warnings": [] if is_wanted else [f"it is served as the cache has it: {problem}"]}


def _client() -> httpx2.Client:
    """Return the library's own client, with a limit to each wait and to the number of tries."""
    try:
        client = default_client_factory()
    except OSError as error:
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        raise ExplainedError(
            f"{name}={os.environ.get(name, '')} cannot be read as certificates ({error}); correct or unset {name}"
        ) from error
    except (ValueError, ImportError, httpx2.InvalidURL) as error:
        raise ExplainedError(
            f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names no proxy ({error}); write http://host:port, or unset it"
        ) from error
    n_requests = collections.Counter[tuple[str, ...]]()

    def set_timeouts(request: httpx2.Request) -> None:
        timeouts = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {key: value or _TIMEOUT_S for key, value in timeouts.items()}

    def limit_tries(response: httpx2.Response) -> None:
        request = response.request
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS and retry_after_s(response) > _LONGEST_WAIT_S:
            response.read()
            hf_raise_for_status(response)
        if request.method == "GET" and response.is_success:
            piece = (str(request.url), request.headers.get("Range", ""))
            n_requests[piece] += 1
            if n_requests[piece] > _MOST_TRIES:
                raise ExplainedError(
                    "the download broke off at the same place each time; a proxy or a firewall may limit its size: "
                    "lift that, or name a local folder"
                )

    client.event_hooks["request"].append(set_timeouts)
    client.event_hooks["response"].append(limit_tries)
    return client
