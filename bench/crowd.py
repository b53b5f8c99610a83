"""Clients of many kinds at once: those who ask well, those who ask wrongly, those who leave, those who flood.

Each is a generator that does one thing, and yields for how many seconds it rests. What no client may see (a vector that
is not its text's, a connection that is lost, a status that the request does not deserve) is noted as a flaw.
"""

import base64
import contextlib
import http.client
import itertools
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import orjson

from bench.contestants import PATH
from bench.drive import Address, drive, post
from bench.texts import MIXED

# What the server must be told to take.
KEY, MAX_BODY_BYTES = "soak", 200_000
_WRONG_KEY = "key of another service"

# Two builds of one computation may round differently; the vectors of two texts are much farther apart.
_TOLERANCE = 1e-5

# How long one who sent half a request waits to be told so.
_HALF_WAIT_S = 4.0

# From one flood to the next; every other one is a larger one.
PERIOD_S = 10

# What a full queue answers, to whom it may happen.
_REFUSED = 429

Rests = Iterator[float]


class Known(NamedTuple):
    """A text and the vector that it must get."""

    text: str
    vector: Sequence[float]


class Visit(NamedTuple):
    """A request and what came of it.

    Attributes:
        client: Which kind of client.
        at_s: When it was over, on the monotonic clock.
        latency_s: From the request to the answer's end.
        status: Of HTTP; None if the client did not stay, or was hung up on as it deserved.
    """

    client: str
    at_s: float
    latency_s: float
    status: int | None


class Site:
    """Where clients go, and what they saw there.

    Args:
        address: Where the server listens.
        model: What they ask for.
        known: By length: short, passage, long, and endless, which is beyond the model's window.
        n_flood: How many connections a flood has.
    """

    def __init__(self, address: Address, model: str, known: dict[str, list[Known]], *, n_flood: int) -> None:
        self.address, self.model, self.known, self.n_flood = address, model, known, n_flood
        self.visits: list[Visit] = []
        self.flaws: Counter[str] = Counter()

    def connection(self) -> http.client.HTTPConnection:
        """A connection that opens with its first request."""
        return http.client.HTTPConnection(*self.address, timeout=60)

    def choose(self, chance: random.Random, kinds: Sequence[str]) -> list[Known]:
        """A known text of each kind."""
        return [chance.choice(self.known[kind]) for kind in kinds]

    def body(self, texts: Sequence[str], encoding: str = "float") -> bytes:
        """Of a request for embeddings."""
        return orjson.dumps({"model": self.model, "input": texts, "encoding_format": encoding})

    def note(self, client: str, started: float, status: int | None) -> None:
        """Writes a visit down that ends now."""
        now = time.monotonic()
        self.visits.append(Visit(client, now, now - started, status))

    def check(self, client: str, answer: bytes, texts: Sequence[Known]) -> list[dict[str, object]]:
        """Notes it if an answer does not have the vectors of texts, which come first in it; its items."""
        items = orjson.loads(answer)["data"]
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
        """The answer to one request; notes it if that is not as expected."""
        started = time.monotonic()
        connection.request(method, path, body, {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        answer = response.read()
        self.note(client, started, response.status)
        # A full queue refuses before it looks at what is asked.
        if response.status == _REFUSED and expected in (200, 400, 422):
            if not response.headers.get("Retry-After", "").isdecimal():
                self.flaws[f"{client}: 429 without Retry-After in seconds"] += 1
        elif response.status != expected:
            self.flaws[f"{client}: {response.status} in the place of {expected}"] += 1
        return response, answer

    def embed(
        self,
        client: str,
        connection: http.client.HTTPConnection,
        texts: Sequence[Known],
        *,
        encoding: str = "float",
        new: Sequence[str] = (),
    ) -> None:
        """Has texts embedded, and new ones that nobody knows the vectors of."""
        body = self.body([*(text.text for text in texts), *new], encoding)
        response, answer = self.ask(client, connection, body)
        if response.status == 200:
            self.check(client, answer, texts)


def run(site: Site, duration_s: float) -> None:
    """Lets all clients come again and again for so long; they are gone when it returns."""
    is_over = threading.Event()

    def attend(number: int, client: Callable[[Site, random.Random], Rests]) -> None:
        chance = random.Random(number)
        while not is_over.is_set():
            with contextlib.closing(client(site, chance)) as visits:
                try:
                    for rest_s in visits:
                        if is_over.wait(rest_s):
                            return
                except (OSError, http.client.HTTPException, RuntimeError) as error:
                    site.flaws[f"{client.__name__}: connection lost, {type(error).__name__}"] += 1
                    is_over.wait(1)

    with ThreadPoolExecutor(len(CLIENTS)) as clients:
        attending = [clients.submit(attend, number, client) for number, client in enumerate(CLIENTS)]
        try:
            is_over.wait(duration_s)
        finally:  # whoever interrupts this does not want to wait for ever
            is_over.set()
        for client in attending:
            client.result()


def short(site: Site, chance: random.Random) -> Rests:
    """A single short text after another, on a connection that is kept."""
    with contextlib.closing(site.connection()) as connection:
        for encoding in itertools.cycle(("base64", "float")):
            site.embed("short", connection, site.choose(chance, ["short"]), encoding=encoding)
            yield 0.005


def short_once(site: Site, chance: random.Random) -> Rests:
    """A connection for each short text."""
    while True:
        with contextlib.closing(site.connection()) as connection:
            site.embed("short once", connection, site.choose(chance, ["short"]))
        yield 0.01


def batch(site: Site, chance: random.Random) -> Rests:
    """32 mixed texts, half of them new."""
    with contextlib.closing(site.connection()) as connection:
        for number, encoding in enumerate(itertools.cycle(("base64", "float"))):
            texts = site.choose(chance, MIXED)
            new = [f"{number} {chance.random()} {text.text}" for text in texts[16:]]
            site.embed("batch of 32", connection, texts[:16], encoding=encoding, new=new)
            yield 4


def bulk(site: Site, chance: random.Random) -> Rests:
    """256 texts, most of them short, now and then."""
    kinds = ("short",) * 224 + ("passage",) * 24 + ("long",) * 8
    with contextlib.closing(site.connection()) as connection:
        for encoding, rest_s in zip(itertools.cycle(("base64", "float")), _ticks(0.5), strict=False):
            yield rest_s
            site.embed("batch of 256", connection, site.choose(chance, kinds), encoding=encoding)


def endless(site: Site, chance: random.Random) -> Rests:
    """Texts beyond the window, of which the answer must say so."""
    with contextlib.closing(site.connection()) as connection:
        for n_texts in itertools.cycle((1, 3)):
            texts = site.choose(chance, ["endless"] * n_texts)
            response, answer = site.ask("endless", connection, site.body([text.text for text in texts]))
            if response.status == 200:
                items = site.check("endless", answer, texts)
                is_told = response.headers["X-Truncated-Inputs"] == str(n_texts)
                if not is_told or not all(item.get("truncated") for item in items):
                    site.flaws["endless: truncated without a word"] += 1
            yield 1


def mistaken(site: Site, chance: random.Random) -> Rests:
    """Requests that must be refused, each followed by a good one on the same connection."""
    text = site.known["short"][0].text
    good = site.body([text])
    mistakes: list[tuple[int, str, bytes, str]] = [
        (400, PATH, b'{"input": ', KEY),
        (400, PATH, b"\xff\xfe", KEY),
        (400, PATH, good.replace(site.model.encode(), b"another-model"), KEY),
        (401, PATH, good, _WRONG_KEY),
        (404, "/v2/embeddings", good, KEY),
        (413, PATH, site.body([text, "x" * MAX_BODY_BYTES]), KEY),
        (422, PATH, site.body([]), KEY),
        (422, PATH, site.body([text, ""]), KEY),
    ]
    with contextlib.closing(site.connection()) as connection:
        for status, path, body, key in itertools.cycle(mistakes):
            _, answer = site.ask("mistaken", connection, body, path=path, key=key, expected=status)
            if "error" not in orjson.loads(answer):
                site.flaws["mistaken: refused without the envelope"] += 1
            site.embed("mistaken, then good", connection, site.choose(chance, ["short"]))
            yield 0.2


def leaving(site: Site, chance: random.Random) -> Rests:
    """Goes away before the answer, or in the middle of it; politely or not."""
    for is_polite in itertools.cycle((True, False)):
        texts = site.choose(chance, chance.choice((["short"], ["passage"])))
        with socket.create_connection(site.address, timeout=60) as connection:
            if not is_polite:  # close() then resets the connection
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            started = time.monotonic()
            connection.sendall(post(PATH, site.body([text.text for text in texts]), key=KEY))
            if chance.random() < 0.3:
                connection.recv(100)
            else:
                yield chance.uniform(0, 0.1)
        site.note("leaving", started, None)
        yield 0.2


def half(site: Site, chance: random.Random) -> Rests:
    """Sends part of a request, and waits a while for what the server says to that."""
    while True:
        whole = post(PATH, site.body([text.text for text in site.choose(chance, ["passage"])]), key=KEY)
        with socket.create_connection(site.address, timeout=_HALF_WAIT_S) as connection:
            started, answer = time.monotonic(), b""
            connection.sendall(whole[: chance.randrange(1, len(whole))])
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer = connection.recv(1000)
        status = int(answer.split(None, 2)[1]) if answer else None
        site.note("half sent", started, status)
        if status not in (None, 408):
            site.flaws[f"half sent: {status}"] += 1
        yield 0.5


def looking(site: Site, chance: random.Random) -> Rests:
    """What else there is to ask."""
    with contextlib.closing(site.connection()) as connection:
        for path in itertools.cycle(("/", "/health/live", "/health/ready", "/v1/models", f"/v1/models/{site.model}")):
            site.ask("looking", connection, method="GET", path=path)
            yield chance.uniform(0, 0.01)


def flood(site: Site, chance: random.Random) -> Rests:
    """As many at once as fill every thread, and the next time more than fit into the queue."""
    for n_texts, rest_s in zip(itertools.cycle((1, 5)), _ticks(0.2), strict=False):
        yield rest_s
        texts = [site.choose(chance, ["short"] * n_texts) for _ in range(site.n_flood)]
        requests = [post(PATH, site.body([text.text for text in each]), key=KEY) for each in texts]
        for answer in drive(site.address, requests, site.n_flood).answers:
            site.visits.append(Visit("flood", time.monotonic(), answer.latency_s, answer.status))
            if answer.status == 200:
                site.check("flood", answer.body, texts[answer.number])
            elif answer.status != _REFUSED:
                site.flaws[f"flood: {answer.status} in the place of 200"] += 1


def _ticks(offset: float) -> Rests:
    """How long until the next one of times that are PERIOD_S apart, with an offset in periods."""
    started = time.monotonic() + offset * PERIOD_S
    while True:
        yield (started - time.monotonic()) % PERIOD_S


CLIENTS = (
    *(short, short, short, short_once, batch, bulk, endless, mistaken),
    *(leaving, leaving, half, half, looking, looking, flood),
)


def _vector(embedding: str | list[float]) -> Sequence[float]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return embedding
