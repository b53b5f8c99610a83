"""Measures what a precision costs in quality, by known-item retrieval.

The first sentence of a docstring is to find the rest of it. A precision's queries search its own passages. The
reference is the service in float32.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from bench.contestants import PRECISIONS, Contestant, Served
from bench.drive import drive
from bench.servers import ROOT
from bench.texts import PACKAGES, docstrings
from bench.workloads import SERVICE

# The texts of the calibration where CALIBRATION_TEXTS names no file.
CALIBRATION = ROOT / "embedding_api/engine/backends/calibration.txt"

# Lowest share of the neighbours that int8 is to keep.
INT8_NEIGHBOURS = 0.95

N_PAIRS, N_NEIGHBOURS = 2000, 10

# Characters of a query, and fewest characters of a passage. The window cuts longer passages.
_QUERY, _PASSAGE = (25, 200), 80
_FIRST_SENTENCE = re.compile(r"(.+?[a-z)]\.)\s+(?=[A-Z])")
_AT_ONCE, _N_CONNECTIONS = 32, 4

Vectors = np.ndarray


class Pairs(NamedTuple):
    """Queries and the passages that they are to find, position by position."""

    queries: list[str]
    passages: list[str]


@dataclasses.dataclass(frozen=True)
class Quality:
    """The quality of a precision.

    Attributes:
        n_pairs: Number of queries, and of passages.
        mrr: Mean of 1/rank of the passage that belongs to a query, 0 if it is not among the first ten.
        mrr_kept: That in relation to the reference's.
        neighbours_kept: Share of the reference's first ten passages of a query that are among the first ten.
    """

    contestant: str
    n_pairs: int
    mrr: float
    mrr_kept: float
    neighbours_kept: float


def pairs(n_most: int, seen: str = "") -> Pairs:
    """Return first sentences of docstrings, and the rest of each, spread evenly over all docstrings.

    Args:
        n_most: The most pairs.
        seen: All texts that calibration has seen.

    Raises:
        ValueError: Calibration has seen one of the texts.
    """
    unique = {passage: query for query, passage in dict(_all_pairs()).items() if query not in passage}
    step = max(1, len(unique) // n_most)
    chosen = [(query, passage) for passage, query in unique.items()][::step][:n_most]
    queries, texts = [query for query, _ in chosen], [passage for _, passage in chosen]
    if common := [text for text in queries + texts if text in seen]:
        raise ValueError(f"calibration has seen {len(common)} of the texts")
    return Pairs(queries, texts)


def measure(field: Sequence[Contestant], calibration: Path, n_pairs: int = N_PAIRS) -> list[Quality]:
    """Return the quality of each precision of the service; nothing without a service in float32.

    Args:
        field: All contestants.
        calibration: File with the texts of the calibration.
        n_pairs: Number of queries.
    """
    served = {each.name: each.variants[0] for each in field if each.name.startswith(SERVICE)}
    names = [name for name in (f"{SERVICE} {precision}" for precision in PRECISIONS) if name in served]
    if not names or names[0] != f"{SERVICE} {PRECISIONS[0]}":
        return []
    chosen = pairs(n_pairs, calibration.read_text(encoding="utf-8"))
    scores = {name: _scores(served[name], chosen) for name in names}
    return [compare(name, scores[name], scores[names[0]]) for name in names]


def compare(name: str, scores: Vectors, reference: Vectors) -> Quality:
    """Return the quality of scores (n_queries, n_passages) in relation to a reference of the same shape.

    The passage of a query has the query's position.
    """
    mrr, kept = mean_reciprocal_rank(scores), neighbours_kept(scores, reference)
    return Quality(name, len(scores), mrr, mrr / mean_reciprocal_rank(reference), kept)


def mean_reciprocal_rank(scores: Vectors) -> float:
    """Return MRR@10 of scores (n_queries, n_passages). Of equal scores, the passage that is asked for comes last."""
    own = np.diagonal(scores)
    ranks = (scores >= own[:, None]).sum(axis=1)
    return float(np.where(ranks <= N_NEIGHBOURS, 1 / ranks, 0).mean())


def neighbours_kept(scores: Vectors, reference: Vectors) -> float:
    """Return the share of the reference's first ten passages of a query that are among the first ten of the scores."""
    firsts, expected = (np.argsort(-each, axis=1, kind="stable")[:, :N_NEIGHBOURS] for each in (scores, reference))
    shares = [len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in zip(firsts, expected, strict=True)]
    return float(np.mean(shares))


def _scores(served: object, chosen: Pairs) -> Vectors:
    assert isinstance(served, Served)
    queries, passages = (_embedded(served, texts) for texts in chosen)
    return queries @ passages.T


def _embedded(served: Served, texts: Sequence[str]) -> Vectors:
    """Return the vectors of texts, float32, (n_texts, dim), each of length 1."""
    bodies = [served.request(list(texts[start : start + _AT_ONCE])) for start in range(0, len(texts), _AT_ONCE)]
    responses = sorted(drive(served.server.address, bodies, _N_CONNECTIONS).responses)
    if failed := [response for response in responses if response.status != 200]:
        raise RuntimeError(f"responded with {failed[0].status}: {failed[0].body[:300]!r}")
    data = [item["embedding"] for response in responses for item in orjson.loads(response.body)["data"]]
    vectors = np.array(data, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _all_pairs() -> Iterator[tuple[str, str]]:
    shortest, longest = _QUERY
    for package in ("", *PACKAGES):
        for docstring in docstrings(package):
            text = " ".join(docstring.split())
            first = _FIRST_SENTENCE.match(text)
            if first and shortest <= len(first[1]) <= longest and len(text) - first.end() >= _PASSAGE:
                yield first[1], text[first.end() :]
