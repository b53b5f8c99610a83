"""Read the files of a model as sentence-transformers reads them: its modules, and the JSON files of each."""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from embedding_api.engine.findings import UnservableError

_LIBRARY = "sentence_transformers."

# The beginning of the small file that git lfs puts in place of a file that it has not fetched.
_LFS_POINTER = b"version https://git-lfs"

# The type of the module that sentence-transformers makes from a folder without modules.json.
TRANSFORMER = f"{_LIBRARY}base.modules.transformer.Transformer"

# Names of the file with sentence-transformers' settings of a Transformer, newest first. The first that exists counts.
_ARCHITECTURES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_TRANSFORMER_SETTINGS = [f"sentence_{name}_config.json" for name in _ARCHITECTURES]


class Module(NamedTuple):
    """One module of a sentence-transformers model.

    Attributes:
        type: The class, as modules.json writes it.
        folder: The folder of its files.
    """

    type: str
    folder: Path

    @property
    def name(self) -> str:
        """The name of the class, such as `Pooling`."""
        return self.type.rpartition(".")[2]

    @property
    def library_class(self) -> str:
        """The name of the class if it is one of sentence-transformers, and otherwise empty."""
        return self.name if self.type.startswith(_LIBRARY) else ""

    def config(self) -> dict[str, Any]:
        """Return the module's config.json; empty if there is none. Raises what `read` raises."""
        return read(self.folder / "config.json")

    def own_settings(self) -> dict[str, Any]:
        """Return sentence-transformers' settings of a Transformer, such as its window. Raises what `read` raises."""
        return next(filter(None, (read(self.folder / name) for name in _TRANSFORMER_SETTINGS)), {})


def modules(folder: Path) -> list[Module]:
    """Return the modules of a model, with those of its routes, in the order of its files.

    Raises:
        UnservableError: A file that lists modules is damaged.
    """
    if not is_declared(folder):
        return [Module(TRANSFORMER, folder)]
    entries = _parse(folder / "modules.json")
    if not isinstance(entries, list) or not entries or not all(map(_is_module, entries)):
        raise damaged(
            "its modules.json is no list of modules, each with a type and a path inside of the model's folder"
        )
    found = [Module(entry["type"], folder / entry["path"]) for entry in entries]
    return [each for module in found for each in (module, *_routes(module))]


def is_declared(folder: Path) -> bool:
    """Return True if a modules.json says which modules the model consists of."""
    return is_there(folder / "modules.json")


def is_there(file: Path) -> bool:
    """Return True for a file, and for a link to a missing file, which is a file that should be there."""
    return file.is_symlink() or file.is_file()


def read(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no such file.

    Raises:
        UnservableError: The file cannot be read, or holds no JSON object.
    """
    if not is_there(file):
        return {}
    content = _parse(file)
    if not isinstance(content, dict):
        raise damaged(f"its {file.name} holds no JSON object")
    return content


def damaged(cause: str) -> UnservableError:
    """Return the error for a model with a file that is missing, cut off or of another content."""
    return UnservableError(f"{cause}; get the model's files again")


def require_fetched(file: Path) -> None:
    """Refuse a file that git lfs has not fetched.

    Raises:
        UnservableError: The file is a pointer of git lfs.
        OSError: The file cannot be read.
    """
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UnservableError(
                f"{file.name} is a pointer of git lfs, not the file itself; run git lfs pull in its folder"
            )


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder but hidden ones. Follow links, also to folders, unless they lead back up.

    Raises:
        OSError: A folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    # Path.rglob enters no linked folder before Python 3.13.
    for current, below, names in os.walk(folder, followlinks=True, onerror=fail):
        if any(Path(current).samefile(above) for above in Path(current).parents):
            below.clear()
            continue
        below[:] = sorted(name for name in below if not _is_hidden(name))
        yield from (path for name in names if not _is_hidden(name) and (path := Path(current, name)).is_file())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _is_module(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("type"), str) and _is_inside(entry.get("path"))


def _is_inside(path: Any) -> bool:
    return isinstance(path, str) and not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _routes(module: Module) -> Iterator[Module]:
    """Yield the modules that a Router leads to."""
    if module.library_class in ("Router", "Asym"):
        config = read(module.folder / "router_config.json") or module.config()
        types = config.get("types")
        for path, type_ in types.items() if isinstance(types, dict) else ():
            if not isinstance(type_, str) or not _is_inside(path):
                raise damaged(f"its router_config.json has no type for {path!r}")
            yield Module(type_, module.folder / path)


def _parse(file: Path) -> Any:
    try:
        require_fetched(file)
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(f"its {file.name} is not a valid JSON file") from error
    except OSError as error:
        cure = "let this user read it" if isinstance(error, PermissionError) else "get the model's files again"
        raise UnservableError(f"its {file.name} cannot be read ({error.strerror}); {cure}") from error
