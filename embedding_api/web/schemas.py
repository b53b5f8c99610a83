"""What a request may be, as far as a schema alone can judge it. Each field says so in JSON Schema, too."""

import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, cast

import marshmallow
from marshmallow import fields

from embedding_api.engine.backends import Task
from embedding_api.errors import InvalidFieldError

# How much of a value an error message repeats. Never of `input`.
_SHOWN = 100


def _refuse(code: str, rule: str, index: int | None = None) -> NoReturn:
    """Fails the field that is being loaded, or one item of it; `handle_error` makes an InvalidFieldError of it."""
    problem = {"code": code, "rule": rule}
    raise marshmallow.ValidationError(problem if index is None else {index: problem})


def _kind(value: Any) -> str:
    """The JSON type of a value, for messages."""
    kinds = {
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return kinds.get(type(value), "null")


class StrictField(fields.Field[Any]):
    """A field that says by which rule it refuses, with a code.

    Args:
        synonyms: Other APIs' words for values of this field, each with the value that it stands for.
        unsupported: Other APIs' words for what this service does not do, each with the rule that refuses it.
    """

    default_error_messages = {  # noqa: RUF012 - marshmallow declares it as an instance's
        "required": {"code": "missing_field", "rule": "is missing; it is required"}
    }

    def __init__(
        self,
        *,
        synonyms: Mapping[str, Any] = MappingProxyType({}),
        unsupported: Mapping[str, str] = MappingProxyType({}),
        **kwargs: Any,
    ) -> None:
        super().__init__(pre_load=self._translate, **kwargs)
        self._synonyms = synonyms
        self._unsupported = unsupported

    @property
    def json_schema(self) -> dict[str, Any]:
        """What it takes, synonyms included, and null where that means absent."""
        accepted = self._accepted()
        others = dict.fromkeys(self._synonyms, "string") | ({} if self.required else {None: "null"})
        if others:
            accepted["type"] = list(dict.fromkeys([accepted["type"], *others.values()]))
            if "enum" in accepted:
                accepted["enum"] = [*accepted["enum"], *others]
        return accepted

    def _translate(self, value: Any) -> Any:
        """The value that another API's word stands for; any other value as it is."""
        if not isinstance(value, str):
            return value
        if value in self._unsupported:
            _refuse("invalid_value", self._unsupported[value])
        return self._synonyms.get(value, value)

    def _accepted(self) -> dict[str, Any]:
        """What it takes but null, as JSON Schema."""
        raise NotImplementedError

    @property
    def _request(self) -> "EmbeddingRequest":
        return cast("EmbeddingRequest", self.root)


class Texts(StrictField):
    """A string, or a list of strings, as a list of strings. Token ids pass as a list of lists."""

    def _accepted(self) -> dict[str, Any]:
        def several(items: dict[str, Any], **rule: Any) -> dict[str, Any]:
            return {"type": "array", "minItems": 1, **rule, "items": items}

        text, most = {"type": "string", "minLength": 1}, {"maxItems": self._request.max_inputs}
        token_ids = several({"type": "integer", "minimum": 0})
        takes = [{"title": "Text", **text}, {"title": "Texts", **several(text, **most)}]
        if self._request.accepts_token_ids:
            takes += [
                {"title": "TokenIds", **token_ids},
                {"title": "TokenIdsOfTexts", **several(token_ids, **most)},
            ]
        return {"anyOf": takes}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> list[str] | list[list[int]]:
        if isinstance(value, str):
            return [value] if value else _refuse("empty_input", "must not be empty")
        if not isinstance(value, list):
            _refuse("invalid_type", f"must be a string or an array of strings, not {_kind(value)}")
        if not value:
            _refuse("empty_input", "must hold at least one text")
        if type(value[0]) is int:
            # One text, as token ids.
            _each(value, int, "a token id, as the first item is")
            return [value]
        max_inputs = self._request.max_inputs
        if len(value) > max_inputs:
            _refuse("too_many_inputs", f"holds {len(value)} texts; one request takes up to {max_inputs}, send several")
        if isinstance(value[0], list):
            _each(value, list, "an array of token ids, as the first item is")
        else:
            _each(value, str, "a string")
        for index, text in enumerate(value):
            if not text:
                _refuse("empty_input", "must not be empty; leave it out", index)
            if isinstance(text, list) and not all(type(id_) is int for id_ in text):
                _refuse("invalid_type", "must be an array of token ids, which are whole numbers", index)
        return value


def _each(items: list[Any], wanted: type, wish: str) -> None:
    """Refuses the first item that is not of the wanted type."""
    for index, item in enumerate(items):
        if type(item) is not wanted:
            _refuse("invalid_type", f"must be {wish}, not {_kind(item)}", index)


class Name(StrictField):
    """A string. Which ones there are may be told when the service starts, and is judged by the engine."""

    def _accepted(self) -> dict[str, Any]:
        known = self._request.known.get(cast("str", self.name))
        return {"type": "string"} if known is None else {"type": "string", "enum": list(known)}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        if not isinstance(value, str):
            _refuse("invalid_type", f"must be a string, not {_kind(value)}")
        return value


class Choice(Name):
    """One of a few words."""

    def __init__(self, *words: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._words = words

    def _accepted(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self._words)}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        word = super()._deserialize(value, *args, **kwargs)
        if word not in self._words:
            _refuse("invalid_value", f"must be {' or '.join(self._words)}, not {word[:_SHOWN]!r}")
        return word


class Count(StrictField):
    """A whole number from 1 on; 4.0 is one, true and "4" are not."""

    def _accepted(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": 1}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse("invalid_type", f"must be a whole number, not {_kind(value)}")
        if value != value // 1:
            _refuse("invalid_type", f"must be a whole number, not {value}")
        if value < 1:
            _refuse("invalid_value", f"must be 1 or more, not {value}")
        return int(value)


class Flag(StrictField):
    """true or false, nothing that looks like them."""

    def _accepted(self) -> dict[str, Any]:
        return {"type": "boolean", "enum": [True, False]}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            _refuse("invalid_type", f"must be true or false, not {_kind(value)}")
        return value


class EmbeddingRequest(marshmallow.Schema):
    """The body of POST /v1/embeddings. null means absent, and fields that are not named here are ignored.

    Args:
        max_inputs: The most texts that one request may hold.
        accepts_token_ids: Whether `input` may hold token ids.
        known: For each field that names something of this server, the names that there are.
    """

    class Meta:
        """Clients send many fields that are not for us."""

        unknown = marshmallow.EXCLUDE

    input = Texts(required=True, metadata={"description": "What to embed: one text, or several."})
    model = Name(required=True, metadata={"description": "Name or alias of a model that is served."})
    encoding_format = Choice(
        "float",
        "base64",
        load_default="float",
        metadata={
            "description": "How vectors are written: as numbers, or as base64 of little-endian float32, which is "
            "smaller and faster."
        },
    )
    dimensions = Count(
        load_default=None,
        metadata={
            "description": "Only so many leading components, brought back to length 1 if the model normalizes. At most "
            "the model's own number, which is the default."
        },
    )
    user = Name(load_default=None, metadata={"description": "Accepted, and not stored."})
    truncate = Flag(
        # Cohere and NVIDIA send capital letters, Elasticsearch's client for NVIDIA small ones.
        synonyms={"NONE": False, "none": False, "END": True, "end": True},
        unsupported=dict.fromkeys(
            ("START", "start"), "must be END or NONE, not START: a text is cut at its end, or refused"
        ),
        load_default=None,
        metadata={
            "description": "Whether a text over the model's window is cut to it, and told, or refused. END is another "
            "word for true, NONE for false. The server's setting TRUNCATE is the default."
        },
    )
    input_type = Choice(
        *typing.get_args(Task),
        # NVIDIA's word, and Cohere's.
        synonyms={"passage": "document", "search_query": "query", "search_document": "document"},
        load_default=None,
        metadata={
            "description": "What the texts are to a search. The model's own prompt or route for that is used, if "
            "there is one. search_query is another word for query, passage and search_document for document."
        },
    )
    prompt_name = Name(
        load_default=None,
        metadata={
            "description": "The one of the model's prompts that stands before each text, in the place of its default "
            "or of that for `input_type`. GET /v1/models tells their names."
        },
    )

    def __init__(
        self,
        *,
        max_inputs: int,
        accepts_token_ids: bool = False,
        known: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.max_inputs = max_inputs
        self.accepts_token_ids = accepts_token_ids
        self.known = known
        super().__init__()

    @marshmallow.pre_load
    def _drop_nulls(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value is not None}

    def handle_error(self, error: marshmallow.ValidationError, *_: Any, **__: Any) -> NoReturn:
        """Raises the first problem, in the order of the fields above.

        Raises:
            InvalidFieldError: With the path of the field at fault.
        """
        problems = error.messages_dict
        path = next(name for name in self.fields if name in problems)
        problem = problems[path]
        if "code" not in problem:
            index, problem = next(iter(problem.items()))
            path = f"{path}[{index}]"
        raise InvalidFieldError(f"{path} {problem['rule']}", code=problem["code"], param=path)
