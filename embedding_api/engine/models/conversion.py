"""From a model's folder to what the OpenVINO backend reads: from the cache, or made by a program of its own."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import embedding_api
from embedding_api.engine.backends import UnfitError
from embedding_api.engine.findings import UnservableError
from embedding_api.engine.models import cache, files
from embedding_api.errors import ModelLoadError
from embedding_api.machine import programs
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

# Inputs of the cache key: the files of this package whose output is stored. A change of one makes every entry anew, so
# that nobody reads what an older one wrote.
_OWN = (
    "engine/backends/completeness.py", "engine/backends/convert.py", "engine/backends/layout.py",
    "engine/backends/modules.py", "engine/backends/proof.py", "engine/backends/text.py",
    "engine/backends/torch_backend.py", "engine/findings.py", "telemetry/library_warnings.py",
)  # fmt: skip
_OWN_CALIBRATION_TEXTS = "engine/backends/calibration.txt"

# And of others'. nncf is not among them: an int8 model in the cache needs none, so its version is the one
# that requirements.txt pins, and no other makes one.
_PACKAGES = ("openvino", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy")
NNCF_VERSION = "3.4.0"

# What no model reads, at the ends of file names in a model's folder.
_IRRELEVANT = (".md", ".onnx", ".h5", ".msgpack", ".gguf", ".tflite", ".png", ".jpg", ".lock", ".metadata")

# In the place of a converted model: why there is none, and why no backend can serve it.
_REFUSAL, _UNSERVABLE = "refusal.json", "unservable.json"


def converted(source: Path, settings: Settings, *, trust_remote_code: bool, name: str) -> Path:
    """The folder of a converted model.

    Args:
        source: The model as sentence-transformers has it.
        settings: Of which precision, cache_dir, calibration_texts and allow_pickle matter.
        trust_remote_code: Whether Python files that come with the model may run.
        name: What the log calls the model.

    Raises:
        UnfitError: The model cannot be converted.
        UnservableError: No backend can serve it.
        ModelLoadError: What the operator must mend: the cache cannot be used, or PRECISION=int8 lacks what it takes.
    """
    is_int8 = settings.precision == "int8"
    options: dict[str, str | bool] = {
        "quantise": is_int8,
        "calibration_texts": str(settings.calibration_texts or "") if is_int8 else "",
        "trust_remote_code": trust_remote_code,
        "allow_pickle": settings.allow_pickle,
    }
    key = _key(source, options)

    def make(target: Path, lock: int) -> None:
        if is_int8:
            _require_nncf()
        _run(source, target, options, lock, name)

    try:
        entry = cache.obtain(settings.cache_dir / "openvino", key, make, n_bytes=_least_size(source, is_int8=is_int8))
    except cache.CacheError as error:
        raise ModelLoadError(f"{error}, or BACKEND=torch, which is slower and needs none") from error
    for file, refused in ((_REFUSAL, UnfitError), (_UNSERVABLE, UnservableError)):
        if (entry / file).exists():
            raise refused(json.loads((entry / file).read_bytes()))
    return entry


def _key(source: Path, options: dict[str, str | bool]) -> str:
    """SHA-256 over everything that the result depends on, in hexadecimal; where the model lies is no part of it.

    Raises:
        UnfitError: A file cannot be read.
    """
    own = list(_OWN)
    if options["quantise"] and not options["calibration_texts"]:
        own.append(_OWN_CALIBRATION_TEXTS)
    try:
        texts = cache.sha256(Path(str(options["calibration_texts"]))) if options["calibration_texts"] else ""
        parts = {
            "own": {name: cache.sha256(Path(embedding_api.__file__).parent / name) for name in own},
            "versions": {name: _version(name) for name in _PACKAGES},
            "nncf": NNCF_VERSION if options["quantise"] else None,
            "options": {**options, "calibration_texts": texts},
            "files": {str(path.relative_to(source)): cache.sha256(path) for path in _files(source)},
        }
    except OSError as error:
        raise UnfitError(f"{error.filename or source} cannot be read ({error.strerror or error})") from error
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _least_size(source: Path, *, is_int8: bool) -> int:
    """Bytes that the result takes at the least: half of the weights, which a folder may hold twice, or an eighth."""
    n_bytes = sum(path.stat().st_size for path in _files(source) if path.suffix == ".safetensors")
    return n_bytes // (8 if is_int8 else 2)


def _files(source: Path) -> Iterator[Path]:
    """What may decide what a model gives. Raises OSError where a folder cannot be read."""
    return (path for path in files.walk(source) if path.suffix not in _IRRELEVANT)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _require_nncf() -> None:
    if (found := _version("nncf")) != NNCF_VERSION:
        raise ModelLoadError(
            f"PRECISION=int8 needs nncf {NNCF_VERSION} once, to quantise the model, and there is {found or 'none'}: "
            f"install requirements.txt again, or nncf=={NNCF_VERSION} alone, or set PRECISION to float32 or bfloat16"
        )


def _run(source: Path, target: Path, options: dict[str, str | bool], lock: int, name: str) -> None:
    """Fills `target` with the converted model, or with the reason why there cannot be one."""
    started = time.monotonic()
    logger.info("converting model %s for OpenVINO; its next start will find it in %s", name, target.parent)
    job = {"source": str(source.absolute()), "target": str(target.absolute()), **options}
    answer = programs.ask(
        ["-m", "embedding_api.engine.backends.convert", json.dumps(job)],
        environment=_environment(),
        # What libraries write beside their results goes with the entry, and not to where the service runs.
        folder=target,
        keep=[lock],
        is_quiet=True,
    )
    if "end" in answer:
        raise UnfitError(f"its conversion {answer['end']}")
    if answer["errno"] in cache.NO_ROOM:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if answer["problem"]:
        raise UnfitError(answer["problem"])
    for file, why in ((_REFUSAL, answer["refusal"]), (_UNSERVABLE, answer["unservable"])):
        if why:
            (target / file).write_text(json.dumps(why))
    for line in answer["warnings"]:
        logger.warning("model %s, while it was converted: %s", name, line)
    logger.info("done in %.1f s", time.monotonic() - started)


def _environment() -> dict[str, str]:
    """What the conversion needs: this package, which may be nowhere on the module path, and no connection."""
    root = str(Path(embedding_api.__file__).parents[1])
    return programs.environment(
        Settings.secret_names(),
        PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
    )
