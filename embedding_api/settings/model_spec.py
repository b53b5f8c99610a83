"""What SUPPORTED_MODELS says of each model: its public name and where it comes from."""

import dataclasses
import os
import re
from pathlib import Path

# A repository on the Hugging Face hub, and a commit of one, in regular expressions.
REPOSITORY, COMMIT = r"[\w.-]+/[\w.-]+", "[0-9a-f]{40}"
# What a Hugging Face name may look like: `organisation/name`, or `name` for one of sentence-transformers' own.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ALIAS = re.compile(r"[A-Za-z0-9][\w.:/-]*")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One entry of SUPPORTED_MODELS.

    Attributes:
        name: The public name: the alias, else the Hugging Face name, else the folder's last part, as it was written.
        source: A Hugging Face name with its organisation, or a folder's path without links.
        revision: Branch, tag or commit on the hub, or None for its main branch.
        is_folder: Whether `source` is a local folder.
    """

    name: str
    source: str
    revision: str | None
    is_folder: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may use; a folder's path is not one."""
        return (self.name,) if self.is_folder or self.source == self.name else (self.name, self.source)


def parse(text: str) -> tuple[ModelSpec, ...]:
    """The entries of a comma-separated list, in their order.

    Raises:
        ValueError: There is none, one is malformed, or two have one name; says the rule.
    """
    specs = tuple(_parse_entry(entry.strip()) for entry in text.split(",") if entry.strip())
    if not specs:
        raise ValueError("must name at least one model")
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"names {', '.join(sorted(twice))} more than once; tell them apart by alias=source")
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
        raise ValueError(f"holds {entry!r}, an alias of nothing; write alias=source")
    if source.startswith(("/", "./", "../", "~")) or source in (".", "..") or _is_folder(source):
        return _folder(entry, alias, source)
    name, at, revision = source.partition("@")
    if not _HUB_NAME.fullmatch(name) or (at and not re.fullmatch(r"[\w./-]+", revision)):
        raise ValueError(
            f"holds {entry!r}; each entry must be a Hugging Face name, name@revision or a folder, or alias=one of these"
        )
    full_name = name if "/" in name else f"sentence-transformers/{name}"
    return ModelSpec(name=alias or name, source=full_name, revision=revision or None, is_folder=False)


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except OSError:
        # Too long for a name, or below a folder that this user cannot enter.
        return False


def _folder(entry: str, alias: str, source: str) -> ModelSpec:
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise ValueError(f"holds {entry!r}, and that home folder cannot be found; write the whole path") from error
    # Unlike Path.resolve, it leaves links that lead in a circle to whoever reads the folder.
    folder = Path(os.path.realpath(path))
    # A link has the name: it stays when what it leads to is replaced by a new version.
    name = alias or (folder.name if path.name in ("", "..") else path.name)
    if not name:
        raise ValueError(f"holds {entry!r}, a folder without a name; give it one as alias=source")
    return ModelSpec(name=name, source=str(folder), revision=None, is_folder=True)
