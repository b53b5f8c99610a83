"""The parsing rules of settings: text to value, or ValueError with the rule that the text breaks.

Imports the standard library and `model_spec` alone.
"""

import ipaddress
import os
import pwd
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from embedding_api.settings import model_spec

T = TypeVar("T")

# What `.env.example` shows in place of secrets; everybody knows them.
KEY_PLACEHOLDER, TOKEN_PLACEHOLDER = "your_secret_key_here", "your_huggingface_token_here"


def integer(low: int, high: int) -> Callable[[str], int]:
    """A rule for whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def choice(*words: str) -> Callable[[str], str]:
    """A rule for one of several words, in any case."""

    def parse(text: str) -> str:
        for word in words:
            if text.lower() == word.lower():
                return word
        raise ValueError(f"must be one of {', '.join(words)}")

    return parse


def file_path(text: str) -> Path:
    """An absolute path; `~` is a home folder."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError("begins with ~ and a user whose home nobody knows; write the whole path") from error


def cache_folder(text: str) -> Path:
    """A folder, by default one in the user's cache, where the XDG base directory specification has it."""
    if text:
        return file_path(text)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # It says that a relative path is to be ignored.
    base = Path(xdg) if xdg.startswith("/") else _home() / ".cache"
    return base / "memementor-embeddings"


def _home() -> Path:
    """The user's; services often have no HOME though their user has one. Without any, a folder that nobody can make."""
    try:
        return Path(os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return Path(os.devnull)


def boolean(text: str) -> bool:
    """True or false, in one of three spellings each."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError(f"must be one of {', '.join(words)}")
    return words[text.lower()]


def optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """The same rule, and None for an empty text."""
    return lambda text: parse(text) if text else None


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def require_text(text: str) -> None:
    """Refuses what is no text in UTF-8, and the one character that no path or header can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be text in UTF-8") from error
    if "\0" in text:
        raise ValueError("must not hold a NUL character")


def is_repository(name: str) -> bool:
    """Whether it may name a repository on the hub, at a commit or without saying which."""
    return re.fullmatch(rf"{model_spec.REPOSITORY}(@{model_spec.COMMIT})?", name) is not None


def secret_text(text: str) -> str:
    """A secret of the operator's own, which the one that `.env.example` shows is not."""
    if text.lower() in (KEY_PLACEHOLDER, TOKEN_PLACEHOLDER):
        raise ValueError("is what .env.example shows in its place; set your own, or unset it")
    return text


def keys(text: str) -> tuple[str, ...]:
    """API keys, comma-separated; at least one unless the text is empty."""
    keys = tuple(map(secret_text, words(text)))
    if text and not keys:
        raise ValueError("must hold at least one key")
    if any(any(character.isspace() or character in "\"'" for character in key) for key in keys):
        raise ValueError("must hold keys without white space and quotes; separate several with commas")
    return keys


def host(text: str) -> str:
    """An IP address or a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[\w.-]+", text):
            raise ValueError("must be an IP address or a host name, without port, scheme and brackets") from None
    return text


def _has_host_and_port(address: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(address)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        # What is none.
        return False


def collector(text: str) -> str:
    """An address of HTTP, or nothing."""
    if text and not (re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", text) and _has_host_and_port(text)):
        raise ValueError(
            "must be an address as http://host:port, without user name and password; those go to "
            "OTEL_EXPORTER_OTLP_HEADERS"
        )
    return text


def unquoted(text: str) -> str:
    """Without one pair of quotes around it, which `docker run --env-file` passes on."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text
