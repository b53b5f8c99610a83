"""Settings from the environment and `.env`. The only reader of python-decouple."""

import dataclasses
import os
import re
from pathlib import Path

import decouple

from embedding_api.errors import SettingsError
from embedding_api.settings import consistency, env_file, parsing
from embedding_api.settings.table import Settings


def load_settings(file: Path = Path(".env")) -> Settings:
    """Read the settings from the environment and, for what it does not hold, from a file.

    Args:
        file: A file of `KEY=value` lines, by default `.env` in the working folder; it need not exist.

    Raises:
        SettingsError: A value breaks its rule, two contradict each other, or a line of the file sets nothing; names
            key, value and rule.
    """
    try:
        in_file = env_file.read(file, [field.name.upper() for field in dataclasses.fields(Settings)])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"{file.absolute()} cannot be read as UTF-8 text of KEY=value lines ({reason}); mend it, let this user "
            "read it, or remove it"
        ) from error
    # decouple's own reader of files knows no comments behind values, and passes over lines that set nothing.
    read = decouple.Config(in_file)
    values = {}
    for field in dataclasses.fields(Settings):
        key = field.name.upper()
        text = parsing.unquoted(read(key, default="").strip()) or field.metadata["default"]
        try:
            parsing.require_text(text)
            values[field.name] = field.metadata["parse"](text)
        except ValueError as error:
            shown = "(hidden)" if field.metadata["secret"] else repr(text[:100])
            # An address may hold a password, wherever it does not belong.
            line = re.sub(r"(?<=//)[^/\s]+@", "(hidden)@", f"{key}={shown} {error}")
            raise SettingsError(line) from error
    # Settings whose default depends on others.
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
    """LOG_FORMAT, or `text` if it cannot be read: for the line that says that the settings are wrong."""
    text = os.environ.get("LOG_FORMAT") or env_file.value(file, "LOG_FORMAT")
    return "json" if parsing.unquoted(text.strip()).lower() == "json" else "text"


def env_example() -> str:
    """The contents of `.env.example`: every setting with its meaning, commented out, with its default or an example.

    Commented out, so that a copy changes nothing: HOST, say, is another in the container image.
    """
    blocks = []
    for field in dataclasses.fields(Settings):
        doc = "".join(f"# {line}\n" for line in field.metadata["doc"].splitlines())
        shown = field.metadata["default"] or field.metadata["example"]
        blocks.append(f'{doc}# {field.name.upper()}="{shown}"\n')
    return "\n".join(blocks)
