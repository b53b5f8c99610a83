"""What is asked: how many texts of which length in a request, from how many connections at once, and of whom."""

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
    """What is asked.

    Attributes:
        name: As the tables show it.
        kinds: Of the texts in one request, each text another.
        n_connections: From how many connections at once.
        of: First words of the contestants that are asked.
        n_copies: How often each text stands in its request.
        round_s: How long a round shall take about.
        is_main: Whether it has rows in the main table; the others are for the plot.
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
        """Of one request."""
        return len(self.kinds) * self.n_copies

    def request(self, shelf: Shelf) -> Texts:
        """New texts; copies stand apart, as they do where many items share a heading."""
        return [shelf.take(kind) for kind in self.kinds] * self.n_copies


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

# The concurrency of one short text, for the plot; its ends have rows of their own.
SHORT = [ONE, *(_short(n, round_s=0.7, is_main=False) for n in (2, 4, 8, 16)), ONE_X_32]

ALL = [*SHORT, MIXED_X_1, MIXED_X_4, COPIES, BULK_X_1, BULK_X_4]


def window(folder: Path) -> int | None:
    """Tokens that a model reads, as sentence-transformers finds it in its folder."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).exists():
            limit = json.loads((folder / name).read_text()).get(key)
            if limit and limit < 2**31:
                return int(limit)
    return None


class TokenCount:
    """Counts tokens as the service reads them: the same count for all, whatever a server says of itself."""

    def __init__(self, folder: Path) -> None:
        self._reader = Reader(Tokenizer.from_file(str(folder / "tokenizer.json")), window=window(folder))

    def __call__(self, texts: Texts) -> int:
        """Tokens of texts, special ones included, cut to the window."""
        return sum(len(tokens.ids) for tokens in self._reader.read(texts).tokens)
