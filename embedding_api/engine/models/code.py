"""Find the Python code that comes with a model, refuse it where it is not trusted, and put it beside the model."""

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
from embedding_api.settings.model_spec import COMMIT, REPOSITORY, ModelSpec

# The classes of transformers that sentence-transformers uses. Other entries of an auto_map have no effect.
_ASKED_FOR = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")
# Files with an auto_map.
_MAPS = ("config.json", "tokenizer_config.json", "processor_config.json")
# All files that name code.
_NAMING = (*_MAPS, "modules.json", "router_config.json")

# Architectures on the hub that transformers has taken over into its own code, and whose weights it converts: the start
# of the class names in the hub's code, by model_type. transformers' documentation names the repositories:
# nomic-ai/nomic-embed-text-v1.5 and EuroBERT/EuroBERT-210m.
_TAKEN_OVER = {"nomic_bert": "NomicBert", "eurobert": "EuroBert"}

# An entry of TRUST_REMOTE_CODE for a repository at a commit.
_AT_COMMIT = re.compile(f"({REPOSITORY})@({COMMIT})")

# A function that downloads the Python files of a repository at a commit (None for the newest) and returns their folder,
# whose name is the commit. It raises ModelLoadError.
Fetch = Callable[[str, str | None], Path]


class Reference(NamedTuple):
    """A class that a model's file names.

    Attributes:
        repository: The repository of the code, if it is not the model's own.
        name: The class, as the file writes it, such as `modeling_own.OwnModel`.
        is_taken_over: True if transformers has the same architecture in its own code.
    """

    repository: str | None
    name: str
    is_taken_over: bool = False


def is_trusted(spec: ModelSpec, entries: Sequence[str]) -> bool:
    """Return True if the entries of TRUST_REMOTE_CODE name the model."""
    return any(name in entries for name in spec.names)


def references(modules: Sequence[Module], folder: Path) -> list[Reference]:
    """Return the classes that come with a model and that loading it would run, each once.

    Args:
        modules: The modules that its files describe.
        folder: The folder of the model.

    Raises:
        UnservableError: A file cannot be read.
    """
    found = [_reference(module.type) for module in modules if not module.library_class]
    for each in _folders(modules, folder):
        prefix = _TAKEN_OVER.get(str(files.read(each / "config.json").get("model_type")))
        for file in _MAPS:
            for name in _in_auto_map(files.read(each / file).get("auto_map")):
                found.append(_reference(name, taken_over=prefix))  # noqa: PERF401 - three loops are read more easily
    # sentence-transformers uses Tanh instead of an activation that it may not import.
    activations = (module.config().get("activation_function") for module in modules if module.name == "Dense")
    found += [_reference(name) for name in activations if isinstance(name, str) and not name.startswith("torch.")]
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def assembled(
    spec: ModelSpec, folder: Path, modules: Sequence[Module], found: Sequence[Reference], entries: Sequence[str],
    fetch: Fetch,
) -> Iterator[Path]:  # fmt: skip
    """Return a folder with the model and all of its code. It exists until the context ends.

    transformers looks for the code of other repositories by name, at any commit that the cache has. In this folder the
    model's files name all code as if it were beside them.

    Args:
        spec: The entry of SUPPORTED_MODELS.
        folder: The folder of the model.
        modules: The modules that its files describe.
        found: The classes that come with it.
        entries: The entries of TRUST_REMOTE_CODE.
        fetch: See `Fetch`.

    Raises:
        UnservableError: Not all of the code may run; the message has the setting that allows it.
        ModelLoadError: The code cannot be downloaded.
        OSError: The folder cannot be made.
    """
    others = sorted({each.repository for each in found if each.repository is not None} - {spec.source})
    commits = {match[1]: match[2] for entry in entries if (match := _AT_COMMIT.fullmatch(entry))}
    if found and not (is_trusted(spec, entries) and all(name in commits for name in others)):
        needed = [f"{name}@{commits.get(name) or _newest(name, fetch)}" for name in others]
        where = f" in {' and '.join(others)}" if others else ""
        raise UnservableError(
            f"it brings Python code of its own{where} ({found[0].name}), without which it would be another model: read "
            f"that, then name it in TRUST_REMOTE_CODE={','.join([spec.name, *needed])}"
        )
    if not any(each.repository for each in found):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="memementor-model-") as parent:
        target = Path(parent, folder.name)
        _mirror(folder, target, [each / name for each in _folders(modules, folder) for name in _NAMING])
        for name in others:
            _add_code(fetch(name, commits[name]), target, name)
        yield target


def _newest(repository: str, fetch: Fetch) -> str:
    """Return the newest commit of a repository, or a placeholder if the hub cannot be asked."""
    try:
        return fetch(repository, None).name
    except ModelLoadError:
        return "<its commit, 40 hexadecimal digits>"


def _folders(modules: Sequence[Module], folder: Path) -> list[Path]:
    """Return the folders whose files may name code."""
    return list(dict.fromkeys((folder, *(module.folder for module in modules))))


def _in_auto_map(auto_map: Any) -> list[str]:
    """Return the names in an auto_map. For tokenizers it holds pairs of a slow and a fast one; either may be null."""
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
    """Link all files of a model. Copy those that name code, so that they name it as beside them."""
    for path in files.walk(folder):
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path in naming:
            copy.write_text(json.dumps(_beside(json.loads(path.read_bytes()))))
        else:
            copy.symlink_to(path.resolve())


def _beside(value: Any) -> Any:
    """Return a JSON value with `module.Class` instead of `organisation/name--module.Class`."""
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
