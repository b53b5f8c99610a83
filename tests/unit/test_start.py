"""The start: the order of its steps, and one line with the cure if it fails."""

import os
from pathlib import Path

import pytest

from embedding_api.engine import start
from embedding_api.engine.backends import devices
from embedding_api.engine.models import snapshots
from embedding_api.engine.models.registry import Registry
from embedding_api.errors import DeviceNotFoundError
from embedding_api.machine import memory
from embedding_api.settings import load_settings
from tests.fakes import WINDOW, FakeBackend, fake_model


def test_thread_settings_are_overwritten_not_defaulted(monkeypatch):
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "8")
    memory.prepare()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_a_missing_device_is_refused(monkeypatch):
    with pytest.raises(DeviceNotFoundError, match=r"DEVICE=cuda: torch finds no such device.*set DEVICE=cpu"):
        devices.require("cuda", {"cuda": "False"})


def test_a_device_that_is_there_is_accepted_and_cpu_is_not_asked_for():
    devices.require("mps", {"mps": "True"})
    devices.require("cpu", {})


def test_a_device_is_asked_for_before_any_model(monkeypatch):
    def refuse(device):
        raise DeviceNotFoundError(f"no {device}")

    monkeypatch.setattr(devices, "require", refuse)
    monkeypatch.setenv("DEVICE", "mps")
    monkeypatch.setenv("SUPPORTED_MODELS", "/no/such")
    with pytest.raises(DeviceNotFoundError, match="no mps"):
        start.load_models(load_settings())


@pytest.mark.parametrize(
    ("folder", "entry", "revision"),
    [
        ("/cache/models--a--b/snapshots/abc123", "a/b", "abc123"),
        ("/cache/models--a--b/snapshots/abc123", "a/b@main", "abc123"),
        ("/package/model", "a/b", None),
        ("/package/model", "a/b@v1", "v1"),
    ],
)
def test_the_logged_revision_is_that_of_the_files(monkeypatch, folder, entry, revision):
    monkeypatch.setenv("SUPPORTED_MODELS", entry)
    assert snapshots.revision(load_settings().supported_models[0], Path(folder)) == revision


def test_backends_are_warm_before_they_are_measured_and_measured_before_memory_is_frozen(monkeypatch):
    events = []

    class Watched(FakeBackend):
        def warm_up(self, window):
            events.append(f"warm up to {window} tokens")

        def compute(self, inputs, n_prompt_tokens):
            events.append("compute")
            return super().compute(inputs, n_prompt_tokens)

    monkeypatch.setattr(memory, "freeze", lambda: events.append("freeze"))
    start.make_engine(Registry([fake_model(backend=Watched())]), load_settings()).close()
    assert list(dict.fromkeys(events)) == [f"warm up to {WINDOW} tokens", "compute", "freeze"]
    assert events.count("freeze") == 1
