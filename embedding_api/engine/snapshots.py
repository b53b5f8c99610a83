"""A model's folder in the hub's cache, `models--org--name`: which of its snapshots is served, and if it is whole."""

import json
from pathlib import Path

from embedding_api.errors import ModelLoadError
from embedding_api.model_spec import ModelSpec

# What a model is read from, and folders of other runtimes, which no download of ours brings.
_READ, _OTHERS = (".safetensors", ".json", ".txt"), {"onnx", "openvino", "coreml"}
_N_SHOWN = 3


def chosen(spec: ModelSpec, folder: Path) -> Path:
    """The snapshot of a folder of the hub's cache: that of refs/main, or the only one. Any other folder as it is.

    Raises:
        ModelLoadError: There is none, it cannot be told which, or its download broke off.
        OSError: A file cannot be read.
    """
    if not (folder / "snapshots").is_dir() or (folder / "config.json").is_file():
        return folder
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        snapshot = folder / "snapshots" / main.read_text().strip()
    elif len(snapshots) > 1:
        names = ", ".join(path.name for path in snapshots)
        raise ModelLoadError(
            f"model {spec.name}: {folder} has several snapshots and no refs/main: {names}; name one of them, as "
            f"{snapshots[-1]}"
        )
    else:
        snapshot = snapshots[0] if snapshots else folder / "snapshots" / "none"
    if missing := _missing(folder, snapshot):
        shown = ", ".join(missing[:_N_SHOWN]) + (", ..." if len(missing) > _N_SHOWN else "")
        hub_name = folder.name.removeprefix("models--").replace("--", "/")
        raise ModelLoadError(
            f"model {spec.name}: the download of {snapshot} broke off: it lacks {shown}; download it again "
            f"(SUPPORTED_MODELS={spec.name}={hub_name} does), or name that folder itself if the file is not needed"
        )
    return snapshot


def _missing(folder: Path, snapshot: Path) -> list[str]:
    """What a snapshot lacks: of the files that the hub has, as the cache knows them, or of those that were begun."""
    if not snapshot.is_dir():
        return ["all of it"]
    if broken := [path.name for path in snapshot.rglob("*") if path.is_symlink() and not path.exists()]:
        return broken
    try:
        files = json.loads((folder / "trees" / f"{snapshot.name}.json").read_bytes())["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # Older versions of the hub's library keep no such list.
        has_weights = any(snapshot.rglob("*.safetensors")) or any(snapshot.rglob("*.bin"))
        return [] if has_weights or not any(folder.glob("blobs/*.incomplete")) else ["a file with weights"]
    needed = (name for name in files if name.endswith(_READ) and Path(name).parts[0] not in _OTHERS)
    return [name for name in needed if not (snapshot / name).is_file()]
