"""The entries of SUPPORTED_MODELS: the public name and the source of each model."""

import dataclasses
import os
import re
from pathlib import Path

# Regular expressions for a repository on the Hugging Face hub, and for a commit.
REPOSITORY, COMMIT = r"[\w.-]+/[\w.-]+", "[0-9a-f]{40}"
# A Hugging Face name: `organisation/name`, or `name` for a model of sentence-transformers.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ALIAS = re.compile(r"[A-Za-z0-9][\w.:/-]*")
# Unlike Path.is_dir, it is False for a name that is too long, and below a folder that this user cannot enter.
_is_folder = os.path.isdir


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One entry of SUPPORTED_MODELS.

    Attributes:
        name: The public name: the alias, or else the Hugging Face name, or else the folder's last part as written.
        source: A Hugging Face name with its organisation, or a folder's path with all links resolved.
        revision: Branch, tag or commit on the hub; None for the main branch.
        is_folder: True if `source` is a local folder.
    """

    name: str
    source: str
    revision: str | None
    is_folder: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may use. A folder's path is not among them."""
        return (self.name,) if self.is_folder or self.source == self.name else (self.name, self.source)


def parse(text: str) -> tuple[ModelSpec, ...]:
    """Return the entries of a comma-separated list, in order.

    Raises:
        ValueError: There is no entry, an entry is malformed, or two have the same name. The message gives the rule.
    """
    specs = tuple(_parse_entry(entry.strip()) for entry in text.split(",") if entry.strip())
    if not specs:
        raise ValueError("must name at least one model")
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"names {', '.join(sorted(twice))} more than once; give each its own name as alias=source")
    return specs


def _parse_entry(entry: str) -> ModelSpec:
    alias, equals, source = (part.strip() for part in entry.partition("="))
    if not equals or _is_folder(entry):
        alias, source = "", entry
    elif not _ALIAS.fullmatch(alias):
        raise ValueError(
            f"has the alias {alias!r}; an alias starts with a letter or digit and holds letters, digits and _ . : / -"
        )
    if not source:
        raise ValueError(f"holds {entry!r}, an alias without a source; write alias=source")
    if source.startswith(("/", "./", "../", "~")) or source in (".", "..") or _is_folder(source):
        return _folder_spec(entry, alias, source)
    name, at, revision = source.partition("@")
    if not _HUB_NAME.fullmatch(name) or (at and not re.fullmatch(r"[\w./-]+", revision)):
        raise ValueError(
            f"holds {entry!r}; each entry must be a Hugging Face name, name@revision or a folder, or alias=one of these"
        )
    full_name = name if "/" in name else f"sentence-transformers/{name}"
    return ModelSpec(name=alias or name, source=full_name, revision=revision or None, is_folder=False)


def home_expanded(text: str) -> Path:
    """Return the path; `~` means a home folder.

    Raises:
        ValueError: The home folder cannot be found.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"holds {text!r}, and that home folder cannot be found; write the whole path") from error


def _folder_spec(entry: str, alias: str, source: str) -> ModelSpec:
    path = home_expanded(source)
    # Unlike Path.resolve, it does not raise for a loop of links; reading the folder will.
    folder = Path(os.path.realpath(path))
    # The link's name, not its target's: it stays when the link is pointed at a new version.
    name = alias or (folder.name if path.name in ("", "..") else path.name)
    if not name:
        raise ValueError(f"holds {entry!r}, a folder without a name; give it one as alias=source")
    return ModelSpec(name=name, source=str(folder), revision=None, is_folder=True)
