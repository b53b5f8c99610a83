"""Loads settings from the environment and `.env`. The only module that uses python-decouple."""

import dataclasses
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import decouple

from embedding_api.errors import SettingsError
from embedding_api.settings import consistency, env_file, parsing
from embedding_api.settings.docstrings import docstrings_of
from embedding_api.settings.table import Settings


def load_settings(file: Path = Path(".env")) -> Settings:
    """Return the settings. A variable of the environment overrides the file.

    Args:
        file: A file of `NAME=value` lines, by default `.env` in the working folder; it need not exist.

    Raises:
        SettingsError: A value breaks its rule, two values contradict each other, or a line of the file sets nothing.
            The message names variable, value and rule.
    """
    fields = dataclasses.fields(Settings)
    try:
        in_file = env_file.read_values(file, [field.name.upper() for field in fields])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"{file.absolute()} cannot be read as UTF-8 text of NAME=value lines ({reason}); correct it, let this "
            "user read it, or remove it"
        ) from error
    values = {field.name: _parsed(field, _text(field.name.upper(), in_file)) for field in fields}
    # These defaults depend on other settings.
    if values["require_auth"] is None:
        values["require_auth"] = bool(values["api_key_secret"])
    if values["workers"] is None:
        values["workers"] = consistency.default_workers(values["device"])
    if values["drain_s"] is None:
        values["drain_s"] = min(5, values["graceful_timeout_s"] // 2)
    settings = Settings(**values)
    consistency.require_consistent(settings)
    return settings


def log_format(file: Path = Path(".env")) -> str:
    """Return LOG_FORMAT, or `text` if it is wrong. It works while other settings are wrong, to report that."""
    text = _text("LOG_FORMAT", {"LOG_FORMAT": env_file.value_of("LOG_FORMAT", file)})
    return "json" if text.lower() == "json" else "text"


def env_example() -> str:
    """Return the contents of `.env.example`: every setting with its meaning, and its default or an example.

    Settings are commented out, so that a copy of the file changes nothing: in the container image, for example, HOST
    has another default.
    """
    docs, blocks = docstrings_of(Settings), []
    for field in dataclasses.fields(Settings):
        doc = textwrap.indent(docs[field.name], "# ")
        shown = field.metadata["default"] or field.metadata["example"]
        blocks.append(f'{doc}\n# {field.name.upper()}="{shown}"\n')
    return "\n".join(blocks)


def _text(name: str, in_file: Mapping[str, str]) -> str:
    """Return a variable's text from the environment, or else from the file's values; empty if it is unset."""
    # decouple's own reader of files knows no comments after values, and skips lines that set nothing.
    return env_file.unquoted(decouple.Config(in_file)(name, default="").strip())


def _parsed(field: "dataclasses.Field[Any]", text: str | None) -> Any:
    """Return the field's value, parsed from the text or from its default if the text is empty."""
    text = text or field.metadata["default"]
    if text is None:
        return None
    try:
        parsing.require_text(text)
        return field.metadata["parse"](text)
    except ValueError as error:
        shown = "(hidden)" if field.metadata["secret"] else repr(text[:100])
        message = f"{field.name.upper()}={shown} {error}"
        # Any value may hold an address with a password, even one that should not.
        raise SettingsError(re.sub(r"(?<=//)[^/\s]+@", "(hidden)@", message)) from error
