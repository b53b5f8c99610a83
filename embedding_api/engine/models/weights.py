"""Check that the weights of all modules exist, are whole, and are in a format that may be loaded."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import safetensors

from embedding_api.engine.findings import UnservableError, listed
from embedding_api.engine.models import files, formats, snapshots
from embedding_api.engine.models.files import Module

# Classes of sentence-transformers that have weights.
_WEIGHTED = frozenset({"Transformer", "Dense", "StaticEmbedding", "LayerNorm", "LSTM", "CNN", "WeightedLayerPooling"})

_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"

_OTHER_FORMATS = formats.OTHER_WEIGHTS | formats.OPENVINO_WEIGHTS
# Types of numbers that only quantised weights have. This service does not read the scales of quantised weights.
_QUANTISED = frozenset({"I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"})
# The ends of the names of weights that are factors, and so are integers only if they are quantised.
_WEIGHTS = ("weight", "embeddings")


def require_weights(folder: Path, modules: Sequence[Module], *, allow_pickle: bool) -> None:
    """Refuse a model with weights that cannot be read. Only headers are read, in milliseconds.

    Args:
        folder: The folder of the model.
        modules: The modules that its files describe.
        allow_pickle: True if weights may come from pickle files, which can run code when they are read.

    Raises:
        UnservableError: Weights are missing, damaged, in pickle files that are not allowed, or in another format.
        OSError: A folder cannot be read.
    """
    for module in modules:
        if module.library_class == "Transformer":
            _refuse_adapter(module)
            if isinstance(quantised := module.config().get("quantization_config"), dict):
                method = quantised.get("quant_method", "of some kind")
                raise _quantised(f"config.json has a quantization_config, {method}")
        for file in _files(folder, module, allow_pickle=allow_pickle):
            if not file.exists():
                raise _without_weights(folder, module, allow_pickle=allow_pickle)
            _require_whole(file)


def _files(folder: Path, module: Module, *, allow_pickle: bool) -> list[Path]:
    """Return the files that hold the weights of a module.

    Raises:
        UnservableError: The module needs weights, and has none that may be read.
    """
    if module.library_class not in _WEIGHTED:
        # Which files such a module reads is unknown. Those that exist must be whole.
        return sorted(module.folder.glob("*.safetensors"))
    # config.json may name another file.
    named = module.config().get("transformers_weights") if module.library_class == "Transformer" else None
    for name in (str(named),) if named else (_SAFETENSORS, _PICKLE):
        for file in (module.folder / name, module.folder / f"{name}{_INDEX}"):
            if not files.is_there(file):
                continue
            if ".safetensors" not in name and not allow_pickle:
                raise _pickled(str(file.relative_to(folder)))
            return _shards(file) if file.name.endswith(_INDEX) else [file]
    raise _without_weights(folder, module, allow_pickle=allow_pickle)


def _shards(index: Path) -> list[Path]:
    content = files.read(index)
    parts = content.get("weight_map")
    names = set(parts.values()) if isinstance(parts, dict) and "metadata" in content else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise files.damaged(f"its {index.name} does not say which files hold its weights")
    shards = [index.parent / name for name in sorted(names)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        there_are = f"{len(missing)} of the {len(shards)} files of its weights are missing: {listed(missing)}"
        raise files.damaged(f"{there_are} ({index.name} names them)")
    return shards


def _refuse_adapter(module: Module) -> None:
    if files.is_there(module.folder / "adapter_config.json"):
        base = files.read(module.folder / "adapter_config.json").get("base_model_name_or_path") or "another model"
        raise UnservableError(
            f"it is an adapter of {base} (adapter_config.json), and an adapter alone cannot be served; merge it into "
            "its base with peft's merge_and_unload, and serve the merged model"
        )


def _require_whole(file: Path) -> None:
    """Refuse a file that is cut off, that is a pointer of git lfs, or that holds quantised weights."""
    files.require_fetched(file)
    if file.suffix != ".safetensors":
        return
    try:
        with safetensors.safe_open(file, framework="numpy") as weights:
            quantised = [
                name
                for name in weights.keys()  # noqa: SIM118 - it is no dictionary
                if name.endswith(_WEIGHTS) and weights.get_slice(name).get_dtype() in _QUANTISED
            ]
    except safetensors.SafetensorError as error:
        raise files.damaged(f"{file.name}: SafetensorError: {error}") from error
    if quantised:
        raise _quantised(f"{file.name} holds whole numbers in {listed(quantised, most=2)}")


def _quantised(cause: str) -> UnservableError:
    return UnservableError(
        f"its weights are quantised, which is not served: {cause}; get the model in float32, float16 or bfloat16, and "
        "set PRECISION=int8 if it should compute in int8"
    )


def _pickled(name: str) -> UnservableError:
    return UnservableError(
        f"not all of its weights are in safetensors files: {name} is a pickle file; if you trust its source, set "
        "ALLOW_PICKLE=true to load pickle files, which can run code"
    )


def _without_weights(folder: Path, module: Module, *, allow_pickle: bool) -> UnservableError:
    """Return the error for a module without weights: which files it has instead, or why the weights are missing."""
    path = module.folder.relative_to(folder)
    where = "" if path == PurePath() else f" in {path}"
    repository = snapshots.repository(folder) or set()
    broken_off = snapshots.broken_off(f"it has no weights{where}")
    for name in (_SAFETENSORS, f"{_SAFETENSORS}{_INDEX}", _PICKLE, f"{_PICKLE}{_INDEX}"):
        if str(path / name) in repository:
            is_refused = name.startswith(_PICKLE) and not allow_pickle
            return _pickled(str(path / name)) if is_refused else broken_off
    names = repository or {str(file.relative_to(folder)) for file in folder.rglob("*") if files.is_there(file)}
    if others := _other_formats(name for name in names if PurePath(name).is_relative_to(path)):
        return UnservableError(
            f"it has no weights{where} that torch can read, only files for {others}; get the model with its "
            f"{_SAFETENSORS}"
        )
    if snapshots.is_snapshot(folder) or any(folder.rglob("*.incomplete")):
        return broken_off
    link = module.folder / _SAFETENSORS
    there_is = f"{link.name} is a link to {link.readlink()}" if link.is_symlink() else f"there is no {_SAFETENSORS}"
    if strangers := [file.name for file in module.folder.glob("*.safetensors") if file != link]:
        there_is += f" (the model is not read from {listed(strangers)})"
    return files.damaged(f"it has no weights{where}: {there_is}")


def _other_formats(names: Iterable[str]) -> str:
    """Return the names of the other formats that a model has weights in, each with a file; empty if there are none."""
    found = {
        format_: name for name in sorted(names) for ending, format_ in _OTHER_FORMATS.items() if name.endswith(ending)
    }
    return ", ".join(f"{format_} ({name})" for format_, name in sorted(found.items()))
