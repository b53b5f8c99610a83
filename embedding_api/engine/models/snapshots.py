"""Read the hub's cache, where `models--org--name/snapshots/commit` holds the files of a model at a commit."""

import json
from collections.abc import Iterable
from pathlib import Path

from embedding_api.engine.findings import UnservableError, listed
from embedding_api.errors import ModelLoadError
from embedding_api.settings.model_spec import ModelSpec

# Suffixes of the files that describe a model, and of its vocabulary.
_READ = (".json", ".txt", ".model")


def chosen(spec: ModelSpec, folder: Path) -> Path:
    """Return the snapshot in a repository's folder: that of refs/main, or the only one. Any other folder stays.

    Raises:
        ModelLoadError: There is no snapshot, or there are several and no refs/main.
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


def require_all(folder: Path, folders: Iterable[Path]) -> None:
    """Refuse a snapshot that lacks a file of its repository, in folders that the model is read from.

    The check needs the repository's list of files in the cache; without it every folder passes. `weights` checks
    weights.

    Args:
        folder: The folder of the model.
        folders: The folders of its modules.

    Raises:
        UnservableError: A file is missing.
    """
    known = {folder / name for name in repository(folder) or () if name.endswith(_READ)}
    if missing := [str(path.relative_to(folder)) for path in known if path.parent in folders and not path.is_file()]:
        raise broken_off(f"it lacks {listed(missing)}")


def broken_off(cause: str) -> UnservableError:
    """Return the error for a model whose download is not complete."""
    return UnservableError(
        f"{cause}: its download broke off; download it again, or, if SUPPORTED_MODELS has its name on the hub, start "
        "once with a connection to the hub and without HF_HUB_OFFLINE, which fetches the rest"
    )


def is_snapshot(folder: Path) -> bool:
    """Return True if a model's folder is a snapshot in the hub's cache."""
    return folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")


def revision(spec: ModelSpec, folder: Path) -> str | None:
    """Return the commit of a snapshot, or of any other folder the revision in SUPPORTED_MODELS, if there is one."""
    return folder.name if is_snapshot(folder) else spec.revision


def repository(folder: Path) -> set[str] | None:
    """Return the names of all files in a snapshot's repository.

    None if the folder is no snapshot, or if an older library, which wrote no list, filled the cache.
    """
    if not is_snapshot(folder):
        return None
    try:
        return set(json.loads((folder.parents[1] / "trees" / f"{folder.name}.json").read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
