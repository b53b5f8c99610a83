"""What a request may be, as far as a schema alone can judge it."""

from typing import Any, NoReturn, cast

import marshmallow
from marshmallow import fields

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
    """A field that says by which rule it refuses, with a code."""

    default_error_messages = {  # noqa: RUF012 - marshmallow declares it as an instance's
        "required": {"code": "missing_field", "rule": "is missing; it is required"}
    }


class Texts(StrictField):
    """A string, or a list of strings, as a list of strings. Token ids pass as a list of lists."""

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
        max_inputs = cast("EmbeddingRequest", self.root).max_inputs
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
    """A string."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        if not isinstance(value, str):
            _refuse("invalid_type", f"must be a string, not {_kind(value)}")
        return value


class Choice(Name):
    """One of a few words."""

    def __init__(self, *words: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._words = words

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        word = super()._deserialize(value, *args, **kwargs)
        if word not in self._words:
            _refuse("invalid_value", f"must be {' or '.join(self._words)}, not {word[:_SHOWN]!r}")
        return word


class Count(StrictField):
    """A whole number from 1 on; 4.0 is one, true and "4" are not."""

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

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            _refuse("invalid_type", f"must be true or false, not {_kind(value)}")
        return value


class EmbeddingRequest(marshmallow.Schema):
    """The body of POST /v1/embeddings. null means absent, and fields that are not named here are ignored.

    Args:
        max_inputs: The most texts that one request may hold.
    """

    class Meta:
        """Clients send many fields that are not for us."""

        unknown = marshmallow.EXCLUDE

    input = Texts(required=True)
    model = Name(required=True)
    encoding_format = Choice("float", "base64", load_default="float")
    dimensions = Count(load_default=None)
    user = Name(load_default=None)
    truncate = Flag(load_default=None)

    def __init__(self, *, max_inputs: int) -> None:
        self.max_inputs = max_inputs
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
