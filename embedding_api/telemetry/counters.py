"""Numbers that the processes of one server count together: shared memory in which each worker has a slot of its own.

prometheus_client's own way for several processes is one file for each process id, which it never removes. Here a worker
gets the lowest free slot, and goes on counting where the worker before it stopped. See docs/decisions/0010.
"""

import contextlib
import json
import logging
import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger(__name__)

# A slot holds N_NUMBERS float64, and N_KEY_BYTES for their keys. A model has about 100 keys of 150 bytes each. A page
# that nobody writes takes no memory.
N_NUMBERS, N_KEY_BYTES = 2**13, 2**20
SLOT_BYTES = 8 * N_NUMBERS + N_KEY_BYTES
# Indices of the first numbers: how many bytes the keys take, and the first number with a key. The last number takes
# what has no room.
_BYTES, _FIRST, _NO_ROOM = 0, 1, N_NUMBERS - 1
# Ends a key; JSON has no line breaks.
_END = b"\n"


class Key(NamedTuple):
    """What a number counts, in prometheus_client's terms and order.

    Attributes:
        type: counter, gauge or histogram.
        metric: Name of the metric.
        sample: Name of the number, as GET /metrics shows it.
        label_names: Names of the labels.
        label_values: Their values.
        help: Help text of the metric.
        mode: How the gauges of several processes become one; empty for other types.
    """

    type: str
    metric: str
    sample: str
    label_names: Sequence[str]
    label_values: Sequence[str]
    help: str
    mode: str = ""


class Slot:
    """The numbers of one process, and their keys. Any process may read them.

    Args:
        memory: SLOT_BYTES bytes, zeroed at first. The first float64 is the number of bytes of the keys.

    Attributes:
        memory: The same bytes.
        numbers: float64, (N_NUMBERS,). Each is written in one store.
    """

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.numbers = memory[: 8 * N_NUMBERS].cast("d")
        self._keys = memory[8 * N_NUMBERS :]
        self._indices = {key: index for index, key in self._read_keys()}

    def index(self, key: Key) -> int:
        """Return the index of the key's number, allocated on first use."""
        encoded = json.dumps(key).encode() + _END
        if encoded not in self._indices:
            index, start = _FIRST + len(self._indices), int(self.numbers[_BYTES])
            end = start + len(encoded)
            if index == _NO_ROOM or end > N_KEY_BYTES:
                logger.warning("there is no room to count %s; GET /metrics leaves it out", key.sample)
                return _NO_ROOM
            self._keys[start:end] = encoded
            self.numbers[index] = 0.0
            # Last, so that a process that is killed before this line has added no key.
            self.numbers[_BYTES] = end
            self._indices[encoded] = index
        return self._indices[encoded]

    def read(self) -> Iterator[tuple[Key, int]]:
        """Yield each key, and the index of its number."""
        for index, encoded in self._read_keys():
            yield Key(*json.loads(encoded)), index

    def _read_keys(self) -> Iterable[tuple[int, bytes]]:
        keys = bytes(self._keys[: int(self.numbers[_BYTES])])
        return enumerate(keys.splitlines(keepends=True), _FIRST)


class Counters:
    """The slots of a server's master and workers; until `share`, the slot of this process alone.

    It is also the collector that shows their sums to prometheus_client.

    Attributes:
        lock: Guards the numbers of this process.
        slot: The slot in which this process counts.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._slots = [Slot(_shared_memory(1))]
        self.slot = self._slots[0]

    def share(self, n_workers: int) -> None:
        """Let this process, and those that it forks from now on, count together. A second call changes nothing.

        The numbers that this process has counted stay, so that metrics may be made before or after.

        Args:
            n_workers: Most workers at one time. GET /metrics does not show the numbers of further ones.
        """
        if len(self._slots) > 1:
            return
        memory = _shared_memory(n_workers + 1)
        with self.lock:
            memory[:SLOT_BYTES] = self.slot.memory
            self._slots = [Slot(memory[start : start + SLOT_BYTES]) for start in range(0, len(memory), SLOT_BYTES)]
            self.slot = self._slots[0]

    def become(self, number: int) -> None:
        """Count in this slot from now on, or unseen if there is no such slot. A worker calls this after the fork."""
        # Read anew: the workers that had the slot before have added keys since the master read it.
        self.slot = Slot(self._slots[number].memory if number < len(self._slots) else _shared_memory(1))

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Count nothing that GET /metrics shows, while no other thread counts."""
        seen, self.slot = self.slot, Slot(_shared_memory(1))
        try:
            yield
        finally:
            self.slot = seen

    def leave(self, number: int) -> None:
        """Free the slot of a worker that is gone. Its counts stay; its gauges of work in hand become 0."""
        if number < len(self._slots):
            slot = self._slots[number]
            for key, index in slot.read():
                if key.mode.startswith("live"):
                    slot.numbers[index] = 0.0

    def collect(self) -> list[Metric]:
        """Return each metric, summed over all slots."""
        metrics: dict[str, Metric] = {}
        for number, slot in enumerate(self._slots):
            for key, index in slot.read():
                metric = metrics.setdefault(key.metric, Metric(key.metric, key.help, key.type))
                labels = tuple(sorted(zip(key.label_names, key.label_values, strict=True)))
                if key.type == "gauge":
                    vars(metric)["_multiprocess_mode"] = key.mode
                    labels += (("pid", str(number)),)
                metric.add_sample(key.sample, labels, slot.numbers[index])  # type: ignore[arg-type] # the merge wants tuples
        merge: Any = MultiProcessCollector._accumulate_metrics  # noqa: SLF001 - its public form reads files
        return list(merge(metrics, accumulate=True))


class Value:
    """A number of a metric, in the slot of the process that counts. prometheus_client makes and calls it.

    It cannot be read, as `Counters` reads the slots, and has no exemplars, as no metric of the service is given one.
    """

    def __init__(self, counters: Counters, *key: Any, multiprocess_mode: str = "", **_: Any) -> None:
        self._counters = counters
        self._key = Key(*key)._replace(mode=multiprocess_mode)
        self._slot: Slot | None = None
        self._index = _NO_ROOM
        # A number is shown from its making on.
        self.inc(0.0)

    def _numbers(self) -> "memoryview[float]":
        """Return the numbers of this process, after finding the index if the process has another slot than before."""
        slot = self._counters.slot
        if self._slot is not slot:
            self._slot, self._index = slot, slot.index(self._key)
        return slot.numbers

    def inc(self, amount: float) -> None:
        """Add to the number."""
        with self._counters.lock:
            self._numbers()[self._index] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - prometheus_client's
        """Set the number."""
        with self._counters.lock:
            self._numbers()[self._index] = value


def _shared_memory(n_slots: int) -> memoryview:
    """Return zeroed memory that forked processes share."""
    return memoryview(mmap.mmap(-1, n_slots * SLOT_BYTES))
