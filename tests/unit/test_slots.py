"""Slots: processes that count together, in a program of its own where they fork; tests/server has it with Gunicorn."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedding_api import metrics, slots

ROOT = Path(__file__).parents[2]

# A master and two workers in one slot, one after the other.
PROGRAM = """
import os
from embedding_api import slots
slots.share()
slots.share()
from embedding_api import metrics
metrics.WORKERS.set(7)
metrics.TEXTS.labels("m").inc(1)
for _ in range(2):
    slot = slots.take()
    pid = os.fork()
    if pid == 0:
        slots.become(slot)
        metrics.TEXTS.labels("m").inc(10)
        metrics.QUEUE_TEXTS.set(3)
        os._exit(0)
    os.waitpid(pid, 0)
    in_hand = metrics.registry().get_sample_value("embeddings_queue_texts")
    n_taken = slots.n_taken()
    slots.leave(slot)
value = metrics.registry().get_sample_value
print(n_taken, slot, value("embeddings_texts_total", {"model": "m"}), value("embeddings_workers"), in_hand,
      value("embeddings_queue_texts"), slots.folder())
"""


def test_processes_count_together_and_in_the_place_of_those_that_ended():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    n_taken, slot, n_texts, n_workers, in_hand, after, folder = done.stdout.split()
    assert (n_taken, slot, n_texts, n_workers) == ("1", "0", "21.0", "7.0")
    # What a worker has in hand ends with it; a gauge that nobody shows any more has no sample, or 0.
    assert (in_hand, after in ("None", "0.0")) == ("3.0", True)
    assert not Path(folder).exists()


@pytest.fixture
def shared(monkeypatch):
    """Slots as `share` makes them, but for metrics that were made before."""
    monkeypatch.setattr(slots, "_folder", None)
    monkeypatch.setattr(slots, "_taken", set())
    monkeypatch.setattr(slots, "_slot", "master")
    monkeypatch.setattr(slots.values, "ValueClass", slots.values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/of/another/server")
    monkeypatch.delitem(sys.modules, "embedding_api.metrics")
    at_exit = []
    monkeypatch.setattr(slots.atexit, "register", lambda *call: at_exit.append(call))
    slots.share()
    yield slots
    for function, *arguments in at_exit:
        function(*arguments)


def test_a_folder_is_made_for_this_server_alone_and_goes_with_its_master(shared):
    folder = shared.folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    # A worker that ends runs what its master registered.
    shared._remove(folder, owner=-1)
    assert folder.exists()


def test_a_worker_gets_the_lowest_free_slot(shared):
    assert [shared.take() for _ in range(3)] == [0, 1, 2]
    shared.leave(1)
    assert shared.n_taken() == 2
    assert shared.take() == 1


def test_what_is_shown_is_what_all_processes_counted(shared):
    assert list(metrics.registry().collect()) == []


def test_workers_of_another_user_can_count(shared, monkeypatch):
    given = []
    monkeypatch.setattr(slots.os, "chown", lambda *call: given.append(call))
    monkeypatch.setattr(slots.os, "geteuid", lambda: 0)
    shared.give_to(33, 44)
    assert given == [(shared.folder(), 33, 44)]


def test_metrics_that_are_made_before_they_are_shared_are_a_bug(monkeypatch):
    monkeypatch.setattr(slots, "_folder", None)
    with pytest.raises(RuntimeError, match="this is a bug"):
        slots.share()


def test_a_process_that_shares_nothing_writes_into_no_folder_that_it_inherits(tmp_path):
    told = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    program = "from embedding_api import metrics; metrics.CLIENTS_GONE.inc()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=told, check=True)
    assert list(tmp_path.iterdir()) == []


def test_where_memory_has_no_room_the_folder_is_elsewhere(shared, monkeypatch, tmp_path):
    full = SimpleNamespace(free=0)
    monkeypatch.setattr(slots.shutil, "disk_usage", lambda _: full)
    monkeypatch.setattr(slots.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(slots, "_folder", None)
    slots.share()
    assert slots.folder().parent == tmp_path
