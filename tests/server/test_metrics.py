"""GET /metrics adds up all workers, including workers that have been replaced."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.conftest import MINILM, until
from tests.server.faulty import APP, SLOW

N_KILLS = 12


@pytest.fixture(scope="module")
def two(_launch):
    return _launch(WORKERS="2")


def test_all_workers_count_together(two):
    """Given requests on many connections, then a scrape from any worker counts all of them."""
    before = two.metric("texts_total", model=MINILM)
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda n: two.embed([f"text {n}", f"another {n}"]), range(40)))
    two.request("POST", "/v1/embeddings", "{")
    for _ in range(6):
        assert two.metric("texts_total", model=MINILM) == before + 80
    assert two.metric("http_requests_total", route="/v1/embeddings", status="200", model=MINILM) >= 40
    assert two.metric("requests_refused_total", reason="invalid_json") == 1
    assert two.metric("request_duration_seconds_count", stage="total") == two.metric(
        "http_requests_total", route="/v1/embeddings", status="200"
    )
    assert two.metric("batch_texts_sum") == two.metric("texts_total") - two.metric("texts_deduplicated_total")


def test_metrics_show_the_models_and_the_number_of_workers(two):
    labels = {"model": MINILM, "backend": "openvino", "precision": "float32", "dimensions": "384"}
    assert two.metric("model_info", **labels, max_input_tokens="256") == 1
    assert two.metric("build_info") == 1
    assert two.metric("workers") == 2
    assert two.metric("queue_limit_tokens") > 0
    assert two.metric("queue_texts") == two.metric("batches_in_progress") == 0
    # The one request is the scrape itself. The scrape before it may not have ended yet.
    until(lambda: two.metric("requests_in_progress") == 1)


def test_a_request_refused_before_the_application_is_counted(two):
    before = two.metric("http_requests_total", route="-", status="400")
    with socket.create_connection(("127.0.0.1", two.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/9.9\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400")
    assert two.metric("http_requests_total", route="-", status="400") == before + 1
    assert two.metric("requests_refused_total", reason="invalid_request") >= 1


def test_waiting_texts_and_running_batches_are_shown(launch):
    server = launch(APP, WORKERS="1")
    body = json.dumps({"model": MINILM, "input": [f"{SLOW} {'word ' * 240} {n}" for n in range(20)]})
    with ThreadPoolExecutor(1) as client:
        request = client.submit(server.request, "POST", "/v1/embeddings", body)
        n_texts = until(lambda: server.metric("queue_texts"), what="texts that wait")
        assert 0 < n_texts < 20
        assert server.metric("queue_tokens") > 200
        assert server.metric("batches_in_progress") == 1
        until(lambda: server.metric("requests_in_progress") == 2)
        server.kill()
        with pytest.raises(OSError):  # noqa: PT011 - the connection is reset or closed
            request.result()


@pytest.mark.fault("kill")
def test_numbers_outlive_their_workers(launch, observed):
    """Given workers that are killed in turn, then no count decreases."""
    server = launch(APP, WORKERS="2")
    seen = []
    for n in range(N_KILLS):
        server.embed([f"text {n}"])
        seen.append(server.metric("texts_total"))
        pids = {worker.pid for worker in server.workers}
        server.workers[n % 2].kill()
        until(lambda pids=pids: len(now := {one.pid for one in server.workers}) == 2 and now != pids, what="a new one")
        until(lambda: server.metric("workers") == 2, what="two workers")
    assert seen == [float(n) for n in range(1, N_KILLS + 1)]
    assert server.metric("worker_restarts_total") == N_KILLS
    until(lambda: server.metric("requests_in_progress") == 1)
    observed(f"after {N_KILLS} kills every request was still counted in `/metrics`")
