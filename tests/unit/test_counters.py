"""Counters of several processes; a program of its own where they fork. tests/server has them with Gunicorn."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_api.telemetry import counters
from embedding_api.telemetry.counters import Key, Slot

ROOT = Path(__file__).parents[2]

# A master, and two workers in one slot, one after the other.
PROGRAM = """
import os
from embedding_api.telemetry import counters, metrics
metrics.TEXTS.labels("m").inc(0.5)
counters.share(4)
counters.share(4)
metrics.WORKERS.set(7)
metrics.TEXTS.labels("m").inc(0.5)
for _ in range(2):
    slot = counters.take()
    pid = os.fork()
    if pid == 0:
        counters.become(slot)
        metrics.TEXTS.labels("m").inc(10)
        metrics.TEXTS.labels("of workers").inc(10)
        metrics.BATCH_TEXTS.labels("m").observe(3)
        metrics.QUEUE_TEXTS.set(3)
        os._exit(0)
    os.waitpid(pid, 0)
    in_hand = counters.registry().get_sample_value("embeddings_queue_texts")
    n_taken = counters.n_taken()
    counters.leave(slot)
value = counters.registry().get_sample_value
print(n_taken, slot, value("embeddings_texts_total", {"model": "m"}),
      value("embeddings_texts_total", {"model": "of workers"}),
      value("embeddings_batch_texts_bucket", {"model": "m", "le": "2.0"}),
      value("embeddings_batch_texts_bucket", {"model": "m", "le": "4.0"}),
      value("embeddings_batch_texts_sum", {"model": "m"}),
      value("embeddings_workers"), in_hand, value("embeddings_queue_texts"))
"""


def test_processes_count_together_and_in_the_place_of_those_that_ended():
    """What a worker has in hand ends with it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "21.0", "20.0", "0.0", "2.0", "6.0", "7.0", "3.0", "0.0"]


def test_a_process_that_shares_nothing_writes_into_no_folder_of_the_environments(tmp_path):
    told = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    program = "from embedding_api.telemetry import metrics; metrics.CLIENTS_GONE.inc()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=told, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shared(monkeypatch):
    """Slots for two workers, in this process alone."""
    slots = [Slot(memoryview(bytearray(counters._SLOT_BYTES)))]
    monkeypatch.setattr(counters, "_slots", slots)
    monkeypatch.setattr(counters, "_taken", set())
    monkeypatch.setattr(counters, "_slot", slots[0])
    counters.share(2)
    return counters


def value(type_="counter", name="n_total", mode=""):
    return counters.Value(type_, name, name, ("a",), ("b",), "help", mode)


def shown(name="n_total"):
    return counters.registry().get_sample_value(name, {"a": "b"})


def test_a_worker_gets_the_lowest_free_slot(shared):
    assert [shared.take() for _ in range(3)] == [1, 2, 3]
    shared.leave(2)
    assert shared.n_taken() == 2
    assert shared.take() == 2


def test_numbers_of_all_slots_are_shown_together(shared):
    number, in_hand = value(), value("gauge", "g", "livesum")
    for slot in (1, 2):
        shared.become(slot)
        number.inc(2)
        in_hand.set(5)
    assert (shown(), shown("g")) == (4, 10)
    assert (number.get(), number.get_exemplar()) == (2, None)
    shared.leave(2)
    assert (shown(), shown("g")) == (4, 5)


def test_a_worker_without_a_slot_counts_for_itself_alone(shared):
    number = value()
    number.inc(1)
    shared.become(3)
    number.inc(1)
    assert (number.get(), shown()) == (1, 1)


def key(sample):
    return Key("counter", "", "n", sample, {"model": "a\nb"}, "help")


def test_what_a_killed_process_had_half_told_is_told_anew():
    memory = memoryview(bytearray(counters._SLOT_BYTES))
    killed = Slot(memory)
    killed.numbers[killed.place(key("first"))] = 1.0
    killed.place(key("second, which is longer than the third"))
    # As if the second had not been counted yet.
    killed.numbers[counters._COUNT] -= 1
    after = Slot(memory)
    after.numbers[after.place(key("third"))] = 3.0
    told = [(name.sample, after.numbers[place]) for name, place in Slot(memory).read()]
    assert told == [("first", 1.0), ("third", 3.0)]


def test_what_has_no_room_is_left_out_and_said(caplog, monkeypatch):
    monkeypatch.setattr(counters, "_N_BYTES", 200)
    slot = Slot(memoryview(bytearray(counters._SLOT_BYTES)))
    places = [slot.place(key(f"number {n}")) for n in range(9)]
    assert places[0] == counters._FIRST
    assert places[-1] == counters._NO_ROOM
    assert "no room to count number 8" in caplog.text
    assert all(name.sample != "number 8" for name, _ in slot.read())
