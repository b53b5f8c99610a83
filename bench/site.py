"""The server as the clients of a soak see it: known texts to ask for, and a record of each visit and each flaw.

A flaw is a result that no client may see: the vector of another text, a lost connection, or a wrong status.
"""

import base64
import http.client
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import orjson

from bench.connection import Address
from bench.contestants import PATH

# Settings that the server under test needs.
KEY, MAX_BODY_BYTES = "soak", 200_000

# Status of a request that meets a full queue.
REFUSED = 429

# Two computations of one vector may round differently. The vectors of two texts are much farther apart.
_TOLERANCE = 1e-5


class Known(NamedTuple):
    """A text and its vector."""

    text: str
    vector: Sequence[float]


class Visit(NamedTuple):
    """A request and its outcome.

    Attributes:
        client: Kind of client.
        at_s: When it ended, in seconds on the monotonic clock.
        latency_s: From the request to the end of the response.
        status: HTTP status; None if the client left early, or the server rightly closed the connection.
    """

    client: str
    at_s: float
    latency_s: float
    status: int | None


class Site:
    """A server, the texts that clients know, and what clients saw.

    Args:
        address: Address of the server.
        model: Model that clients ask for.
        known: Texts by length: short, passage, long, and endless, which exceeds the model's window.
        n_flood: Number of connections in a flood.
    """

    def __init__(self, address: Address, model: str, known: dict[str, list[Known]], *, n_flood: int) -> None:
        self.address, self.model, self.known, self.n_flood = address, model, known, n_flood
        self.visits: list[Visit] = []
        self.flaws: Counter[str] = Counter()

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection, which opens with its first request."""
        return http.client.HTTPConnection(*self.address, timeout=60)

    def choose(self, chance: random.Random, kinds: Sequence[str]) -> list[Known]:
        """Return a random known text of each kind."""
        return [chance.choice(self.known[kind]) for kind in kinds]

    def body(self, texts: Sequence[str], encoding: str = "float") -> bytes:
        """Return the body of a request for embeddings."""
        return orjson.dumps({"model": self.model, "input": texts, "encoding_format": encoding})

    def note(self, client: str, started: float, status: int | None) -> None:
        """Record a visit that ends now."""
        now = time.monotonic()
        self.visits.append(Visit(client, now, now - started, status))

    def check(self, client: str, body: bytes, texts: Sequence[Known]) -> list[dict[str, object]]:
        """Record a flaw if the first vectors of a response are not those of the texts; return its items."""
        items = orjson.loads(body)["data"]
        vectors = [_vector(item["embedding"]) for item in items]
        expected = [text.vector for text in texts]
        if not np.allclose(vectors[: len(texts)], expected, rtol=0, atol=_TOLERANCE):
            self.flaws[f"{client}: wrong vectors"] += 1
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            self.flaws[f"{client}: not of unit length"] += 1
        return list(items)

    def ask(
        self,
        client: str,
        connection: http.client.HTTPConnection,
        body: bytes | None = None,
        *,
        method: str = "POST",
        path: str = PATH,
        key: str = KEY,
        expected: int = 200,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send one request, record the visit, and a flaw if the status is not as expected; return response and body."""
        started = time.monotonic()
        connection.request(method, path, body, {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        received = response.read()
        self.note(client, started, response.status)
        # A full queue refuses a request before anything looks at its body.
        if response.status == REFUSED and expected in (200, 400, 422):
            if not response.headers.get("Retry-After", "").isdecimal():
                self.flaws[f"{client}: 429 without Retry-After in seconds"] += 1
        elif response.status != expected:
            self.flaws[f"{client}: {response.status} instead of {expected}"] += 1
        return response, received

    def embed(
        self,
        client: str,
        connection: http.client.HTTPConnection,
        texts: Sequence[Known],
        *,
        encoding: str = "float",
        new: Sequence[str] = (),
    ) -> None:
        """Have known texts embedded and check their vectors; new texts, whose vectors are unknown, come after them."""
        body = self.body([*(text.text for text in texts), *new], encoding)
        response, received = self.ask(client, connection, body)
        if response.status == 200:
            self.check(client, received, texts)


def _vector(embedding: str | list[float]) -> Sequence[float]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return embedding
