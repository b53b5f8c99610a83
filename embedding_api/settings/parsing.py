"""The parsing rules of settings. Each converts text to a value, or raises ValueError with the rule that it breaks.

Imports the standard library and `model_spec` alone.
"""

import contextlib
import ipaddress
import os
import pwd
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from embedding_api.settings import model_spec

# The values that `.env.example` shows for secrets. Everybody knows them, so they are refused.
KEY_PLACEHOLDER, TOKEN_PLACEHOLDER = "your_secret_key_here", "your_huggingface_token_here"


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return the rule for whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def choice(*words: str) -> Callable[[str], str]:
    """Return the rule for one of several words, in upper or lower case."""

    def parse(text: str) -> str:
        for word in words:
            if text.lower() == word.lower():
                return word
        raise ValueError(f"must be one of {', '.join(words)}")

    return parse


def file_path(text: str) -> Path:
    """Return the absolute path; `~` means a home folder."""
    return model_spec.home_expanded(text).absolute()


def cache_folder(text: str) -> Path:
    """Return a folder, by default ours in the user's cache folder as the XDG specification defines that."""
    if text:
        return file_path(text)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    base = Path(xdg) if xdg.startswith("/") else _home() / ".cache"
    return base / "memementor-embeddings"


def _home() -> Path:
    """Return the user's home folder, even if HOME is unset as in many services; else a path that nobody can create."""
    try:
        return Path(os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return Path(os.devnull)


def boolean(text: str) -> bool:
    """Return true or false from one of three spellings each."""
    return choice("true", "yes", "1", "false", "no", "0")(text) in ("true", "yes", "1")


def words(text: str) -> tuple[str, ...]:
    """Return the words of a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def require_text(text: str) -> None:
    """Refuse text that is not UTF-8, and the NUL character, which no path or header can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be text in UTF-8") from error
    if "\0" in text:
        raise ValueError("must not hold a NUL character")


def is_repository(name: str) -> bool:
    """Return True for a repository on the Hugging Face hub, with or without a commit."""
    return re.fullmatch(rf"{model_spec.REPOSITORY}(@{model_spec.COMMIT})?", name) is not None


def secret_text(text: str) -> str:
    """Return the secret, and refuse the placeholders of `.env.example`."""
    if text.lower() in (KEY_PLACEHOLDER, TOKEN_PLACEHOLDER):
        raise ValueError("is what .env.example shows as a placeholder; set your own, or unset it")
    return text


def keys(text: str) -> tuple[str, ...]:
    """Return comma-separated API keys; at least one unless the text is empty."""
    keys = tuple(map(secret_text, words(text)))
    if text and not keys:
        raise ValueError("must hold at least one key")
    if any(any(character.isspace() or character in "\"'" for character in key) for key in keys):
        raise ValueError("must hold keys without white space and quotes; separate several by commas")
    return keys


def host(text: str) -> str:
    """Return an IP address or a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[\w.-]+", text):
            raise ValueError("must be an IP address or a host name, without port, scheme and brackets") from None
    return text


def collector(text: str) -> str:
    """Return an HTTP address, or an empty text."""
    # urllib raises ValueError for a malformed port or IPv6 address.
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(text)
        is_plain = re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", text) is not None
        if not text or (is_plain and parts.hostname and parts.port != 0):
            return text
    raise ValueError(
        "must be an address like http://host:port, without user name and password; put those into "
        "OTEL_EXPORTER_OTLP_HEADERS"
    )
