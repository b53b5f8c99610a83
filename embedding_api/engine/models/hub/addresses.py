"""Names of hosts, proxies and tokens for messages, without any secret."""

import functools
import os
import re
import urllib.request
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token


def one_line(text: str) -> str:
    """Return the text in one line, without the token, without passwords in addresses, and without signatures."""
    text = re.sub(r"(?<=//)[^/\s]+@|(?<=\S)\?\S+=\S*", "", " ".join(text.split()))
    return text.replace(token, "(hidden)") if (token := _token()) else text


@functools.cache
def _token() -> str | None:
    try:
        return get_token()
    except Exception:  # noqa: BLE001 - a token that cannot be read is sent to nobody
        return None


def token_name() -> str:
    """Return the name of the place that the token comes from."""
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else f"the token in {constants.HF_TOKEN_PATH}"


def url(error: BaseException) -> str:
    """Return the address of the request that failed, or the hub's own address."""
    try:
        return str(error.request.url)  # type: ignore[attr-defined] # of httpx2's errors
    except (AttributeError, RuntimeError):
        return str(constants.ENDPOINT)


def host(address: str) -> str:
    """Return host and port of an address, without a password."""
    return (urlsplit(address).netloc or address).rpartition("@")[2]


def proxy(address: str) -> str:
    """Return the variable that names the proxy of an address, and the proxy; empty if there is none."""
    proxies = urllib.request.getproxies()
    scheme, name = urlsplit(address).scheme, urlsplit(address).hostname or ""
    if variable := next((each for each in (scheme, "all") if each in proxies), ""):
        return "" if urllib.request.proxy_bypass(name) else f"{variable.upper()}_PROXY ({host(proxies[variable])})"
    return ""
