"""More work than the queue takes: refused at once and told when to come again, while what was accepted is answered."""

import http.client
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.server.conftest import MINILM, until

N_QUEUED_TOKENS = 2000


def body(texts):
    return json.dumps({"model": MINILM, "input": texts})


class Load:
    """Clients that send the same again and again, each on its connection, and take note of what they get."""

    def __init__(self, server, n_clients, texts):
        self.server, self.texts = server, texts
        self.answers = []
        self._stop = threading.Event()
        self._clients = ThreadPoolExecutor(n_clients)
        self._running = [self._clients.submit(self._run, number) for number in range(n_clients)]

    def _run(self, number):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        n_sent = 0
        while not self._stop.is_set():
            n_sent += 1
            # New ones each time: equal texts that wait are computed once.
            sent = body([f"{text} {number} {n_sent} {n}" for n, text in enumerate(self.texts)])
            started = time.monotonic()
            connection.request("POST", "/v1/embeddings", sent)
            response = connection.getresponse()
            answer = json.loads(response.read())
            self.answers.append((response.status, time.monotonic() - started, answer, response.headers))
            if response.status == 429:
                # Sooner than it was told, so that the overload lasts.
                self._stop.wait(0.2)
        connection.close()

    def statuses(self):
        return [status for status, *_ in list(self.answers)]

    def stop(self):
        self._stop.set()
        for future in self._running:
            future.result()
        self._clients.shutdown()


def refused_s(server):
    """Seconds until a client is refused, in a process of its own: hundreds of threads here wait for each other."""
    wanted = [
        "curl",
        "--silent",
        "--output",
        "-",
        "--write-out",
        "\n%{http_code} %{time_total}",
        "--data",
        body(["one more"]),
    ]
    while True:
        told = subprocess.run(
            [*wanted, f"{server.url}/v1/embeddings"], capture_output=True, text=True, check=True
        ).stdout
        status, taken_s = told.splitlines()[-1].split()
        if status == "429":
            return float(taken_s)


def private_mb(server):
    return [worker.memory_full_info().uss / 1e6 for worker in server.workers]


@pytest.mark.fault("overload")
@pytest.mark.parametrize(("n_clients", "texts"), [(300, ["one short text"]), (24, ["one of many texts"] * 256)])
def test_overload_is_refused_at_once_and_what_is_accepted_is_answered(launch, observed, n_clients, texts):
    server = launch(WORKERS="2", MAX_QUEUED_TOKENS=str(N_QUEUED_TOKENS))
    quiet = np.array(server.embed(["a text that is known", *(f"warm {n}" for n in range(255))])[0])
    before_mb = private_mb(server)
    load = Load(server, n_clients, texts)
    try:
        until(lambda: load.statuses().count(429) > 100 and load.statuses().count(200) > 5, what="overload")
        during_mb = private_mb(server)
        until_refused_s = np.median([refused_s(server) for _ in range(9)])
        health = server.request("GET", "/health/live")[0], server.request("GET", "/health/ready")[0]
    finally:
        load.stop()
    ended = time.monotonic()
    np.testing.assert_allclose(server.embed("a text that is known")[0], quiet, atol=2e-6)
    recovered_s = time.monotonic() - ended

    assert set(load.statuses()) == {200, 429}
    assert health == (200, 200)
    n_refused = load.statuses().count(429)
    accepted_s = [taken_s for status, taken_s, *_ in load.answers if status == 200]
    for status, _, answer, headers in load.answers:
        if status == 429:
            assert answer["error"]["type"] == "rate_limit_error"
            assert answer["error"]["code"] == "server_overloaded"
            assert int(headers["Retry-After"]) >= 1
        else:
            assert len(answer["data"]) == len(texts)
    # At once: not after the wait of those that were accepted.
    assert until_refused_s < 0.5
    assert recovered_s < 2
    grown_mb = max(np.subtract(during_mb, before_mb))
    assert grown_mb < 100
    assert len(server.workers) == 2
    observed(
        f"{n_clients} clients with {len(texts)} texts: {len(accepted_s)} answered in {np.median(accepted_s):.2f} s "
        f"(median), {n_refused} refused in {until_refused_s:.2f} s; {grown_mb:.0f} MB more a worker; "
        f"a request {recovered_s:.2f} s after the end"
    )


@pytest.mark.fault("overload")
def test_a_request_larger_than_the_queue_is_answered_by_an_idle_server(launch, observed):
    server = launch(WORKERS="2", MAX_QUEUED_TOKENS="100")
    assert len(server.embed([f"one of five hundred texts {n}" for n in range(500)])) == 500
    observed("a request of 4,000 tokens is answered by an idle server whose queue takes 100")
