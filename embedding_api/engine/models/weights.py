"""Whether the files hold the weights that the modules read: there, whole, and in a form that may be loaded."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import safetensors

from embedding_api.engine.findings import UnservableError, listed
from embedding_api.engine.models import folder as folders
from embedding_api.engine.models import snapshots
from embedding_api.engine.models.folder import Module

# Classes of sentence-transformers' own modules, beside Transformers, that read weights of their own.
_WEIGHTED = frozenset({"Dense", "StaticEmbedding", "LayerNorm", "LSTM", "CNN", "WeightedLayerPooling"})

_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"

# What other libraries call their weights, by how the file's name ends.
_OTHER_FORMATS = {
    ".onnx": "ONNX",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "GGUF",
    ".tflite": "TensorFlow Lite",
    ".mlmodel": "Core ML",
    "openvino_model.xml": "OpenVINO",
    "openvino_model.bin": "OpenVINO",
}
# How the first line of what git lfs leaves in the place of a file begins.
_LFS_POINTER = b"version https://git-lfs"
# Numbers in which weights are stored only by quantisation, whose scales nothing here reads.
_QUANTISED = frozenset({"I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"})


def require_weights(folder: Path, modules: Sequence[Module], *, allow_pickle: bool) -> None:
    """Refuses a model some of whose weights cannot be read. Reads no more than headers, in milliseconds.

    Args:
        folder: The model's.
        modules: As its files describe them.
        allow_pickle: Whether weights may come from pickle files, which can run code when they are read.

    Raises:
        UnservableError: Weights are missing, damaged, pickled without leave, or in another form.
    """
    for module in modules:
        if module.is_transformer:
            _refuse_adapter(module)
        needs_weights = module.is_transformer or (module.is_of_library and module.name in _WEIGHTED)
        for file in _files(folder, module, allow_pickle=allow_pickle) if needs_weights else _safetensors(module):
            if not file.exists():
                where = _where(folder, module)
                raise _broken_off(where) if snapshots.is_snapshot(folder) else _leads_nowhere(file)
            _require_whole(file)


def _files(folder: Path, module: Module, *, allow_pickle: bool) -> list[Path]:
    """The files that the weights of a module are read from."""
    for name in (_SAFETENSORS, _PICKLE):
        for file in (module.folder / name, module.folder / f"{name}{_INDEX}"):
            if not _is_there(file):
                continue
            if name == _PICKLE and not allow_pickle:
                raise _pickled(str(file.relative_to(folder)))
            return _shards(file) if file.name.endswith(_INDEX) else [file]
    raise _without_weights(folder, module, allow_pickle=allow_pickle)


def _safetensors(module: Module) -> list[Path]:
    """Those of a module of which nothing is known but its folder."""
    return sorted(module.folder.glob("*.safetensors"))


def _is_there(file: Path) -> bool:
    """Whether the file, or a link in its place, is there; a link may lead nowhere."""
    return file.is_file() or file.is_symlink()


def _shards(index: Path) -> list[Path]:
    names = folders.read(index).get("weight_map")
    if not isinstance(names, dict):
        raise UnservableError(f"its {index.name} has no weight_map; get the model's files again")
    shards = [index.parent / name for name in sorted(set(names.values()))]
    if missing := [shard.name for shard in shards if not _is_there(shard)]:
        raise UnservableError(
            f"{len(missing)} of the {len(shards)} files of its weights are missing: {listed(missing)} "
            f"({index.name} names them); get the model's files again"
        )
    return shards


def _refuse_adapter(module: Module) -> None:
    if _is_there(module.folder / "adapter_config.json"):
        base = folders.read(module.folder / "adapter_config.json").get("base_model_name_or_path") or "another model"
        raise UnservableError(
            f"it is an adapter of {base}, which is not served by itself (adapter_config.json); merge it into that "
            "with peft's merge_and_unload, and serve what you save then"
        )


def _require_whole(file: Path) -> None:
    """Refuses a file that is cut off, as downloads are, a pointer to another, or one that this user cannot read."""
    try:
        with file.open("rb") as opened:
            is_pointer = opened.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise UnservableError(f"{file.name} is a pointer of git lfs, no weights; run git lfs pull in its folder")
        if file.suffix == ".safetensors":
            _require_numbers(file)
    except (OSError, safetensors.SafetensorError) as error:
        cure = "let this user read it" if isinstance(error, PermissionError) else "get the model's files again"
        raise UnservableError(f"{file.name}: {type(error).__name__}: {error}; {cure}") from error


def _require_numbers(file: Path) -> None:
    with safetensors.safe_open(file, framework="numpy") as weights:
        quantised = [
            name
            for name in weights.keys()  # noqa: SIM118 - it is no dictionary
            if name.endswith("weight") and weights.get_slice(name).get_dtype() in _QUANTISED
        ]
    if quantised:
        raise UnservableError(
            f"{file.name} holds quantised weights ({listed(quantised, most=2)}), which are not served; get the model "
            "in float32, float16 or bfloat16, and set PRECISION=int8 if it shall compute so"
        )


def _pickled(name: str) -> UnservableError:
    return UnservableError(
        f"not all of its weights are in safetensors files: {name} is a pickle file; if you trust its source, set "
        "ALLOW_PICKLE=true to load pickle files, which can run code"
    )


def _without_weights(folder: Path, module: Module, *, allow_pickle: bool) -> UnservableError:
    """What is said where there are none: what lies there in their place, or why they are not there."""
    place, where = module.folder.relative_to(folder), _where(folder, module)
    repository = snapshots.repository(folder) if snapshots.is_snapshot(folder) else None
    if repository is not None:
        if str(place / _SAFETENSORS) in repository or str(place / f"{_SAFETENSORS}{_INDEX}") in repository:
            return _broken_off(where)
        if pickle := {str(place / _PICKLE), str(place / f"{_PICKLE}{_INDEX}")} & repository:
            return _broken_off(where) if allow_pickle else _pickled(min(pickle))
    names = sorted(repository or {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()})
    if formats := _other_formats(names):
        return UnservableError(
            f"it has no weights{where} that torch can read, only files for {formats}; get the model with its "
            f"{_SAFETENSORS}"
        )
    if any(path.name.endswith(".incomplete") for path in folder.rglob("*")) or snapshots.is_snapshot(folder):
        return _broken_off(where)
    return UnservableError(f"it has no weights{where}: there is no {_SAFETENSORS}; get the model's files again")


def _where(folder: Path, module: Module) -> str:
    place = module.folder.relative_to(folder)
    return "" if place == PurePath() else f" in {place}"


def _leads_nowhere(file: Path) -> UnservableError:
    return UnservableError(
        f"{file.name} is a link to {file.readlink()}, which is not there; get the model's files again"
    )


def _broken_off(where: str) -> UnservableError:
    return UnservableError(
        f"it has no weights{where}: its download broke off; start once with a connection to the hub and without "
        "HF_HUB_OFFLINE, which fetches the rest"
    )


def _other_formats(names: Sequence[str]) -> str:
    """Which other formats of weights there are, each with a file, or nothing."""
    found = {format_: name for ending, format_ in _OTHER_FORMATS.items() for name in names if name.endswith(ending)}
    return ", ".join(f"{format_} ({name})" for format_, name in sorted(found.items()))
