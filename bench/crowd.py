"""Clients of many kinds at once: some send good requests, some bad ones, some leave early, some flood the server.

Each kind is a generator that does one thing, and yields the number of seconds until it does the next.
"""

import contextlib
import http.client
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import orjson

from bench.contestants import PATH
from bench.drive import drive, post
from bench.site import KEY, MAX_BODY_BYTES, REFUSED, Site, Visit
from bench.texts import MIXED

_WRONG_KEY = "key of another service"

# Seconds that a client which sent half a request waits for the server's reaction.
_HALF_WAIT_S = 4.0

# Seconds from one flood to the next. Every other flood is larger.
PERIOD_S = 10

Rests = Iterator[float]


def run(site: Site, duration_s: float) -> None:
    """Run all clients for this long. All of them have left when this returns."""
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
        finally:  # also after Ctrl-C, so that the clients stop
            is_over.set()
        for client in attending:
            client.result()


def short(site: Site, chance: random.Random) -> Rests:
    """Send single short texts, one after another, on one connection."""
    with contextlib.closing(site.connection()) as connection:
        for encoding in itertools.cycle(("base64", "float")):
            site.embed("short", connection, site.choose(chance, ["short"]), encoding=encoding)
            yield 0.005


def short_once(site: Site, chance: random.Random) -> Rests:
    """Send each short text on a connection of its own."""
    while True:
        with contextlib.closing(site.connection()) as connection:
            site.embed("short once", connection, site.choose(chance, ["short"]))
        yield 0.01


def batch(site: Site, chance: random.Random) -> Rests:
    """Send 32 mixed texts, half of them new."""
    with contextlib.closing(site.connection()) as connection:
        for number, encoding in enumerate(itertools.cycle(("base64", "float"))):
            texts = site.choose(chance, MIXED)
            new = [f"{number} {chance.random()} {text.text}" for text in texts[16:]]
            site.embed("batch of 32", connection, texts[:16], encoding=encoding, new=new)
            yield 4


def bulk(site: Site, chance: random.Random) -> Rests:
    """Send 256 texts, most of them short, once in a period."""
    kinds = ("short",) * 224 + ("passage",) * 24 + ("long",) * 8
    with contextlib.closing(site.connection()) as connection:
        for encoding, rest_s in zip(itertools.cycle(("base64", "float")), _ticks(0.5), strict=False):
            yield rest_s
            site.embed("batch of 256", connection, site.choose(chance, kinds), encoding=encoding)


def endless(site: Site, chance: random.Random) -> Rests:
    """Send texts beyond the window. The response must mark them as truncated."""
    with contextlib.closing(site.connection()) as connection:
        for n_texts in itertools.cycle((1, 3)):
            texts = site.choose(chance, ["endless"] * n_texts)
            response, body = site.ask("endless", connection, site.body([text.text for text in texts]))
            if response.status == 200:
                items = site.check("endless", body, texts)
                is_counted = response.headers["X-Truncated-Inputs"] == str(n_texts)
                if not is_counted or not all(item.get("truncated") for item in items):
                    site.flaws["endless: truncated but not marked"] += 1
            yield 1


def mistaken(site: Site, chance: random.Random) -> Rests:
    """Send requests that must be refused, each followed by a good one on the same connection."""
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
            _, response_body = site.ask("mistaken", connection, body, path=path, key=key, expected=status)
            if "error" not in orjson.loads(response_body):
                site.flaws["mistaken: refused without the error body"] += 1
            site.embed("mistaken, then good", connection, site.choose(chance, ["short"]))
            yield 0.2


def leaving(site: Site, chance: random.Random) -> Rests:
    """Close the connection, in order or by a reset, before the response or in the middle of it."""
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
    """Send a part of a request, and wait a while for the server's reaction."""
    while True:
        whole = post(PATH, site.body([text.text for text in site.choose(chance, ["passage"])]), key=KEY)
        with socket.create_connection(site.address, timeout=_HALF_WAIT_S) as connection:
            started, received = time.monotonic(), b""
            connection.sendall(whole[: chance.randrange(1, len(whole))])
            with contextlib.suppress(TimeoutError, ConnectionError):
                received = connection.recv(1000)
        status = int(received.split(None, 2)[1]) if received else None
        site.note("half sent", started, status)
        if status not in (None, 408):
            site.flaws[f"half sent: {status}"] += 1
        yield 0.5


def looking(site: Site, chance: random.Random) -> Rests:
    """Ask for the other routes."""
    with contextlib.closing(site.connection()) as connection:
        for path in itertools.cycle(("/", "/health/live", "/health/ready", "/v1/models", f"/v1/models/{site.model}")):
            site.ask("looking", connection, method="GET", path=path)
            yield chance.uniform(0, 0.01)


def flood(site: Site, chance: random.Random) -> Rests:
    """Send enough requests at once to fill every thread, and the next time more texts than the queue holds."""
    for n_texts, rest_s in zip(itertools.cycle((1, 5)), _ticks(0.2), strict=False):
        yield rest_s
        texts = [site.choose(chance, ["short"] * n_texts) for _ in range(site.n_flood)]
        requests = [post(PATH, site.body([text.text for text in each]), key=KEY) for each in texts]
        for response in drive(site.address, requests, site.n_flood).responses:
            site.visits.append(Visit("flood", time.monotonic(), response.latency_s, response.status))
            if response.status == 200:
                site.check("flood", response.body, texts[response.number])
            elif response.status != REFUSED:
                site.flaws[f"flood: {response.status} instead of 200"] += 1


def _ticks(offset: float) -> Rests:
    """Yield the seconds until the next moment of a series, PERIOD_S apart, with an offset in periods."""
    started = time.monotonic() + offset * PERIOD_S
    while True:
        yield (started - time.monotonic()) % PERIOD_S


CLIENTS = (
    *(short, short, short, short_once, batch, bulk, endless, mistaken),
    *(leaving, leaving, half, half, looking, looking, flood),
)
