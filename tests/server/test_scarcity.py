"""A limit on processes and threads: requests wait for the existing threads, and a start without any thread fails."""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.conftest import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root, to become a user of whom nothing else runs",
)
# Its model loads at once, and its batches need no threads.
APP = """
from embedding_api.app import create_app
from embedding_api.engine.workers.exchange import Exchange
from tests.fakes import fake_engine, fake_model

app = create_app(engine=fake_engine(fake_model(), exchange=Exchange(8)))
"""
# A user that no other process runs as, because the limit counts all processes and threads of a user.
USER = 100_000 + os.getpid()
# Its body is too long for a worker to answer it without a thread.
BODY = json.dumps({"model": "org/fake", "input": "a cat", "user": "x" * 1024})
CURE = "raise the limit on processes and threads (ulimit -u, pids of a container, TasksMax)"


@pytest.fixture
def limited(launch, tmp_path):
    """Return a function that starts the service as a user with a limit of threads, who may read and write all files.

    As in the real service, tokenizers start no threads.
    """
    (tmp_path / "wsgi.py").write_text(APP)
    tmp_path.chmod(0o777)
    files = "+dac_override,+dac_read_search"
    user = ("setpriv", f"--reuid={USER}", "--clear-groups", f"--inh-caps={files}", f"--ambient-caps={files}")
    conf = ("-c", str(ROOT / "gunicorn.conf.py"))

    def start(n_threads, **options):
        before = (*user, "prlimit", f"--nproc={n_threads}")
        return launch(
            *conf,
            before=before,
            cwd=tmp_path,
            PYTHONPATH=str(ROOT),
            WORKERS="2",
            TOKENIZERS_PARALLELISM="false",
            **options,
        )

    return start


@pytest.mark.fault("no threads")
def test_requests_wait_for_the_threads_that_there_are(limited, observed):
    server = limited(24, THREADS="64")
    with ThreadPoolExecutor(60) as clients:
        answers = [clients.submit(server.request, "POST", "/v1/embeddings", BODY) for _ in range(600)]
        statuses = {answer.result()[0] for answer in answers}
    assert statuses == {200}
    assert server.request("GET", "/health/ready")[0] == 200
    assert server.stop() == 0
    assert "no more can be had" in server.log
    for word in ("Traceback", "this is a bug"):
        assert word not in server.log
    observed("24 threads for two workers of 64 each: 600 requests of 60 clients answered 200; ends on SIGTERM")


@pytest.mark.fault("no threads")
@pytest.mark.parametrize(
    "n_threads", [2, 4, 6], ids=["no process for a worker", "no threads for an engine", "no threads for requests"]
)
def test_a_start_without_threads_or_processes_is_refused_with_the_cure(limited, n_threads, observed):
    server = limited(n_threads, wait=False)
    assert server.process.wait(60) == 1
    last = server.log.splitlines()[-1]
    assert "memementor-embedding-service cannot start: the system refuses" in last
    assert last.endswith(CURE)
    assert "Traceback" not in server.log
    observed(f"a start with {n_threads} threads: exit code 1, and the cure in the last line")
