"""A model's folder as its own files describe it: the modules that it consists of, and where the files of each lie."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from embedding_api.engine.findings import UnservableError

_LIBRARY = "sentence_transformers."

# A Transformer, as sentence-transformers makes it of a folder without modules.json.
TRANSFORMER = f"{_LIBRARY}base.modules.transformer.Transformer"

# What sentence-transformers has called its notes on a Transformer, newest first; the first that is there counts.
_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


class Module(NamedTuple):
    """One module of a sentence-transformers model.

    Attributes:
        type: Its class, as modules.json writes it.
        folder: Where its files lie.
    """

    type: str
    folder: Path

    @property
    def name(self) -> str:
        """The name of its class, such as `Pooling`."""
        return self.type.rpartition(".")[2]

    @property
    def is_of_library(self) -> bool:
        """Whether its class is one of sentence-transformers' own."""
        return self.type.startswith(_LIBRARY)

    @property
    def is_transformer(self) -> bool:
        """Whether transformers loads it."""
        return self.is_of_library and self.name in ("Transformer", "MLMTransformer")

    @property
    def is_pooling(self) -> bool:
        """Whether it makes one vector of the vectors of a text's tokens."""
        return self.is_of_library and self.name == "Pooling"

    def config(self) -> dict[str, Any]:
        """Its config.json; empty if there is none."""
        return read(self.folder / "config.json")

    def transformer_config(self) -> dict[str, Any]:
        """What sentence-transformers itself notes of a Transformer, such as its window; empty if there is nothing."""
        return next(filter(None, (read(self.folder / name) for name in _TRANSFORMER_CONFIGS)), {})


def modules(folder: Path) -> list[Module]:
    """The modules of a model, those of its routes included, in the order of its files.

    Raises:
        UnservableError: A file that should tell them does not.
    """
    if not is_declared(folder):
        return [Module(TRANSFORMER, folder)]
    entries = _parse(folder / "modules.json")
    try:
        found = [Module(str(entry["type"]), folder / str(entry["path"])) for entry in entries]
    except (TypeError, KeyError) as error:
        raise UnservableError(
            "its modules.json is no list of modules, each with a type and a path; get the model's files again"
        ) from error
    return [each for module in found for each in (module, *_routes(module))]


def is_declared(folder: Path) -> bool:
    """Whether sentence-transformers' own file says which modules the model consists of."""
    return (folder / "modules.json").is_file()


def read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        UnservableError: It cannot be read, or holds something else.
    """
    if not file.is_file():
        return {}
    content = _parse(file)
    if not isinstance(content, dict):
        raise UnservableError(f"its {file.name} holds no JSON object; get the model's files again")
    return content


def _routes(module: Module) -> Iterator[Module]:
    """The modules that a Router leads to."""
    if module.is_of_library and module.name in ("Router", "Asym"):
        config = read(module.folder / "router_config.json") or module.config()
        types = config.get("types")
        for path, type_ in types.items() if isinstance(types, dict) else ():
            yield Module(str(type_), module.folder / path)


def _parse(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise UnservableError(f"its {file.name} is not a valid JSON file; get the model's files again") from error
    except OSError as error:
        raise UnservableError(f"its {file.name} cannot be read ({error.strerror}); let this user read it") from error
