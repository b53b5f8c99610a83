"""Faults inside the service: failing texts and batches, invalid vectors, batches that hang, and deadlines that pass."""

import contextlib
import http.client
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.server.conftest import MINILM, until
from tests.server.faulty import APP, HANGS, RAISES, SLOW, SPOILS


def body(texts, **fields):
    return json.dumps({"model": MINILM, "input": texts, **fields})


def ask(server, texts, headers=None):
    """Send texts; return status and JSON."""
    return server.request("POST", "/v1/embeddings", body(texts), headers)[:2]


def numbers(pattern, log):
    return [int(number) for number in re.findall(pattern, log)]


@pytest.fixture(scope="module")
def faulty(_launch):
    """A faulty server with one worker, so that texts that arrive during a batch share the next one."""
    return _launch(APP, WORKERS="1")


@pytest.mark.parametrize(
    "word",
    [
        pytest.param(RAISES, marks=pytest.mark.fault("raising text")),
        pytest.param(SPOILS, marks=pytest.mark.fault("not finite")),
    ],
)
def test_a_text_that_fails_costs_its_own_request_alone(faulty, observed, word):
    """Given requests that share batches with a failing text, then its request gets 500, and the others get vectors."""
    texts = [f"a quiet text about {n} things" for n in range(40)]
    alone = np.array(faulty.embed(texts))
    pids = [worker.pid for worker in faulty.workers]
    n_logged = len(faulty.log)
    with ThreadPoolExecutor(22) as clients:
        # The worker is busy, so that the next requests wait and share batches.
        busy = clients.submit(faulty.embed, [f"{SLOW} {'word ' * 240} {n}" for n in range(4)])
        until(faulty.is_busy, what="work")
        good = [clients.submit(faulty.embed, texts[n : n + 2]) for n in range(0, 20, 2)]
        bad = clients.submit(ask, faulty, ["a good text", f"the {word} within"])
        good += [clients.submit(faulty.embed, texts[n : n + 2]) for n in range(20, 40, 2)]
        status, answer = bad.result()
        for n, future in enumerate(good):
            np.testing.assert_allclose(future.result(), alone[2 * n : 2 * n + 2], atol=2e-6)
        busy.result()
    assert status == 500
    assert answer["error"]["code"] == "internal_error"
    assert word not in json.dumps(answer)
    assert [worker.pid for worker in faulty.workers] == pids
    assert word not in faulty.log
    n_together = max(numbers(r"a batch of (\d+) texts failed", faulty.log[n_logged:]), default=0)
    # The failing request itself has two texts. An invalid vector does not fail its batch.
    assert n_together > 2 if word == RAISES else n_together == 0
    shared = f" (a batch of {n_together} texts failed)" if n_together else ""
    observed(
        f"500 for the request with that text, 200 and the right vectors for 20 others beside it{shared}, "
        "no worker ended"
    )


@pytest.mark.fault("not finite")
def test_a_vector_that_is_none_is_told_in_the_log(launch, observed):
    server = launch(APP, WORKERS="1")
    assert ask(server, [f"a {SPOILS}"])[0] == 500
    assert "NonFiniteVectorError" in server.log
    assert len(server.embed("a cat")[0]) == 384
    assert server.metric("bad_vectors_total", model=MINILM) == 1
    assert server.metric("requests_refused_total", reason="internal_error") == 1
    observed("logged by name, and counted")


@pytest.mark.fault("deadline")
def test_a_request_over_its_deadline_is_504_and_leaves_the_queue(launch, observed):
    server = launch(APP, WORKERS="1", REQUEST_TIMEOUT_S="2")
    started = time.monotonic()
    with ThreadPoolExecutor(2) as clients:
        # Six seconds of work. The backend computes one text at a time.
        late = [clients.submit(ask, server, [f"{SLOW} {'word ' * 240} {c} {n}" for n in range(6)]) for c in "ab"]
        for future in late:
            status, answer = future.result()
            assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    taken_s = time.monotonic() - started
    assert taken_s >= 2
    dropped = r"(\d+) waiting texts dropped"
    n_dropped = sum(until(lambda: len(found := numbers(dropped, server.log)) == 2 and found, what="both lines"))
    assert n_dropped > 0
    assert server.metric("texts_dropped_total", reason="deadline") == n_dropped
    assert server.metric("requests_refused_total", reason="deadline_exceeded") == 2
    until(lambda: not server.is_busy(), what="the end of the running batch")
    assert len(server.embed("a cat")[0]) == 384
    observed(f"deadline of 2 s: 504 after {taken_s:.1f} s at most, {n_dropped} of 12 texts dropped")


@pytest.mark.fault("deadline")
@pytest.mark.parametrize(("told", "status"), [("0.3", 504), ("600", 200), ("soon", 200), ("-1", 200), ("nan", 200)])
def test_a_client_may_shorten_the_deadline(faulty, observed, told, status):
    assert ask(faulty, [f"{SLOW} {told}"], {"X-Stainless-Read-Timeout": told})[0] == status
    observed(f"`x-stainless-read-timeout: {told}`: {status}")


@pytest.mark.fault("client gone")
def test_the_texts_of_a_client_who_went_away_are_dropped(launch, observed):
    server = launch(APP, WORKERS="1")
    texts = [f"{SLOW} {'word ' * 240} {n}" for n in range(60)]
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        sent = body(texts).encode()
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
        until(server.is_busy, what="work")
    # The requests of `is_busy` have left as well.
    found = lambda: max(numbers(r"(\d+) waiting texts dropped", server.log), default=0)  # noqa: E731
    n_dropped = until(lambda: found() > 10 and found(), deadline_s=10, what="the line")
    started = time.monotonic()
    assert server.embed("a cat")
    # If the service computed the dropped texts, this would take thirty seconds.
    taken_s = time.monotonic() - started
    assert taken_s < 5
    assert n_dropped > 50
    n_counted = sum(numbers(r"(\d+) waiting texts dropped", server.log))
    assert server.metric("texts_dropped_total", reason="client_gone") == n_counted
    # A client that leaves while its only text is computed has no waiting text, so it counts here alone.
    assert server.metric("clients_gone_total") >= server.log.count("waiting texts dropped")
    observed(
        f"logged and counted: {n_dropped} of 60 texts, half a minute of work, dropped; "
        f"the next request answered in {taken_s:.1f} s"
    )


@pytest.mark.fault("hang")
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_worker_whose_batch_hangs_is_replaced_and_its_clients_are_answered(launch, observed, n_workers):
    """Given a batch of one text that hangs, then its request fails, and another worker computes the waiting texts."""
    server = launch(APP, WORKERS=str(n_workers), INFERENCE_TIMEOUT_S="4")
    pids = {worker.pid for worker in server.workers}

    def readiness():
        """Return the statuses of all workers: of several connections at once, each worker has one."""
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.ExitStack() as stack:
            connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=5) for _ in range(4)]
            for connection in connections:
                stack.callback(connection.close)
                connection.connect()
            for connection in connections:
                connection.request("GET", "/health/ready")
            return {connection.getresponse().status for connection in connections}
        return set()

    with ThreadPoolExecutor(11) as clients:
        hung = clients.submit(ask, server, [f"the {HANGS}"])
        # Readiness fails after half of the time. The batch is certainly running by then, so no other text can join it.
        until(lambda: 503 in readiness(), deadline_s=20, what="503 from readiness")
        others = [clients.submit(ask, server, [f"another text, number {n}"]) for n in range(10)]
        until(lambda: pids - {worker.pid for worker in server.workers}, deadline_s=20, what="the end of the worker")
        status, answer = hung.result()
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        statuses = [future.result()[0] for future in others]
    # Without another worker, the service answers waiting requests with 503, so that clients send them again.
    assert set(statuses) == {200} if n_workers == 2 else 503 in statuses and set(statuses) <= {200, 503}
    until(lambda: len(server.workers) == n_workers, what="a new worker")
    assert len(server.embed("a cat")[0]) == 384
    assert server.request("GET", "/health/ready")[0] == 200
    assert HANGS not in server.log
    told = ", ".join(f"{statuses.count(status)} got {status}" for status in sorted(set(statuses)))
    observed(
        f"{n_workers} workers: 504 for the hung text; of 10 requests beside it {told}; 503 from readiness, then 200"
    )
