"""One model: which backend serves it, loaded and proven."""

import dataclasses
import importlib.util
import logging
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors

from embedding_api import cores
from embedding_api.config import Settings
from embedding_api.engine import conversion, proof
from embedding_api.engine.backends import Route, Routes, UnfitError
from embedding_api.engine.proof import Proof
from embedding_api.errors import ModelLoadError, StartError
from embedding_api.model_spec import ModelSpec

logger = logging.getLogger(__name__)

# Loads a model from its folder.
Loader = Callable[[ModelSpec, Path, Settings], Routes]


class Proven(NamedTuple):
    """A model whose vectors were compared with sentence-transformers' own.

    Attributes:
        proof: Of the route that came out worst.
    """

    routes: Routes
    proof: Proof


class _ImpreciseError(UnfitError):
    """The vectors are out of bounds in a precision below float32, which may be all that is wrong with them."""


def load(spec: ModelSpec, folder: Path, settings: Settings, loaders: Mapping[str, Loader] | None = None) -> Proven:
    """Loads a model with the backend that was named, or with the first that can serve it.

    Args:
        spec: What SUPPORTED_MODELS says of it.
        folder: Where its files are.
        settings: Of which backend, precision, device and those of the cache matter.
        loaders: How each backend loads, by name; those of this package if None.

    Raises:
        ModelLoadError: No backend that may serve it can.
    """
    loaders = loaders or {"openvino": _openvino, "torch": _torch}
    _require_whole_weights(spec, folder)
    if settings.backend != "auto" or settings.device != "cpu":
        return _by_name(spec, folder, settings, loaders)
    try:
        return _by_openvino(spec, folder, settings, loaders["openvino"])
    except UnfitError as error:
        proven = _by_name(spec, folder, settings, loaders)
        # Not before: a model that torch cannot load either is told in one line.
        logger.warning(
            "model %s is served by torch in %s, which is slower, since for OpenVINO: %s; BACKEND=torch says that you "
            "know",
            spec.name,
            _torch_precision(settings),
            error,
        )
        return proven


def _require_whole_weights(spec: ModelSpec, folder: Path) -> None:
    """Refuses files that are cut off, as downloads are, or pointers to others, as in clones without git lfs.

    Reads no more than their headers, in milliseconds; backends find out after seconds.
    """
    for path in folder.rglob("*.safetensors"):
        try:
            # Says why, if it cannot be opened; safetensors would say that it is not there.
            path.open("rb").close()
            safetensors.safe_open(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            cure = "let this user read it" if isinstance(error, PermissionError) else "get the model's files again"
            raise ModelLoadError(
                f"model {spec.name} from {folder} cannot be loaded: {path.name}: {_reason(error)}; {cure}"
            ) from error


def _by_name(spec: ModelSpec, folder: Path, settings: Settings, loaders: Mapping[str, Loader]) -> Proven:
    """With the backend that was named; by auto that is torch, once OpenVINO cannot."""
    name = "openvino" if settings.backend == "openvino" else "torch"
    try:
        return _tried(spec, folder, settings, loaders[name])
    except UnfitError as error:
        cure = "; set BACKEND=auto" if name == "openvino" else ""
        if isinstance(error, _ImpreciseError):
            cure = "; set PRECISION=float32"
        raise ModelLoadError(f"model {spec.name} from {folder} cannot be served by {name}: {error}{cure}") from error


def _by_openvino(spec: ModelSpec, folder: Path, settings: Settings, loader: Loader) -> Proven:
    """In the precision that was asked for, or in float32 where the model does not bear that."""
    try:
        return _tried(spec, folder, settings, loader)
    except _ImpreciseError as error:
        logger.warning(
            "model %s is served in float32, which is slower, since %s; PRECISION=float32 says that you know",
            spec.name,
            error,
        )
        return _tried(spec, folder, dataclasses.replace(settings, precision="float32"), loader)


def _tried(spec: ModelSpec, folder: Path, settings: Settings, loader: Loader) -> Proven:
    """Loads and proves a model; whatever fails in a backend on the way is an UnfitError, a wrong setting itself."""
    try:
        return _proven(loader(spec, folder, settings))
    except (UnfitError, StartError):
        raise
    except Exception as error:
        logger.debug("model %s cannot be served", spec.name, exc_info=True)
        raise UnfitError(_reason(error)) from error


def _proven(routes: Routes) -> Proven:
    return Proven(routes, max((_proof(route) for route in routes.values()), key=lambda proven: proven.share))


def _proof(route: Route) -> Proof:
    reading = route.reader.read(proof.PROBE_TEXTS, route.prompt)
    vectors = route.backend.embed([tokens.ids for tokens in reading.tokens], reading.n_prompt_tokens)
    precision = route.backend.precision
    proven = proof.prove(route.reference, vectors, precision)
    if not proven.holds:
        raise (UnfitError if precision == "float32" else _ImpreciseError)(
            f"its vectors in {precision} differ from sentence-transformers' own: {proven}"
        )
    return proven


def _openvino(spec: ModelSpec, folder: Path, settings: Settings) -> Routes:
    if importlib.util.find_spec("openvino") is None:
        raise UnfitError("openvino is not installed; pip install openvino")
    converted = conversion.converted(folder, settings, trust_remote_code=_is_trusted(spec, settings))
    # Here, since it takes a quarter of a second, and since not every service needs it.
    from embedding_api.engine.backends import openvino

    return openvino.load(converted, precision=settings.precision)


def _torch(spec: ModelSpec, folder: Path, settings: Settings) -> Routes:
    try:
        # Here, since it takes seconds and torch must not be imported before the process is prepared.
        from embedding_api.engine.backends import torch

        return torch.load(
            folder,
            device=settings.device,
            precision=_torch_precision(settings),
            n_threads=max(1, cores.count() // settings.workers),
            trust_remote_code=_is_trusted(spec, settings),
            allow_pickle=settings.allow_pickle,
        )
    except Exception as error:
        logger.debug("model %s cannot be loaded", spec.name, exc_info=True)
        cure = _cure(str(error), spec)
        raise ModelLoadError(f"model {spec.name} from {folder} cannot be loaded: {_reason(error)}; {cure}") from error


def _torch_precision(settings: Settings) -> str:
    """What torch computes in; it has no int8 here."""
    return "float32" if settings.precision == "int8" else settings.precision


def _is_trusted(spec: ModelSpec, settings: Settings) -> bool:
    return any(name in settings.trust_remote_code for name in spec.names)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 300) or 'no message'}"


def _cure(reason: str, spec: ModelSpec) -> str:
    if "trust_remote_code" in reason:
        return f"it brings Python code of its own: read that, then name it in TRUST_REMOTE_CODE={spec.name}"
    return "check that the folder holds a complete sentence-transformers model and that memory suffices"
