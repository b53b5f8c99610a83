"""The kinds of fields that requests have. Each refuses a value with a code and a rule. Imports marshmallow."""

from typing import Any, cast

from embedding_api.web.json_body import type_name
from embedding_api.web.request_schema import StrictField

# How many characters of a value an error message repeats. No message repeats any of `input`.
_SHOWN = 100


class Texts(StrictField):
    """A string or an array of strings, loaded as a list of strings. Token ids are loaded as a list of lists."""

    def _accepted(self) -> dict[str, Any]:
        text = {"type": "string", "minLength": 1}
        token_ids = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
        several = {"type": "array", "minItems": 1, "maxItems": self._body.max_inputs}
        kinds = {"Text": text, "Texts": {**several, "items": text}}
        if self._body.accepts_token_ids:
            kinds |= {"TokenIds": token_ids, "TokenIdsOfTexts": {**several, "items": token_ids}}
        return {"anyOf": [{"title": title, **kind} for title, kind in kinds.items()]}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> list[str] | list[list[int]]:
        if isinstance(value, str):
            return [value] if value else self.refuse("empty_input", "must not be empty; send a text")
        if not isinstance(value, list):
            self.refuse("invalid_type", f"must be a string or an array of strings, not {type_name(value)}")
        if not value:
            self.refuse("empty_input", "is an empty array; send at least one text")
        first, accepts_token_ids = value[0], self._body.accepts_token_ids
        if not accepts_token_ids and type(first[0] if isinstance(first, list) and first else first) is int:
            # The engine refuses token ids, with the cure.
            return value
        if type(first) is int:
            # The token ids of one text.
            self._check_each(value, int, "a token id, as the first item is")
            return [value]
        max_inputs = self._body.max_inputs
        if len(value) > max_inputs:
            self.refuse("too_many_inputs", f"holds {len(value)} texts; send at most {max_inputs} in one request")
        are_ids = isinstance(first, list) and accepts_token_ids
        wanted, rule = (list, "an array of token ids, as the first item is") if are_ids else (str, "a string")
        self._check_each(value, wanted, rule)
        for index, text in enumerate(value):
            if not text:
                self.refuse("empty_input", "must not be empty; leave it out", index)
            if isinstance(text, list) and not all(type(id_) is int for id_ in text):
                self.refuse("invalid_type", "must be an array of token ids, which are whole numbers", index)
        return value

    def _check_each(self, items: list[Any], wanted: type, rule: str) -> None:
        """Refuse the first item that is not of the wanted type."""
        for index, item in enumerate(items):
            if type(item) is not wanted:
                self.refuse("invalid_type", f"must be {rule}, not {type_name(item)}", index)


class Word(StrictField):
    """A string: one of `words`, if there are any.

    Otherwise the JSON Schema lists the names that the server knows, if it knows all, and the engine checks them.
    """

    def __init__(self, *words: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._words = words

    def _accepted(self) -> dict[str, Any]:
        known = self._words or self._body.known.get(cast("str", self.name))
        return {"type": "string", "enum": list(known)} if known is not None else {"type": "string"}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        if not isinstance(value, str):
            self.refuse("invalid_type", f"must be a string, not {type_name(value)}")
        if self._words and value not in self._words:
            self.refuse("invalid_value", f"must be {' or '.join(self._words)}, not {value[:_SHOWN]!r}")
        return value


class Count(StrictField):
    """A whole number from 1 on. 4.0 is a whole number; true and "4" are not."""

    def _accepted(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": 1}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse("invalid_type", f"must be a whole number, not {type_name(value)}")
        if value != value // 1:
            self.refuse("invalid_type", f"must be a whole number, not {value}")
        if value < 1:
            self.refuse("invalid_value", f"must be 1 or more, not {value}")
        return int(value)


class Flag(StrictField):
    """true or false, and no value that only resembles them."""

    def _accepted(self) -> dict[str, Any]:
        return {"type": "boolean", "enum": [True, False]}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            self.refuse("invalid_type", f"must be true or false, not {type_name(value)}")
        return value
