"""One model: which backend serves it, loaded and proven."""

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from embedding_api.engine.backends import Loaded, Route, Routes, UnfitError, proof
from embedding_api.engine.backends.proof import Proof
from embedding_api.engine.findings import Finding, UnservableError, in_a_line
from embedding_api.engine.models import conversion, kind
from embedding_api.engine.models.inspection import Inspected, unservable
from embedding_api.errors import ModelLoadError, StartError
from embedding_api.machine import cores
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

# Loads a model.
Loader = Callable[[Inspected, Settings], Loaded]


class Proven(NamedTuple):
    """A model whose vectors were compared with sentence-transformers' own.

    Attributes:
        proof: Of the route that came out worst.
        findings: What its operator should know.
    """

    routes: Routes
    proof: Proof
    findings: Sequence[Finding]


class _ImpreciseError(UnfitError):
    """The vectors are out of bounds in a precision below float32, which may be all that is wrong with them."""


def load(model: Inspected, settings: Settings, loaders: Mapping[str, Loader] | None = None) -> Proven:
    """Loads a model with the backend that was named, or with the first that can serve it, and tells what was found.

    Args:
        model: Which.
        settings: Of which backend, precision, device and those of the cache matter.
        loaders: How each backend loads, by name; those of this package if None.

    Raises:
        ModelLoadError: No backend that may serve it can.
    """
    loaders = loaders or {"openvino": _openvino, "torch": _torch}
    try:
        proven = _first_that_can(model, settings, loaders)
        assumed = list(kind.assumptions(model.source, model.modules, proven.routes[None].reader.window))
    except UnservableError as error:
        raise unservable(model.spec, model.source, error) from error
    for finding in (*model.findings, *assumed, *proven.findings):
        logger.log(finding.level, "model %s: %s", model.spec.name, finding.message)
    return proven


def _first_that_can(model: Inspected, settings: Settings, loaders: Mapping[str, Loader]) -> Proven:
    if settings.backend != "auto" or settings.device != "cpu":
        return _by_name(model, settings, loaders)
    try:
        return _by_openvino(model, settings, loaders["openvino"])
    except UnfitError as error:
        proven = _by_name(model, settings, loaders)
        # Not before: a model that torch cannot load either is told in one line.
        logger.warning(
            "model %s is served by torch in %s, which is slower, since for OpenVINO: %s; BACKEND=torch says that you "
            "know",
            model.spec.name,
            _torch_precision(settings),
            error,
        )
        return proven


def _by_name(model: Inspected, settings: Settings, loaders: Mapping[str, Loader]) -> Proven:
    """With the backend that was named; by auto that is torch, once OpenVINO cannot."""
    name = "openvino" if settings.backend == "openvino" else "torch"
    try:
        return _tried(model, settings, loaders[name])
    except UnfitError as error:
        cure = "; set BACKEND=auto" if name == "openvino" else ""
        if isinstance(error, _ImpreciseError):
            cure = "; set PRECISION=float32"
        raise ModelLoadError(
            f"model {model.spec.name} from {model.source} cannot be served by {name}: {error}{cure}"
        ) from error


def _by_openvino(model: Inspected, settings: Settings, loader: Loader) -> Proven:
    """In the precision that was asked for, or in float32 where the model does not bear that."""
    try:
        return _tried(model, settings, loader)
    except _ImpreciseError as error:
        logger.warning(
            "model %s is served in float32, which is slower, since %s; PRECISION=float32 says that you know",
            model.spec.name,
            error,
        )
        return _tried(model, dataclasses.replace(settings, precision="float32"), loader)


def _tried(model: Inspected, settings: Settings, loader: Loader) -> Proven:
    """Loads and proves a model; whatever fails in a backend on the way is an UnfitError, a wrong setting itself."""
    try:
        return _proven(loader(model, settings))
    except (UnfitError, UnservableError, StartError):
        raise
    except Exception as error:
        logger.debug("model %s cannot be served", model.spec.name, exc_info=True)
        raise UnfitError(in_a_line(error)) from error


def _proven(loaded: Loaded) -> Proven:
    worst = max((_proof(route) for route in loaded.routes.values()), key=lambda proven: proven.share)
    return Proven(loaded.routes, worst, loaded.findings)


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


def _openvino(model: Inspected, settings: Settings) -> Loaded:
    if importlib.util.find_spec("openvino") is None:
        raise UnfitError("openvino is not installed; pip install openvino")
    converted = conversion.converted(model.folder, settings, trust_remote_code=model.may_run_code, name=model.spec.name)
    # Here, since it takes a quarter of a second, and since not every service needs it.
    from embedding_api.engine.backends import openvino_backend

    return openvino_backend.load(converted, precision=settings.precision)


def _torch(model: Inspected, settings: Settings) -> Loaded:
    # Here, since it takes seconds and torch must not be imported before the process is prepared.
    from embedding_api.engine.backends import torch_backend

    return torch_backend.load(
        model.folder,
        device=settings.device,
        precision=_torch_precision(settings),
        n_threads=max(1, cores.count() // settings.workers),
        trust_remote_code=model.may_run_code,
        allow_pickle=settings.allow_pickle,
    )


def _torch_precision(settings: Settings) -> str:
    """What torch computes in; it has no int8 here."""
    return "float32" if settings.precision == "int8" else settings.precision
