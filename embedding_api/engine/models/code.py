"""The Python code that a model brings: found in its files, trusted or refused, and put beside the model."""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embedding_api.engine.findings import UnservableError
from embedding_api.engine.models import files
from embedding_api.engine.models.files import Module
from embedding_api.errors import ModelLoadError
from embedding_api.settings.model_spec import COMMIT, REPOSITORY

# The classes of transformers that sentence-transformers asks for, and so those whose entry in an auto_map counts.
_ASKED_FOR = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")
# Files that name code in an auto_map.
_MAPS = ("config.json", "tokenizer_config.json", "processor_config.json")
# And all that name code.
_NAMING = (*_MAPS, "modules.json", "router_config.json")

# Architectures that transformers has taken over from code on the hub, with a conversion of the hub's own weights, by
# model_type: how the names of that code's classes begin. Its own documentation names the repositories:
# nomic-ai/nomic-embed-text-v1.5 and EuroBERT/EuroBERT-210m.
_TAKEN_OVER = {"nomic_bert": "NomicBert", "eurobert": "EuroBert"}

# An entry of TRUST_REMOTE_CODE that names a repository at a commit.
_AT_COMMIT = re.compile(f"({REPOSITORY})@({COMMIT})")

# Downloads the Python files of a repository at a commit, or at its newest one, and returns their folder, whose last
# part is the commit. Raises ModelLoadError.
Fetch = Callable[[str, str | None], Path]


class Reference(NamedTuple):
    """Where a model's file names code.

    Attributes:
        repository: On the hub, if the code lies in another repository than the model.
        name: The class, as the file writes it, such as `modeling_own.OwnModel`.
        is_taken_over: Whether transformers has the same architecture of its own.
    """

    repository: str | None
    name: str
    is_taken_over: bool = False


class Trust(NamedTuple):
    """What TRUST_REMOTE_CODE says, seen from one model.

    Attributes:
        name: The model's, as it is written there.
        is_given: Whether it is there.
        commits: Those of the other repositories that are there, by repository.
    """

    name: str
    is_given: bool
    commits: dict[str, str]


def trust(entries: Sequence[str], names: Sequence[str]) -> Trust:
    """What TRUST_REMOTE_CODE says of a model.

    Args:
        entries: The setting's.
        names: The model's; the first is its public one.
    """
    commits = {match[1]: match[2] for entry in entries if (match := _AT_COMMIT.fullmatch(entry))}
    return Trust(names[0], any(name in entries for name in names), commits)


def references(modules: Sequence[Module], folder: Path) -> list[Reference]:
    """The code that a model brings and that loading it would run, each once.

    Args:
        modules: As its files describe them.
        folder: The model's.

    Raises:
        UnservableError: A file cannot be read.
    """
    found = [_reference(module.type) for module in modules if not module.is_of_library]
    for place in _places(modules, folder):
        prefix = _TAKEN_OVER.get(str(files.read(place / "config.json").get("model_type")))
        for file in _MAPS:
            for name in _in_auto_map(files.read(place / file).get("auto_map")):
                found.append(_reference(name, taken_over=prefix))  # noqa: PERF401 - three loops are read more easily
    # sentence-transformers takes Tanh in the place of an activation that it may not import.
    activations = (module.config().get("activation_function") for module in modules if module.name == "Dense")
    found += [_reference(name) for name in activations if isinstance(name, str) and not name.startswith("torch.")]
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def assembled(
    folder: Path, modules: Sequence[Module], found: Sequence[Reference], trusted: Trust, own_name: str | None,
    fetch: Fetch,
) -> Iterator[Path]:  # fmt: skip
    """A folder in which the model and all of its code lie together, there until the context ends.

    transformers looks for code in other repositories by name, at whatever commit the cache has. In this folder the
    model's files name all code as lying beside them.

    Args:
        folder: The model's.
        modules: As its files describe them.
        found: The code that it refers to.
        trusted: What may run.
        own_name: The model's own repository on the hub, if it came from there.
        fetch: See `Fetch`.

    Raises:
        UnservableError: Not all of the code may run; the message has the line that allows it.
        ModelLoadError: The code cannot be had.
        OSError: The folder cannot be made.
    """
    others = sorted({each.repository for each in found if each.repository is not None} - {own_name})
    _require_trust(found, others, trusted, fetch)
    if not any(each.repository for each in found):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="memementor-model-") as parent:
        target = Path(parent, folder.name)
        _mirror(folder, target, [place / name for place in _places(modules, folder) for name in _NAMING])
        for name in others:
            _add_code(fetch(name, trusted.commits[name]), target, name)
        yield target


def _require_trust(found: Sequence[Reference], others: Sequence[str], trusted: Trust, fetch: Fetch) -> None:
    if not found or (trusted.is_given and all(name in trusted.commits for name in others)):
        return
    commits = [trusted.commits.get(name) or _newest(name, fetch) for name in others]
    line = ",".join([trusted.name, *(f"{name}@{commit}" for name, commit in zip(others, commits, strict=True))])
    where = f" in {' and '.join(others)}" if others else ""
    raise UnservableError(
        f"it brings Python code of its own{where} ({found[0].name}), without which it would be another model: read "
        f"that, then name it in TRUST_REMOTE_CODE={line}"
    )


def _newest(repository: str, fetch: Fetch) -> str:
    """The commit that a repository is at, or in its place what to write there, if the hub does not tell."""
    try:
        return fetch(repository, None).name
    except ModelLoadError:
        return "<its commit, 40 hexadecimal digits>"


def _places(modules: Sequence[Module], folder: Path) -> list[Path]:
    """The folders whose files may name code."""
    return list(dict.fromkeys((folder, *(module.folder for module in modules))))


def _in_auto_map(auto_map: Any) -> list[str]:
    """The names in an auto_map; for tokenizers it holds lists of a slow and a fast one, with null for none."""
    if isinstance(auto_map, dict):
        return [name for key in _ASKED_FOR for name in _in_auto_map(auto_map.get(key))]
    if isinstance(auto_map, list):
        return [name for name in auto_map if isinstance(name, str)]
    return [auto_map] if isinstance(auto_map, str) else []


def _reference(name: str, *, taken_over: str | None = None) -> Reference:
    repository, dashes, class_name = name.rpartition("--")
    is_taken_over = taken_over is not None and class_name.rpartition(".")[2].startswith(taken_over)
    return Reference(repository if dashes else None, class_name, is_taken_over)


def _mirror(folder: Path, target: Path, naming: Sequence[Path]) -> None:
    """Makes the same files by link, but for those that name code, which name it as beside them."""
    for path in files.walk(folder):
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path in naming:
            copy.write_text(json.dumps(_beside(json.loads(path.read_bytes()))))
        else:
            copy.symlink_to(path.resolve())


def _beside(value: Any) -> Any:
    """The value of a JSON file, with `module.Class` in the place of `organisation/name--module.Class`."""
    if isinstance(value, dict):
        return {key: _beside(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_beside(each) for each in value]
    if isinstance(value, str) and re.fullmatch(rf"{REPOSITORY}--[\w.]+", value):
        return _reference(value).name
    return value


def _add_code(source: Path, target: Path, repository: str) -> None:
    for path in sorted(source.rglob("*.py")):
        copy = target / path.relative_to(source)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        elif copy.read_bytes() != path.read_bytes():
            raise UnservableError(
                f"the code in {repository} has another {path.relative_to(source)} than the model, or its other code, "
                "has; rename one of them in a copy of the model that has all of its code in its own folder"
            )
