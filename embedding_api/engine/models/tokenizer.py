"""Check that the files of a model's tokenizers exist and are not cut off, without reading them whole."""

from collections.abc import Sequence
from pathlib import Path

from embedding_api.engine.models import files
from embedding_api.engine.models.files import Module

# Names of files that hold a vocabulary. Each kind of tokenizer has at least one of them.
_VOCABULARIES = ("tokenizer.json", "*vocab*", "*.model", "*.tiktoken", "*.codes", "*.spm", "merges*", "tekken.json")
# Small files beside it.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Bytes at each end of a file that are looked at.
_LOOK_BYTES = 64


def require_tokenizer(modules: Sequence[Module]) -> None:
    """Refuse a model without a readable tokenizer. The error of transformers would not name the file.

    Raises:
        UnservableError: A file of a tokenizer is missing or damaged.
        OSError: A file cannot be read.
    """
    for module in modules:
        if module.library_class not in ("Transformer", "StaticEmbedding"):
            continue
        vocabularies = [file for name in _VOCABULARIES for file in module.folder.glob(name)]
        if not vocabularies:
            raise files.damaged("it has no tokenizer: there is neither tokenizer.json nor a vocabulary of another kind")
        for file in vocabularies:
            _require_whole(file)
        for name in _SETTINGS:
            files.read(module.folder / name)


def _require_whole(file: Path) -> None:
    """Look at both ends of a file. A tokenizer.json can have many megabytes, which would delay the start."""
    try:
        files.require_fetched(file)
        with file.open("rb") as opened:
            begin = opened.read(_LOOK_BYTES).lstrip()
            opened.seek(max(0, opened.seek(0, 2) - _LOOK_BYTES))
            end = opened.read().rstrip()
    except FileNotFoundError as error:
        raise files.damaged(f"{file.name} is a link that leads nowhere") from error
    if not begin or (file.suffix == ".json" and not (begin.startswith(b"{") and end.endswith(b"}"))):
        raise files.damaged(f"{file.name} is cut off, or holds something else")
