"""The models that are served, found by name, and the facts about each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from embedding_api.engine.backends import Backend, Route, Routes
from embedding_api.engine.backends.proof import Proof
from embedding_api.errors import ModelNotFoundError


@dataclass(frozen=True)
class Model:
    """A loaded model, and the facts that logs, metrics and clients get; those of its default route where routes differ.

    Attributes:
        name: The public name.
        names: All names that a request may use.
        owner: The organisation on the hub, or `local`.
        loaded_at: When the model was loaded, in seconds since 1970.
        routes: The way from texts to vectors, by input type.
        proof: The comparison with sentence-transformers, on the route that came out worst.
    """

    name: str
    names: tuple[str, ...]
    owner: str
    loaded_at: int
    routes: Routes
    proof: Proof

    @property
    def route(self) -> Route:
        """The route of texts without an input type, and of input types without a route of their own."""
        return self.routes[None]

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return self.route.backend.dim

    @property
    def window(self) -> int | None:
        """The most tokens that the model reads of a text; None for no limit."""
        return self.route.reader.window

    @property
    def backend(self) -> str:
        """The name of the backend, such as `openvino`."""
        return self.route.backend.name

    @property
    def precision(self) -> str:
        """The arithmetic of the backend, such as `float32`."""
        return self.route.backend.precision


class Registry:
    """The models by name.

    Args:
        models: The models in the configured order. If several have the same name, the first one gets it.

    Attributes:
        backends: Every backend of the models, with the name of its model.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self.backends: Mapping[Backend, str] = {
            route.backend: model.name for model in self.models for route in model.routes.values()
        }
        # Public names come before the other names of any model.
        self._by_name: dict[str, Model] = {model.name: model for model in self.models}
        for model in self.models:
            for name in model.names:
                self._by_name.setdefault(name, model)

    def find(self, name: str) -> Model | None:
        """Return the model with this name or alias, or None."""
        return self._by_name.get(name)

    def get(self, name: str) -> Model:
        """Return the model with this name or alias.

        Raises:
            ModelNotFoundError: No model has the name; the message lists the models.
        """
        model = self.find(name)
        if model is None:
            available = ", ".join(model.name for model in self.models)
            raise ModelNotFoundError(f"model {name[:100]!r} is not served here; available: {available}", param="model")
        return model
