"""The workloads: number and length of the texts in a request, number of connections, and contestants."""

import dataclasses
import json
from pathlib import Path

from tokenizers import Tokenizer

from bench.contestants import Texts
from bench.texts import MIXED, Shelf
from embedding_api.engine.backends.text import Reader

# First words of contestants. ONNX Runtime computes one text at a time, so that more connections mean nothing to it.
# Full packs are texts without clients. llama.cpp does not cut a text to the window, so that it gets no long ones.
SERVICE, ONNX_RUNTIME, PACKS, LEGACY = "service", "ONNX Runtime", "full packs", "infinity"
_ALONE = (SERVICE, ONNX_RUNTIME, "TEI", "llama.cpp")
_MANY = (SERVICE, PACKS, "TEI", "llama.cpp", LEGACY)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A workload.

    Attributes:
        name: Name in the tables.
        kinds: Kinds of the texts in one request.
        n_connections: Number of connections.
        of: First words of the contestants that it applies to.
        round_s: Approximate seconds of a round.
    """

    name: str
    kinds: tuple[str, ...]
    n_connections: int
    of: tuple[str, ...]
    round_s: float = 1.0

    @property
    def n_texts(self) -> int:
        """Number of texts in one request."""
        return len(self.kinds)

    def request(self, shelf: Shelf) -> Texts:
        """Return new texts."""
        return [shelf.text(kind) for kind in self.kinds]


def _short(n_connections: int, of: tuple[str, ...], round_s: float) -> Workload:
    plural = "s" if n_connections > 1 else ""
    return Workload(f"1 short text x {n_connections} connection{plural}", ("short",), n_connections, of, round_s)


ONE = _short(1, (*_ALONE, LEGACY, "Flask"), 1.0)
WINDOW = Workload("1 text of a full window x 1 connection", ("window",), 1, _ALONE, 1.5)
ONE_X_8 = _short(8, _ALONE, 1.0)
ONE_X_32 = _short(32, (*_MANY, "Flask"), 1.5)
ONE_X_128 = _short(128, _MANY, 1.5)
MIXED_X_4 = Workload("32 mixed texts x 4 connections", MIXED, 4, (SERVICE, LEGACY, "Flask"), 1.5)

ALL = [ONE, WINDOW, ONE_X_8, ONE_X_32, ONE_X_128, MIXED_X_4]


def window(folder: Path) -> int | None:
    """Return the window in tokens that sentence-transformers finds in a model's folder; None if there is none."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).exists():
            limit = json.loads((folder / name).read_text()).get(key)
            if limit and limit < 2**31:
                return int(limit)
    return None


class TokenCount:
    """Counts tokens as the service does, for all contestants, whatever a server reports itself.

    Args:
        folder: Folder of the model.
        n_most: Tokens after which `cut` ends a text; the model's window by default.
    """

    def __init__(self, folder: Path, n_most: int | None = None) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._reader = Reader(tokenizer, window=window(folder))
        tokenizer.no_padding()
        tokenizer.enable_truncation(n_most or window(folder) or 512)
        self._cutting = tokenizer

    def __call__(self, texts: Texts) -> int:
        """Return the number of tokens of texts, with special tokens, truncated to the window."""
        return sum(len(tokens.ids) for tokens in self._reader.read(texts).tokens)

    def cut(self, text: str) -> str:
        """Return the longest beginning of whole words of a text that does not exceed the window."""
        encoding = self._cutting.encode(text)
        if not encoding.overflowing:
            return text
        words = [word for word in encoding.word_ids if word is not None]
        # The last word may have lost tokens.
        _, end = encoding.word_to_chars(words[-1] - 1)
        return text[:end]
