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
    """The body of a request. null means absent, and unknown fields are ignored.

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

    @marshmallow.pre_load
    def _drop_nulls(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value is not None}


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
        # Not in the constructor: a schema binds a copy of the field, and only the copy has a name.
        self.pre_load = [self._translate]
        accepted = self._accepted()
        others = dict.fromkeys(self._synonyms, "string") | ({} if self.required else {None: "null"})
        if others:
            accepted["type"] = list(dict.fromkeys([accepted["type"], *others.values()]))
            if "enum" in accepted:
                accepted["enum"] = [*accepted["enum"], *others]
        self.metadata = {"description": self._body.docs[field_name].replace("\n", " "), **accepted}

    def _translate(self, value: Any) -> Any:
        """Return the value for a word of another API, and any other value unchanged."""
        if not isinstance(value, str):
            return value
        if value in self._unsupported:
            self.refuse("invalid_value", self._unsupported[value])
        return self._synonyms.get(value, value)

    def _accepted(self) -> dict[str, Any]:
        """Return the JSON Schema of its values without synonyms and null."""
        raise NotImplementedError

    @property
    def _body(self) -> RequestSchema:
        return cast("RequestSchema", self.root)
