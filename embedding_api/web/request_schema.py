"""The base classes of request bodies and of their fields. Imports marshmallow."""

from collections.abc import Mapping
from typing import Any, NoReturn, cast

import marshmallow
from marshmallow import fields

from embedding_api.engine.models.registry import Registry
from embedding_api.errors import InvalidFieldError
from embedding_api.settings import Settings
from embedding_api.settings.docstrings import docstrings_of


def model_names(models: Registry) -> tuple[str, ...]:
    """Return every name and alias of the models, each once."""
    return tuple(dict.fromkeys(name for model in models.models for name in model.names))


class RequestSchema(marshmallow.Schema):
    """The body of a request. Unknown fields are ignored.

    Attributes:
        max_inputs: The most texts in one request.
        accepts_token_ids: True if `input` may hold token ids.
        docs: The docstring of each field, which is its description in the OpenAPI document.
        known: The names that a field may have, for each field that names something of this server.
    """

    def __init__(self, settings: Settings, models: Registry) -> None:
        self.max_inputs = settings.max_inputs
        self.accepts_token_ids = settings.token_ids == "model"  # noqa: S105 - tokens of texts, not a password
        prompts = dict.fromkeys(name for model in models.models for name in model.route.prompts)
        self.docs = docstrings_of(type(self))
        self.known = {"model": model_names(models), "prompt_name": tuple(prompts)}
        # Clients send many fields of other APIs.
        super().__init__(unknown=marshmallow.EXCLUDE)


class StrictField(fields.Field[Any]):
    """A field that converts nothing silently, and describes itself in JSON Schema.

    Args:
        synonyms: Words of other APIs, each with the value of this field that it stands for.
        unsupported: Words of other APIs for what this service cannot do, each with the message that refuses it.
        kwargs: As of marshmallow's fields. What is neither required nor has a default may be missing when loaded.
    """

    def __init__(self, *, synonyms: Mapping[str, Any] = {}, unsupported: Mapping[str, str] = {}, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._synonyms = synonyms
        self._unsupported = unsupported

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loaded value. null means absent, and a word of another API means what it stands for here."""
        if value is None:
            value = marshmallow.missing
        elif isinstance(value, str):
            if value in self._unsupported:
                self.refuse("invalid_value", self._unsupported[value])
            value = self._synonyms.get(value, value)
        return super().deserialize(value, *args, **kwargs)

    def refuse(self, code: str, rule: str, index: int | None = None) -> NoReturn:
        """Refuse the value of this field, or one item of it. marshmallow collects only errors of its own.

        Args:
            code: A code of InvalidFieldError.
            rule: The rest of the message, after the field's path.
            index: The index of the item at fault in the field's array.

        Raises:
            InvalidFieldError: Always. Fields are loaded in the order in which the class declares them.
        """
        path = str(self.name) if index is None else f"{self.name}[{index}]"
        raise InvalidFieldError(f"{path} {rule}", code=code, param=path)

    def make_error(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse a missing value. No other rule of marshmallow's own can be broken here."""
        self.refuse("missing_field", "is missing; it is required")

    def _bind_to_schema(self, field_name: str, parent: Any) -> None:
        """Add the JSON Schema of the values for apispec, with synonyms, and with null where null means absent."""
        super()._bind_to_schema(field_name, parent)
        accepted = self._accepted()
        others = dict.fromkeys(self._synonyms, "string") | ({} if self.required else {None: "null"})
        if others:
            accepted["type"] = list(dict.fromkeys([accepted["type"], *others.values()]))
            if "enum" in accepted:
                accepted["enum"] = [*accepted["enum"], *others]
        self.metadata = {"description": self._body.docs[field_name].replace("\n", " "), **accepted}

    def _accepted(self) -> dict[str, Any]:
        """Return the JSON Schema of its values without synonyms and null."""
        raise NotImplementedError

    @property
    def _body(self) -> RequestSchema:
        return cast("RequestSchema", self.root)
