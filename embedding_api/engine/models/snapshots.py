"""The hub's cache: `models--org--name/snapshots/commit` holds a model's files at a commit."""

import json
from pathlib import Path

from embedding_api.errors import ModelLoadError
from embedding_api.model_spec import ModelSpec


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
