"""Drives a service over HTTP, from connections that are kept open and send one request after the other."""

import http.client
import json
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

Request = list[str]


class Round(NamedTuple):
    """What it took to answer some requests.

    Attributes:
        elapsed_s: From the first request to the last answer.
        latencies_s: Of each request.
        n_tokens: That the model read, over all requests.
    """

    elapsed_s: float
    latencies_s: list[float]
    n_tokens: int


def over_http(url: str, model: str, requests: Sequence[Request], n_connections: int) -> Round:
    """Sends all requests from so many connections, the next from whichever is free.

    Bodies are written before the clock starts and answers are read by it but decoded after it, so that as little as
    can be of the client's own work is measured.

    Raises:
        RuntimeError: An answer was not 200 with a vector for each text.
    """
    bodies = iter([json.dumps({"model": model, "input": request}).encode() for request in requests])
    answers: list[tuple[float, int, bytes]] = []
    all_connected = threading.Barrier(n_connections + 1)
    address = urlsplit(url).netloc

    def send() -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.connect()
            all_connected.wait()
            for body in bodies:  # a list's iterator is safe to share between threads
                started = time.perf_counter()
                connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
                answers.append((time.perf_counter() - started, response.status, content))
        except OSError:
            all_connected.abort()
            raise
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(n_connections)]
    for thread in threads:
        thread.start()
    all_connected.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - started
    return Round(elapsed_s, [latency_s for latency_s, _, _ in answers], _n_tokens(requests, answers))


def _n_tokens(requests: Sequence[Request], answers: Sequence[tuple[float, int, bytes]]) -> int:
    """Tokens that the service says it read; refuses to count what it did not do."""
    if bad := [content for _, status, content in answers if status != 200]:
        raise RuntimeError(f"{len(bad)} of {len(requests)} requests failed, such as: {bad[0][:500]!r}")
    decoded = [json.loads(content) for _, _, content in answers]
    n_vectors, n_texts = sum(len(answer["data"]) for answer in decoded), sum(map(len, requests))
    if n_vectors != n_texts:
        raise RuntimeError(f"{n_texts} texts were sent and {n_vectors} vectors came back")
    return sum(answer["usage"]["total_tokens"] for answer in decoded)
