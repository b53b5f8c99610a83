"""The service under Gunicorn: its start, many clients at once, its stop, and requests in wrong forms."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from embedding_api.machine import cores
from tests import models
from tests.server.conftest import MINILM, ROOT, environment, free_port, until
from tests.server.faulty import APP as FAULTY
from tests.server.faulty import SLOW, SLOW_S

BODY = json.dumps({"model": MINILM, "input": "a cat"})


def test_without_any_setting_it_embeds(server):
    (vector,) = server.embed("a cat")
    assert len(vector) == 384
    cat, kitten, law = (np.array(vector) for vector in server.embed(["a cat", "a kitten", "tax law"]))
    assert cat @ kitten > cat @ law
    assert server.request("GET", "/")[1]["available_models"] == [MINILM]


def test_it_says_where_it_is_and_the_curl_line_works(server):
    line = next(line for line in server.log.splitlines() if "try: " in line)
    assert server.url in line
    command = line.partition("try: ")[2]
    answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert len(json.loads(answer)["data"][0]["embedding"]) == 384


def test_the_log_tells_the_start_in_a_few_lines(server):
    start, _, _ = server.log.partition("ready at")
    said = [line.partition("] ")[2] for line in start.splitlines() if "] Booting" not in line]
    ours = [line for line in said if line.partition(" ")[0] in ("model", "topology", "limits", "no")]
    assert len(ours) == 4 <= len(said) <= 11
    assert sum(line.startswith("a text that waits alone ") for line in said) == 1
    model, topology, limits, who = ours
    assert model.startswith(f"model loaded model={MINILM} source={MINILM} folder=/")
    for word in ("backend=", "precision=float32", "dimensions=384", "window=256"):
        assert word in model
    assert 'against_sentence_transformers="largest difference' in model
    n_cores = cores.count()
    assert f" workers={n_cores + (n_cores > 1)} computing={n_cores} " in topology
    assert re.search(r"queued_tokens=\d+ tokens_per_s=\d+ held_bytes=\d+ body_bytes=33554432 .*request_s=60", limits)
    assert who == "no key is needed, and only this machine can ask"


def test_the_model_is_loaded_once_in_the_master(launch):
    """Given three workers, then the log has one load, and each worker's private memory is small."""
    server = launch(WORKERS="3")
    assert server.log.count("model loaded") == 1
    master = psutil.Process(server.process.pid)
    assert all(worker.memory_full_info().uss < master.memory_info().rss / 4 for worker in server.workers)


def test_many_connections_at_once_each_get_their_own_vectors(server):
    texts = [f"text number {n} " + "word " * (n % 40) for n in range(60)]
    alone = {text: server.embed(text)[0] for text in texts}
    with ThreadPoolExecutor(16) as clients:
        batches = [texts[n : n + n % 5 + 1] for n in range(60)]
        for batch, vectors in zip(batches, clients.map(server.embed, batches), strict=True):
            for text, vector in zip(batch, vectors, strict=True):
                np.testing.assert_allclose(vector, alone[text], atol=1e-5)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_worker_hangs_after_the_fork(launch, workers):
    """Given one worker, then inference in several threads ends. It would hang if the master had used such threads."""
    server = launch(WORKERS=workers)
    for _ in range(4):
        assert len(server.embed(["word " * 200] * 8)) == 8


FORK_PROGRAM = """
import os, signal, sys
if sys.argv[1] == "as we load":
    from embedding_api.settings import load_settings
    from embedding_api.engine.start import load_engine
    engine = load_engine(load_settings())
import torch
if sys.argv[1] == "carelessly":
    torch.set_num_threads(2)
    torch.ones(10**6).add_(1)
child = os.fork()
if not child:
    # The worst case: many threads, and in the thread that forked.
    torch.set_num_threads(2)
    torch.ones(10**6).add_(1)
    if sys.argv[1] == "as we load":
        model = engine.models.models[0]
        reading = model.route.reader.read(["word " * 200] * 8)
        model.route.backend.prepare(1)
        torch.set_num_threads(2)
        model.route.backend.compute([tokens.ids for tokens in reading.tokens], 0)
    os._exit(0)
signal.signal(signal.SIGALRM, lambda *_: (os.kill(child, signal.SIGKILL), None))
signal.alarm(int(sys.argv[2]))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="threads hang only where there are several cores")
@pytest.mark.parametrize(
    ("how", "deadline_s", "hangs"), [("carelessly", 5, True), ("as we load", 60, False)], ids=["careless", "ours"]
)
def test_a_fork_after_loading_can_use_several_threads(how, deadline_s, hangs):
    """Given a careless load, then the forked process hangs with this torch; given ours, then it computes."""
    done = subprocess.run(
        [sys.executable, "-c", FORK_PROGRAM, how, str(deadline_s)], cwd=ROOT, env=environment(), check=False
    )
    assert bool(done.returncode) is hangs


def start_slow_requests(stack, server, n_texts):
    """Return the connections of four requests that the server is computing. Each text takes SLOW_S."""
    connections = []
    for n in range(4):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connections.append(stack.enter_context(contextlib.closing(connection)))
        texts = [f"{SLOW} {'word ' * 240} {n} {number}" for number in range(n_texts)]
        connection.request("POST", "/v1/embeddings", json.dumps({"model": MINILM, "input": texts}))
    until(server.is_busy, what="work")
    return connections


@pytest.mark.fault("sigterm")
def test_sigterm_lets_running_requests_finish(launch, observed):
    server = launch(FAULTY, WORKERS="1")
    with contextlib.ExitStack() as stack:
        connections = start_slow_requests(stack, server, 3)
        server.process.terminate()
        answers = [connection.getresponse() for connection in connections]
        assert [answer.status for answer in answers] == [200] * 4
        assert [len(json.loads(answer.read())["data"]) for answer in answers] == [3] * 4
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log
    observed(f"4 running requests, {12 * SLOW_S:.0f} s of work, were answered; exit code 0")


@pytest.mark.fault("sigterm")
def test_sigterm_under_load_leaves_no_request_without_an_answer(launch, observed):
    """Given clients that keep sending, when SIGTERM comes, then each gets 200, or 503 and a closed connection."""
    server = launch(WORKERS="2", DRAIN_S="2", GRACEFUL_TIMEOUT_S="20")
    answers = []

    def keep_asking(number):
        """Send requests until the server refuses connections; return that time."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(connection):
            while True:
                # The server never accepted a connection that closes before its first answer.
                is_new = True
                try:
                    connection.connect()
                    while connection.sock is not None:
                        text = f"{number} {len(answers)} word"
                        connection.request("POST", "/v1/embeddings", json.dumps({"model": MINILM, "input": text}))
                        response = connection.getresponse()
                        response.read()
                        answers.append((response.status, response.headers["Connection"], time.monotonic()))
                        is_new = False
                        # The pause leaves processor time to the server.
                        time.sleep(0.02)
                except ConnectionError:
                    assert is_new, "a connection was lost"
                    return time.monotonic()

    with ThreadPoolExecutor(9) as clients:
        # Each takes seconds. They are certainly running after 30 short requests.
        long = [
            clients.submit(server.embed, [f"{n} {number} " + "word " * 240 for number in range(20)]) for n in range(3)
        ]
        asking = [clients.submit(keep_asking, number) for number in range(6)]
        until(lambda: len(answers) > 30, what="load")
        told = time.monotonic()
        server.process.terminate()
        assert [len(request.result()) for request in long] == [20] * 3
        assert all(future.result() - told >= 2 for future in asking), "connections were refused before the drain's end"
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.log
    assert {status for status, _, came_s in answers if came_s < told} == {200}
    assert {(status, kept) for status, kept, _ in answers if status != 200} == {(503, "close")}
    statuses = [status for status, *_ in answers]
    observed(
        f"DRAIN_S=2, 6 kept-alive clients and 3 requests of 20 long texts: {statuses.count(200) + 3} got 200, "
        f"{statuses.count(503)} got 503 and `Connection: close`, none nothing; exit code 0"
    )


@pytest.mark.fault("sigterm")
def test_what_is_not_done_in_the_grace_time_is_told_and_the_exit_is_on_time(launch, observed):
    server = launch(FAULTY, WORKERS="1", GRACEFUL_TIMEOUT_S="1", MAX_QUEUED_TOKENS="1000000")
    with contextlib.ExitStack() as stack:
        connections = start_slow_requests(stack, server, 10)
        server.process.terminate()
        told = time.monotonic()
        assert server.process.wait(20) == 0
        elapsed_s = time.monotonic() - told
        statuses = set()
        for connection in connections:
            with contextlib.suppress(OSError, http.client.HTTPException):
                statuses.add(connection.getresponse().status)
    assert statuses <= {503}
    # Much less than the 20 s that the work takes.
    assert elapsed_s < 6
    assert "Traceback" not in server.log
    observed(f"4 requests that take longer than GRACEFUL_TIMEOUT_S=1: cut off, exit code 0 after {elapsed_s:.1f} s")


@pytest.mark.fault("kill")
def test_a_killed_worker_is_replaced_and_the_other_goes_on(launch, observed):
    server = launch(WORKERS="2")
    first = {worker.pid for worker in server.workers}
    server.workers[0].kill()
    until(lambda: len({worker.pid for worker in server.workers} - first) == 1, what="a new worker")
    for _ in range(20):
        assert len(server.embed("still here")) == 1
    assert server.log.count("model loaded") == 1
    observed("a new worker in its place, without loading the model again; 20 requests answered")


@pytest.mark.fault("sighup")
def test_sighup_renews_workers_and_keeps_the_port(launch, observed):
    server = launch(WORKERS="1")
    first = server.workers[0].pid
    server.process.send_signal(signal.SIGHUP)
    until(lambda: [worker.pid for worker in server.workers] not in ([], [first]) and len(server.workers) == 1)
    assert len(server.embed("again")) == 1
    observed("a lone worker renewed, the port kept")


def test_keys_are_asked_for_and_logged_nowhere(launch):
    server = launch(API_KEY_SECRET="key-one,key-two", LOG_LEVEL="DEBUG", LOG_FORMAT="json")
    post = lambda **headers: server.request("POST", "/v1/embeddings", BODY, headers)[0]  # noqa: E731
    assert post() == 401
    assert post(Authorization="Bearer wrong-key") == 401
    assert post(Authorization="Bearer key-one") == post(Authorization="bearer key-two") == 200
    assert server.request("GET", "/health/ready")[0] == 200
    for secret in ("key-one", "key-two", "wrong-key", "a cat"):
        assert secret not in server.log
    for line in server.log.splitlines():
        assert {"time", "level", "logger", "message"} <= set(json.loads(line))


def test_an_open_address_is_warned_about_whoever_named_it(launch, tmp_path):
    """The server runs in its own network namespace, because tests listen on loopback only."""
    alone = ["unshare", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be had here")
    port = free_port()
    bound = ["--bind", f"unix:{tmp_path}/socket", "--bind", f"0.0.0.0:{port}", "wsgi:app"]
    server = launch(*bound, wait=False, before=alone)
    until(lambda: "ready at" in server.log, what="ready")
    said = (
        f"anyone who reaches 0.0.0.0:{port} can use this service: set API_KEY_SECRET, or set Gunicorn's -b to 127.0.0.1"
    )
    assert any(" WARNING [" in line and said in line for line in server.log.splitlines())
    assert "only this machine" not in server.log


def test_more_connections_than_threads_are_all_answered(launch):
    server = launch(WORKERS="1", THREADS="4")
    barrier = threading.Barrier(24)

    def ask(n):
        barrier.wait(30)
        return server.embed(f"number {n}")

    with ThreadPoolExecutor(24) as clients:
        assert all(len(vectors) == 1 for vectors in clients.map(ask, range(24)))


def test_two_models_and_an_alias_are_served_by_name(launch, tmp_path):
    tiny = models.save(models.bert_dense, tmp_path)
    server = launch(SUPPORTED_MODELS=f"tiny={tiny},text-embedding-3-small={MINILM}")
    assert len(server.embed("a", model="tiny")[0]) == 16
    assert len(server.embed("a", model=MINILM)[0]) == len(server.embed("a", model="text-embedding-3-small")[0]) == 384
    assert server.request("GET", "/")[1]["available_models"] == ["tiny", "text-embedding-3-small"]
    assert server.request("POST", "/v1/embeddings", BODY.replace(MINILM, str(tiny)))[0] == 400


def test_development_mode_serves_tells_errors_and_restarts_when_code_changes(launch, tmp_path):
    shutil.copytree(ROOT / "embedding_api", tmp_path / "embedding_api", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "wsgi.py", tmp_path)
    port = str(free_port())
    server = launch(module="embedding_api.web.development", cwd=tmp_path, PORT=port)
    assert len(server.embed("a")[0]) == 384
    # Nothing marks the end of the body here. The service must refuse the request without waiting for more bytes.
    assert server.request("GET", "/nope", timeout=10)[0] == 404
    assert server.request("POST", "/v1/embeddings", "{", timeout=10)[0] == 400
    assert server.request("POST", "/v1/embeddings", timeout=10)[0] == 400
    init = tmp_path / "embedding_api" / "__init__.py"
    init.write_text(init.read_text().replace("__version__ = ", '__version__ = "9.9" or '))

    def restarted():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return server.request("GET", "/")[1]["version"] == "9.9"

    until(restarted, deadline_s=90, what="the restart")
