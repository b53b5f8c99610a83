"""The models that are served: all loaded before the fork, found by name."""

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from embedding_api.engine.backends import Backend, Route, Routes, proof
from embedding_api.engine.backends.proof import Proof
from embedding_api.engine.models import choice, snapshots, sources
from embedding_api.engine.models.inspection import Inspected, inspected, require_trust_used
from embedding_api.errors import DeviceNotFoundError, ModelLoadError, ModelNotFoundError
from embedding_api.machine import memory, programs
from embedding_api.settings import Settings
from embedding_api.settings.model_spec import ModelSpec

logger = logging.getLogger(__name__)

_DEVICE_TESTS = {"cuda": "torch.cuda.is_available()", "mps": "torch.backends.mps.is_available()"}


@dataclass(frozen=True)
class Model:
    """A model that is served.

    Attributes:
        name: Its public name, which the list of models shows.
        names: Every name that a request may use.
        owner: The organisation on the hub, or `local`.
        loaded_at: Seconds since 1970.
        routes: By what a text is to a search.
        proof: How near it came to sentence-transformers when it was loaded, on the route nearest to its bound.
    """

    name: str
    names: tuple[str, ...]
    owner: str
    loaded_at: int
    routes: Routes
    proof: Proof

    @property
    def route(self) -> Route:
        """Of texts of which nothing is said, and of those that have none of their own."""
        return self.routes[None]


class Registry:
    """Models by name.

    Args:
        models: In the configured order. A name that several could answer to belongs to the first.

    Attributes:
        backends: All that compute, each with the name of the model that it computes.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self.backends: Mapping[Backend, str] = {
            route.backend: model.name for model in self.models for route in model.routes.values()
        }
        self._by_name: dict[str, Model] = {model.name: model for model in self.models}
        for model in self.models:
            for name in model.names:
                self._by_name.setdefault(name, model)

    def find(self, name: str) -> Model | None:
        """The model of this name or alias, or None."""
        return self._by_name.get(name)

    def get(self, name: str) -> Model:
        """The model of this name or alias.

        Raises:
            ModelNotFoundError: There is none; names those that there are.
        """
        model = self.find(name)
        if model is None:
            available = ", ".join(model.name for model in self.models)
            raise ModelNotFoundError(f"model {name[:100]!r} is not served here; available: {available}", param="model")
        return model


def load(settings: Settings) -> Registry:
    """Loads every model, in the process that will fork.

    Raises:
        DeviceNotFoundError: The machine does not have the device.
        ModelLoadError: A model cannot be had, loaded or proven.
    """
    memory.prepare()
    if settings.device != "cpu":
        _require_device(settings.device)
    fetch = partial(sources.fetch_code, settings=settings)
    with contextlib.ExitStack() as stack:
        # All of them before the first is loaded: one that is missing is told at once.
        located = [(spec, sources.locate(spec, settings)) for spec in settings.supported_models]
        models = [stack.enter_context(inspected(spec, source, settings, fetch)) for spec, source in located]
        require_trust_used(models, settings)
        registry = Registry([_load(model, settings) for model in models])
    memory.freeze()
    return registry


def _load(model: Inspected, settings: Settings) -> Model:
    started = time.monotonic()
    spec, folder = model.spec, model.source
    routes, proven, _ = choice.load(model, settings)
    if not proof.tells_apart(routes[None].reference):
        raise ModelLoadError(
            f"model {spec.name} from {folder} gives different texts the same vector; check that its tokenizer's "
            "files are there"
        )
    fields = {
        "model": spec.name,
        "source": spec.source,
        **_revision(spec, folder),
        "folder": str(folder),
        "backend": routes[None].backend.name,
        "precision": routes[None].backend.precision,
        "dimensions": routes[None].backend.dim,
        "window": routes[None].reader.window,
        "against_sentence_transformers": str(proven),
        "load_s": round(time.monotonic() - started, 1),
    }
    logger.info("model loaded", extra={"fields": fields})
    return Model(
        name=spec.name,
        names=spec.names,
        owner="local" if spec.is_folder else spec.source.partition("/")[0],
        loaded_at=int(time.time()),
        routes=routes,
        proof=proven,
    )


def _revision(spec: ModelSpec, folder: Path) -> dict[str, str]:
    """The commit, where the hub's cache says it, or else what was asked for, if that was said."""
    revision = folder.name if snapshots.is_snapshot(folder) else spec.revision
    return {} if revision is None else {"revision": revision}


def _require_device(device: str) -> None:
    """Asks for a device in a process of its own: asking initialises it, and it would not survive the fork."""
    program = f"import json, torch; print(json.dumps({{'is_there': bool({_DEVICE_TESTS[device]})}}))"
    if not programs.ask(["-c", program], environment=programs.environment(Settings.secret_names())).get("is_there"):
        raise DeviceNotFoundError(
            f"DEVICE={device}: torch finds no such device on this machine; set DEVICE=cpu, or install its driver and "
            "the build of torch for it"
        )
