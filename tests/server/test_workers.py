"""The number of workers: every worker is counted and takes part in the exchange, no matter how it was started."""

import signal

import pytest

from tests.server.conftest import ROOT, until

APP = """
from embedding_api.app import create_app
from embedding_api.engine.workers.exchange import Exchange
from embedding_api.settings import load_settings
from tests.fakes import fake_engine, fake_model

settings = load_settings()
app = create_app(settings, fake_engine(fake_model(), exchange=Exchange(settings.max_workers)))
"""


@pytest.fixture
def start(launch, tmp_path):
    (tmp_path / "wsgi.py").write_text(APP)
    conf = ("-c", str(ROOT / "gunicorn.conf.py"))
    return lambda *arguments, **settings: launch(*conf, *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT), **settings)


def test_sigttin_starts_workers_as_long_as_there_is_room_for_them(start):
    server = start(WORKERS="1")
    for n_workers in (2, 3, 4):
        server.process.send_signal(signal.SIGTTIN)
        until(lambda n=n_workers: server.metric("workers") == n, what="one more worker")
    server.process.send_signal(signal.SIGTTIN)
    refused = "SIGTTIN changes nothing: there are 4 workers, and a service that was started with WORKERS=1 has room for"
    until(lambda: refused in server.log, what="the refusal")
    assert len(server.workers) == server.metric("workers") == server.metric("workers_wanted") == 4
    assert "compute" not in server.log


def test_workers_that_gunicorn_is_told_to_start_are_counted(start):
    server = start("-w", "14", WORKERS="1")
    until(lambda: server.metric("workers") == 14, what="all workers")
    assert "seats" not in server.log
    # Every worker's requests are in the shared counters.
    before = server.metric("http_requests_total", route="/health/live")
    for _ in range(60):
        assert server.request("GET", "/health/live")[0] == 200
    assert server.metric("http_requests_total", route="/health/live") == before + 60
