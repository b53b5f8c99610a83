"""The workloads: number and length of the texts in a request, number of connections, and contestants."""

import dataclasses
import json
from pathlib import Path

from tokenizers import Tokenizer

from bench.contestants import Texts
from bench.texts import MIXED, Shelf
from embedding_api.engine.backends.text import Reader

SERVED = ("service", "Flask", "infinity")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A workload.

    Attributes:
        name: Name in the tables.
        kinds: Kinds of the different texts in one request.
        n_connections: Number of connections.
        of: First words of the contestants that it applies to.
        n_copies: Number of times that each text stands in its request.
        round_s: Approximate seconds of a round.
        is_main: True if it has rows in the main table; other workloads are for the plot.
    """

    name: str
    kinds: tuple[str, ...]
    n_connections: int
    of: tuple[str, ...] = SERVED
    n_copies: int = 1
    round_s: float = 1.0
    is_main: bool = True

    @property
    def n_texts(self) -> int:
        """Number of texts in one request."""
        return len(self.kinds) * self.n_copies

    def request(self, shelf: Shelf) -> Texts:
        """Return new texts. Copies stand apart, as in a list of items of which many share a heading."""
        return [shelf.text(kind) for kind in self.kinds] * self.n_copies


def _short(n_connections: int, *, round_s: float = 1.0, is_main: bool = True) -> Workload:
    plural = "s" if n_connections > 1 else ""
    name = f"1 short text x {n_connections} connection{plural}"
    return Workload(name, ("short",), n_connections, round_s=round_s, is_main=is_main)


ONE, ONE_X_32 = _short(1, round_s=1.5), _short(32, round_s=1.5)
MIXED_X_1 = Workload("32 mixed texts x 1 connection", MIXED, 1, round_s=1.5)
MIXED_X_4 = Workload("32 mixed texts x 4 connections", MIXED, 4, round_s=1.5)
BULK_X_1 = Workload("256 mixed texts x 1 connection", MIXED * 8, 1, of=("service",), round_s=3.0)
BULK_X_4 = Workload("256 mixed texts x 4 connections", MIXED * 8, 4, of=("service", "bare"), round_s=3.0)
COPIES = Workload("32 texts, 8 of them different, x 4 connections", MIXED[:8], 4, of=("service",), n_copies=4)

# One short text on more and more connections, for the plot. The first and the last are in the main table as well.
SHORT = [ONE, *(_short(n, round_s=0.7, is_main=False) for n in (2, 4, 8, 16)), ONE_X_32]

ALL = [*SHORT, MIXED_X_1, MIXED_X_4, COPIES, BULK_X_1, BULK_X_4]


def window(folder: Path) -> int | None:
    """Return the window in tokens that sentence-transformers finds in a model's folder; None if there is none."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).exists():
            limit = json.loads((folder / name).read_text()).get(key)
            if limit and limit < 2**31:
                return int(limit)
    return None


class TokenCount:
    """Counts tokens as the service does, for all contestants, whatever a server reports itself."""

    def __init__(self, folder: Path) -> None:
        self._reader = Reader(Tokenizer.from_file(str(folder / "tokenizer.json")), window=window(folder))

    def __call__(self, texts: Texts) -> int:
        """Return the number of tokens of texts, with special tokens, truncated to the window."""
        return sum(len(tokens.ids) for tokens in self._reader.read(texts).tokens)
