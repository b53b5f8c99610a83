"""The hub's cache: `models--org--name/snapshots/commit` holds a model's files at a commit."""

import json
from collections.abc import Iterable
from pathlib import Path

from embedding_api.engine.findings import UnservableError, listed
from embedding_api.errors import ModelLoadError
from embedding_api.settings.model_spec import ModelSpec

# Files that say what a model is, and its vocabulary.
_READ = (".json", ".txt", ".model")


def chosen(spec: ModelSpec, folder: Path) -> Path:
    """The snapshot of a repository's folder in the cache: that of refs/main, or the only one. Other folders stay.

    Raises:
        ModelLoadError: There is none, or it cannot be told which.
        OSError: A file cannot be read.
    """
    if not (folder / "snapshots").is_dir() or (folder / "config.json").is_file():
        return folder
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        snapshots = [path for path in snapshots if path.name == main.read_text().strip()]
    if not snapshots:
        name = folder.name.removeprefix("models--").replace("--", "/")
        raise ModelLoadError(
            f"model {spec.name}: {folder} has no snapshot, since its download broke off; download it again: "
            f"SUPPORTED_MODELS={spec.name}={name} does"
        )
    if len(snapshots) > 1:
        names = ", ".join(path.name for path in snapshots)
        raise ModelLoadError(
            f"model {spec.name}: {folder} has several snapshots and no refs/main: {names}; name one of them, as "
            f"{snapshots[-1]}"
        )
    return snapshots[0]


def require_all(folder: Path, places: Iterable[Path], *, is_downloaded: bool) -> None:
    """Refuses a snapshot that lacks a file which its repository has, and which a model of these folders is read from.

    Args:
        folder: The model's; any but a snapshot whose repository the cache knows is taken as it is.
        places: Folders of its modules.
        is_downloaded: Whether each start fetches from the hub what the folder lacks.

    Raises:
        UnservableError: It lacks one. Weights are looked for elsewhere.
    """
    listed_files = repository(folder) if is_snapshot(folder) else None
    known = {folder / name for name in listed_files or () if name.endswith(_READ)}
    if missing := [str(path.relative_to(folder)) for path in known if path.parent in places and not path.is_file()]:
        raise broken_off(f"it lacks {listed(missing)}", is_downloaded=is_downloaded)


def broken_off(cause: str, *, is_downloaded: bool) -> UnservableError:
    """What to tell of a model whose download is not whole."""
    cure = (
        "start once with a connection to the hub and without HF_HUB_OFFLINE, which fetches the rest"
        if is_downloaded
        else "download it again"
    )
    return UnservableError(f"{cause}: its download broke off; {cure}")


def is_snapshot(folder: Path) -> bool:
    """Whether a model's folder lies in the cache."""
    return folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")


def repository(snapshot: Path) -> set[str] | None:
    """The files of the repository that a snapshot is of; None if an older library made the cache, which has no list."""
    listing = snapshot.parents[1] / "trees" / f"{snapshot.name}.json"
    try:
        return set(json.loads(listing.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
