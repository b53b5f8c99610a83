"""Counters of several processes. A separate program forks; tests/server does the same with Gunicorn."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_api.telemetry.counters import N_KEY_BYTES, N_NUMBERS, SLOT_BYTES, Counters, Key, Slot, Value
from tests.conftest import samples

ROOT = Path(__file__).parents[2]

# A master, and two workers in one slot, one after the other.
PROGRAM = """
import os
from prometheus_client import CollectorRegistry
from embedding_api.telemetry import metrics
from embedding_api.telemetry.metrics import counters
registry = CollectorRegistry()
registry.register(counters)
value = registry.get_sample_value
metrics.TEXTS.labels("m").inc(0.5)
counters.share(4)
counters.share(4)
metrics.WORKERS.set(7)
metrics.TEXTS.labels("m").inc(0.5)
for _ in range(2):
    slot = 1
    pid = os.fork()
    if pid == 0:
        counters.become(slot)
        metrics.TEXTS.labels("m").inc(10)
        metrics.TEXTS.labels("of workers").inc(10)
        metrics.BATCH_TEXTS.labels("m").observe(3)
        metrics.QUEUE_TEXTS.set(3)
        os._exit(0)
    os.waitpid(pid, 0)
    in_hand = value("embeddings_queue_texts")
    counters.leave(slot)
print(value("embeddings_texts_total", {"model": "m"}),
      value("embeddings_texts_total", {"model": "of workers"}),
      value("embeddings_batch_texts_bucket", {"model": "m", "le": "2.0"}),
      value("embeddings_batch_texts_bucket", {"model": "m", "le": "4.0"}),
      value("embeddings_batch_texts_sum", {"model": "m"}),
      value("embeddings_workers"), in_hand, value("embeddings_queue_texts"))
"""


def test_processes_count_together_and_go_on_where_an_ended_one_stopped():
    """Given two workers in one slot, one after the other, then their counts add up, and their gauges end with them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["21.0", "20.0", "0.0", "2.0", "6.0", "7.0", "3.0", "0.0"]


def test_a_single_process_writes_no_file_into_the_folder_of_the_environment(tmp_path):
    variables = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    program = "from embedding_api.telemetry import metrics; metrics.CLIENTS_GONE.inc()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def counters():
    """Slots for two workers, in this process only."""
    made = Counters()
    made.share(2)
    return made


def value(counters, type_="counter", name="n_total", mode=""):
    return Value(counters, type_, name, name, ("a",), ("b",), "help", multiprocess_mode=mode)


def shown(counters, name="n_total"):
    return samples(counters)(name, {"a": "b"})


def test_numbers_of_all_slots_are_shown_together(counters):
    number, in_hand = value(counters), value(counters, "gauge", "g", "livesum")
    for slot in (1, 2):
        counters.become(slot)
        number.inc(2)
        in_hand.set(5)
    assert (shown(counters), shown(counters, "g")) == (4, 10)
    counters.leave(2)
    assert (shown(counters), shown(counters, "g")) == (4, 5)


def test_a_worker_without_a_slot_counts_for_itself_alone(counters):
    number = value(counters)
    number.inc(1)
    counters.become(3)
    number.inc(1)
    assert shown(counters) == 1
    counters.leave(3)
    assert shown(counters) == 1


def key(sample, help_="help"):
    return Key("counter", "n", sample, ["model"], ["a\nb"], help_)


def test_a_key_that_a_killed_process_had_not_finished_is_replaced():
    memory = memoryview(bytearray(SLOT_BYTES))
    killed = Slot(memory)
    killed.numbers[killed.index(key("first"))] = 1.0
    count = bytes(memory[:8])
    killed.index(key("second, which is longer than the third"))
    # The state after a kill before the last step, which counts the key.
    memory[:8] = count
    after = Slot(memory)
    after.numbers[after.index(key("third"))] = 3.0
    read = [(name.sample, after.numbers[index]) for name, index in Slot(memory).read()]
    assert read == [("first", 1.0), ("third", 3.0)]


@pytest.mark.parametrize("help_", ["help", "h" * (N_KEY_BYTES // 50)])
def test_a_key_without_room_is_left_out_and_logged(caplog, help_):
    """Given keys that exceed the slot's numbers or bytes, then the rest is not counted, and the log says so."""
    slot = Slot(memoryview(bytearray(SLOT_BYTES)))
    indices = [slot.index(key(f"number {n}", help_)) for n in range(N_NUMBERS + 2 if help_ == "help" else 60)]
    with_room = [name.sample for name, _ in slot.read()]
    assert 40 < len(with_room) < len(indices)
    assert len(set(indices[: len(with_room)])) == len(with_room)
    assert set(indices[len(with_room) :]) == {N_NUMBERS - 1}
    assert f"no room to count number {len(with_room)};" in caplog.text
    assert with_room == [f"number {n}" for n in range(len(with_room))]
