"""Obtain the converted model that the OpenVINO backend reads: from the cache, or from the conversion program."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import embedding_api
from embedding_api.engine.backends import UnfitError
from embedding_api.engine.findings import UnservableError
from embedding_api.engine.models import cache, files, formats
from embedding_api.engine.models.checksums import Checksums
from embedding_api.errors import ModelLoadError
from embedding_api.machine import programs
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

_PACKAGE = Path(embedding_api.__file__).parent

# Inputs of the cache key: the source files of this package whose output is stored. A change of one of them makes every
# entry anew, so that no service reads the output of older code.
_OWN = (
    "engine/backends/completeness.py", "engine/backends/convert.py", "engine/backends/export.py",
    "engine/backends/layout.py", "engine/backends/modules.py", "engine/backends/proof.py", "engine/backends/text.py",
    "engine/backends/torch_backend.py", "engine/backends/torch_model.py", "engine/findings.py",
    "telemetry/library_warnings.py",
)  # fmt: skip
# The texts of the calibration where CALIBRATION_TEXTS names no file.
_OWN_CALIBRATION_TEXTS = "engine/backends/calibration.txt"

# Packages whose version is an input of the cache key. nncf is not one of them: an int8 model in the cache works without
# nncf, so that the key has the version that requirements.txt pins. No other version makes an entry.
_PACKAGES = ("openvino", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy")
NNCF_VERSION = "3.4.0"

# Suffixes of files in a model's folder that have no effect on its vectors.
_IRRELEVANT = (*formats.OTHER_WEIGHTS, *formats.NOT_OF_MODEL)

# An entry has a JSON file with one of these names instead of a model where there is none: why OpenVINO cannot serve the
# model, or why no backend can.
_REFUSALS = {"refusal": UnfitError, "unservable": UnservableError}


def converted(source: Path, settings: Settings, checksums: Checksums, *, trust_remote_code: bool, model: str) -> Path:
    """Return the folder of a converted model.

    Args:
        source: The folder of the sentence-transformers model.
        settings: PRECISION, CACHE_DIR, CALIBRATION_TEXTS and ALLOW_PICKLE matter.
        checksums: Computes the checksums of the model's files.
        trust_remote_code: True if Python files that come with the model may run.
        model: The name of the model in the log.

    Raises:
        UnfitError: The model cannot be converted.
        UnservableError: No backend can serve the model.
        ModelLoadError: The cache cannot be used, or a package that PRECISION=int8 needs is missing.
    """
    is_int8 = settings.precision == "int8"
    texts = settings.calibration_texts or _PACKAGE / _OWN_CALIBRATION_TEXTS
    options: dict[str, str | bool] = {
        "quantise": is_int8,
        "calibration_texts": str(texts) if is_int8 else "",
        "trust_remote_code": trust_remote_code,
        "allow_pickle": settings.allow_pickle,
    }
    key = _key(source, options, checksums)
    # At least an eighth of the weights in int8, and otherwise half of them: a folder may hold the same weights twice.
    n_bytes = sum(path.stat().st_size for path in _files(source) if path.suffix == ".safetensors")
    n_bytes //= 8 if is_int8 else 2
    make = partial(_convert, source, options, model)
    entry = cache.obtain(settings.cache_dir / "openvino", key, make, checksums, n_bytes=n_bytes)
    for name, refused in _REFUSALS.items():
        if (file := entry / f"{name}.json").exists():
            raise refused(json.loads(file.read_bytes()))
    return entry


def _key(source: Path, options: dict[str, str | bool], checksums: Checksums) -> str:
    """Return a SHA-256 over everything that the result depends on. The place of the model is no part of it.

    Raises:
        UnfitError: A file cannot be read.
    """
    texts = options["calibration_texts"]
    try:
        parts = {
            "own": {name: checksums.sha256(_PACKAGE / name) for name in _OWN},
            "versions": {name: _version(name) for name in _PACKAGES},
            "nncf": NNCF_VERSION if options["quantise"] else None,
            "options": {**options, "calibration_texts": checksums.sha256(Path(str(texts))) if texts else ""},
            "files": {str(path.relative_to(source)): checksums.sha256(path) for path in _files(source)},
        }
    except OSError as error:
        raise UnfitError(f"{error.filename or source} cannot be read ({error.strerror or error})") from error
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _files(source: Path) -> Iterator[Path]:
    """Yield the files that may have an effect on vectors. Raises OSError where a folder cannot be read."""
    return (path for path in files.walk(source) if path.suffix not in _IRRELEVANT)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _convert(source: Path, options: dict[str, str | bool], name: str, target: Path, lock: int) -> None:
    """Fill `target` with the converted model, or with the reason why there is none."""
    if options["quantise"] and (found := _version("nncf")) != NNCF_VERSION:
        raise ModelLoadError(
            f"PRECISION=int8 needs nncf {NNCF_VERSION} once, to quantise the model, and there is {found or 'none'}: "
            f"install requirements.txt again, or nncf=={NNCF_VERSION} alone, or set PRECISION to float32 or bfloat16"
        )
    started = time.monotonic()
    logger.info("converting model %s for OpenVINO; its next start will find it in %s", name, target.parent)
    conversion = {"source": str(source.absolute()), "target": str(target.absolute()), **options}
    outcome = programs.ask(
        ["-m", "embedding_api.engine.backends.convert", json.dumps(conversion)],
        # It needs no connection.
        environment=programs.environment(Settings.secret_names(), HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1"),
        # Some libraries write files into their working folder. Those belong to the entry.
        folder=target,
        keep=[lock],
        is_quiet=True,
    )
    if "end" in outcome:
        raise UnfitError(f"its conversion {outcome['end']}")
    if (number := outcome.get("errno")) in cache.NO_ROOM:
        raise OSError(number, os.strerror(number))
    if "problem" in outcome:
        raise UnfitError(outcome["problem"])
    for file in _REFUSALS.keys() & outcome.keys():
        (target / f"{file}.json").write_text(json.dumps(outcome[file]))
    for line in outcome["warnings"]:
        logger.warning("model %s, while it was converted: %s", name, line)
    logger.info("converted model %s in %.1f s", name, time.monotonic() - started)
