"""Settings that a reload cannot change. tests/server/test_reload.py has the rest, with a real Gunicorn."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedding_api.server import reloading
from embedding_api.settings import load_settings

READ = {
    "worker_class_str": "ours", "workers": 1, "reuse_port": False, "address": [("127.0.0.1", 80)],
    "graceful_timeout": 30, "timeout": 45, "env": {},
}  # fmt: skip


class Config(SimpleNamespace):
    """The configuration that Gunicorn has read."""

    def set(self, name, value):
        setattr(self, name, value)


def reload(monkeypatch, before, after):
    """Return Gunicorn's configuration after SIGHUP. The service started with `before` and one worker."""
    monkeypatch.setenv("WORKERS", "1")
    before, after = (Config(**READ | {"chdir": Path.cwd()} | told) for told in (before, after))
    app = SimpleNamespace(cfg=before)
    app.reload = lambda: setattr(app, "cfg", after)
    arbiter = SimpleNamespace(app=app)
    # Gunicorn's own method begins with this call.
    arbiter.handle_hup = lambda: app.reload()
    reloading.guard(arbiter, load_settings())
    arbiter.handle_hup()
    assert app.cfg in (before, after)
    return app.cfg is after


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"worker_class_str": "sync"}, "gunicorn.conf.py is not where it was"),
        ({}, {"workers": 5}, "WORKERS=5 is more than the 4 for which"),
        ({}, {"graceful_timeout": 5}, "GRACEFUL_TIMEOUT_S=5 is no more than the DRAIN_S=5"),
        ({"reuse_port": True}, {"reuse_port": True, "address": [("127.0.0.1", 81)]}, "with --reuse-port"),
    ],
)
def test_what_the_running_service_cannot_take_changes_nothing(monkeypatch, caplog, before, after, said):
    assert not reload(monkeypatch, before, after)
    (line,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert said in line.getMessage()


@pytest.mark.parametrize(
    "told",
    [{}, {"workers": 16}, {"graceful_timeout": 1}, {"reuse_port": True}],
    ids=["nothing", "gunicorn -w 16", "gunicorn --graceful-timeout 1", "gunicorn --reuse-port"],
)
def test_what_it_was_started_with_it_takes_again(monkeypatch, caplog, told):
    assert reload(monkeypatch, told, told)
    assert not caplog.records


def test_a_mistake_changes_nothing_though_the_folder_of_the_start_is_gone(monkeypatch, caplog):
    assert not reload(monkeypatch, {"chdir": "/no/such/folder"}, {"workers": 99})
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_the_watchdogs_time_stays_that_of_the_workers(monkeypatch):
    told = {}
    monkeypatch.setattr(Config, "set", lambda self, name, value: told.update({name: value}))
    assert reload(monkeypatch, {"timeout": 45}, {"timeout": 20})
    assert told == {"timeout": 45}


def test_the_variables_that_gunicorn_sets_outlive_a_mistake(monkeypatch):
    monkeypatch.setenv("FOO", "")
    before = {"env": {"FOO": "told"}}
    assert not reload(monkeypatch, before, before | {"workers": 99})
    assert os.environ["FOO"] == "told"
