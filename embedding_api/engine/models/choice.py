"""Load one model with the first backend and precision whose vectors equal sentence-transformers' own."""

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from embedding_api.engine.backends import Loaded, Route, UnfitError, proof
from embedding_api.engine.backends.proof import Proof
from embedding_api.engine.findings import UnservableError, in_a_line, lacks_threads
from embedding_api.engine.models import conversion, kind
from embedding_api.engine.models.alone import Threads
from embedding_api.engine.models.checksums import Checksums
from embedding_api.engine.models.inspection import Inspected, unservable
from embedding_api.engine.models.registry import Model
from embedding_api.errors import ModelLoadError, ScarcityError, StartError
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

# A function that loads a model with one backend, in the precision of the settings.
Loader = Callable[[Inspected, Settings], Loaded]


class Attempt(NamedTuple):
    """A backend, and the precision that it is asked for."""

    backend: str
    precision: str


class _ImpreciseError(UnfitError):
    """The vectors differ too much in a precision below float32. The backend may still serve the model in float32."""


def attempts(settings: Settings) -> list[Attempt]:
    """Return what to try, in this order, until one attempt succeeds."""
    # This service computes no int8 with torch.
    by_torch = Attempt("torch", "float32" if settings.precision == "int8" else settings.precision)
    by_openvino = Attempt("openvino", settings.precision)
    if settings.backend == "openvino":
        return [by_openvino]
    if settings.backend == "torch" or settings.device != "cpu":
        return [by_torch]
    return list(dict.fromkeys([by_openvino, Attempt("openvino", "float32"), by_torch]))


def load(
    model: Inspected, settings: Settings, checksums: Checksums, loaders: Mapping[str, Loader] | None = None
) -> Model:
    """Load and prove a model, and log what its operator should know.

    Args:
        model: The inspected model.
        settings: The settings of the service.
        checksums: Computes the checksums of the model's files.
        loaders: The loader of each backend, by the backend's name; the loaders of this package if None.

    Raises:
        ModelLoadError: Every attempt failed, or no backend can serve the model.
        ScarcityError: The system refuses a thread. This says nothing about the model.
    """
    loaders = loaders or {"openvino": partial(_openvino, checksums=checksums), "torch": _torch}
    try:
        loaded, worst = _first_success(model, settings, loaders)
        default = loaded.routes[None]
        assumed = kind.assumptions(model.source, model.modules, default.reader.window)
        findings = [*model.findings, *assumed, *loaded.findings]
    except UnservableError as error:
        raise unservable(model.spec, model.source, error) from error
    for finding in findings:
        logger.log(finding.level, "model %s: %s", model.spec.name, finding.message)
    if not proof.tells_apart(default.reference):
        raise ModelLoadError(
            f"model {model.spec.name} from {model.source} gives different texts the same vector; check that its "
            "tokenizer's files are there"
        )
    return Model(
        name=model.spec.name,
        names=model.spec.names,
        owner="local" if model.spec.is_folder else model.spec.source.partition("/")[0],
        loaded_at=int(time.time()),
        routes=loaded.routes,
        proof=worst,
    )


def _first_success(model: Inspected, settings: Settings, loaders: Mapping[str, Loader]) -> tuple[Loaded, Proof]:
    """Return the first attempt that succeeds: the loaded model, and the proof of its worst route."""
    failures: list[tuple[Attempt, UnfitError]] = []
    for attempt in attempts(settings):
        # Less precision may be all that is wrong. After any other failure the backend would fail in float32, too.
        if any(last.backend == attempt.backend and not isinstance(why, _ImpreciseError) for last, why in failures):
            continue
        try:
            loaded = loaders[attempt.backend](model, dataclasses.replace(settings, precision=attempt.precision))
            worst = max((_prove(route) for route in loaded.routes.values()), key=lambda result: result.share)
        except (UnservableError, StartError):
            raise
        except Exception as error:  # another backend may serve a model that breaks a library
            logger.debug("model %s cannot be served by %s", model.spec.name, attempt.backend, exc_info=True)
            if lacks_threads(error):
                raise ScarcityError(f"threads that model {model.spec.name} needs") from error
            failures.append((attempt, error if isinstance(error, UnfitError) else UnfitError(in_a_line(error))))
            continue
        if failures:
            _warn_of_fallback(model.spec.name, attempt, *failures[-1])
        return loaded, worst
    last, cause = failures[-1]
    cure = "; set BACKEND=auto" if last.backend == "openvino" else ""
    if isinstance(cause, _ImpreciseError):
        cure = "; set PRECISION to bfloat16 or float32" if last.precision == "float16" else "; set PRECISION=float32"
    raise ModelLoadError(
        f"model {model.spec.name} from {model.source} cannot be served by {last.backend}: {cause}{cure}"
    ) from cause


def _prove(route: Route) -> Proof:
    """Compare the vectors of a route with sentence-transformers' own; return the worst comparison.

    Raises:
        UnfitError: They differ too much.
    """
    precision, results = route.backend.precision, []
    failure = UnfitError if precision == "float32" else _ImpreciseError
    for vectors in route.probes():
        if not proof.are_finite(vectors):
            # float16 ends at 65504. The others end where float32 does.
            cause = ": numbers between its layers are too large for float16" if precision == "float16" else ""
            raise failure(f"its vectors in {precision} hold NaN or infinity{cause}")
        results.append(proof.prove(route.reference, vectors, precision))
    result = max(results, key=lambda each: each.share)
    if not result.holds:
        raise failure(f"its vectors in {precision} differ from sentence-transformers' own: {result}")
    return result


def _warn_of_fallback(name: str, success: Attempt, failure: Attempt, error: UnfitError) -> None:
    if success.backend == failure.backend:
        cause, setting = str(error), f"PRECISION={success.precision}"
    else:
        cause, setting = f"OpenVINO cannot serve it: {error}", f"BACKEND={success.backend}"
    message = "model %s is served by %s in %s (slower) because %s. Set %s to silence this warning."
    logger.warning(message, name, *success, cause, setting)


def _openvino(model: Inspected, settings: Settings, checksums: Checksums) -> Loaded:
    if importlib.util.find_spec("openvino") is None:
        raise UnfitError("openvino is not installed; pip install openvino")
    converted = conversion.converted(
        model.folder, settings, checksums, trust_remote_code=bool(model.code), model=model.spec.name
    )
    # Imported here because the import takes a quarter of a second, and not every service needs it.
    from embedding_api.engine.backends import openvino_backend

    return openvino_backend.load(converted, precision=settings.precision, n_threads=Threads.of(settings).n_alone)


def _torch(model: Inspected, settings: Settings) -> Loaded:
    # Imported here because the import takes seconds, and must come after memory.prepare().
    from embedding_api.engine.backends import torch_model

    return torch_model.load(
        model.folder,
        device=settings.device,
        precision=settings.precision,
        trust_remote_code=bool(model.code),
        allow_pickle=settings.allow_pickle,
    )
