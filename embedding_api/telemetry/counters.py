"""Where the processes of one server count together: memory without a name, in which each worker has a slot of its own.

prometheus_client's own way for several processes is files named after process ids, which it never removes. Here a
worker takes the lowest free slot, and goes on counting where the one before it ended. See docs/decisions/0010.
"""

import itertools
import json
import logging
import mmap
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger(__name__)

# Of a slot: numbers, and bytes for what each is. A model has about 100 of 150 bytes each; pages not written take no
# memory. The first two numbers say how many others there are, and of how many bytes; the last is for those that have
# no room.
_N_NUMBERS, _N_BYTES = 2**13, 2**20
_COUNT, _BYTES, _FIRST, _NO_ROOM = 0, 1, 2, _N_NUMBERS - 1
_SLOT_BYTES = 8 * _N_NUMBERS + _N_BYTES
# JSON has no line breaks.
_END = b"\n"


class Key(NamedTuple):
    """What a number is, as prometheus_client tells it.

    Attributes:
        type: counter, gauge or histogram.
        mode: How gauges of several processes become one; empty for others.
        metric: The name of the metric.
        sample: The name of the number, as it is shown.
        labels: Names and values.
        help: Of the metric.
    """

    type: str
    mode: str
    metric: str
    sample: str
    labels: dict[str, str]
    help: str


class Slot:
    """The numbers of one process. Any process may read them.

    Args:
        memory: Zeroed at first; of `_SLOT_BYTES`.

    Attributes:
        memory: See above.
        numbers: float64, `_N_NUMBERS` of them, each written whole.
    """

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.numbers = memory[: 8 * _N_NUMBERS].cast("d")
        self._told = memory[8 * _N_NUMBERS :]
        self._places = {told: place for place, told in self._all_told()}
        # Not as the number says it: whoever was killed while it told something has left more.
        self._n_told_bytes = sum(len(told) + len(_END) for told in self._places)

    def place(self, key: Key) -> int:
        """Where in `numbers` a number is, from now on at the latest."""
        told = json.dumps(key).encode()
        if told not in self._places:
            place, end = _FIRST + len(self._places), self._n_told_bytes + len(told) + len(_END)
            if place == _NO_ROOM or end > _N_BYTES:
                logger.warning("there is no room to count %s; it is left out", key.sample)
                return _NO_ROOM
            self._told[self._n_told_bytes : end] = told + _END
            self.numbers[place] = 0.0
            self.numbers[_BYTES] = end
            # Last: a process that is killed before has told nothing.
            self.numbers[_COUNT] += 1
            self._places[told], self._n_told_bytes = place, end
        return self._places[told]

    def read(self) -> Iterator[tuple[Key, int]]:
        """Each key, and the place of its number."""
        for place, told in self._all_told():
            yield Key(*json.loads(told)), place

    def _all_told(self) -> Iterator[tuple[int, bytes]]:
        count = int(self.numbers[_COUNT])
        told = bytes(self._told[: int(self.numbers[_BYTES])])
        return zip(range(_FIRST, _FIRST + count), told.split(_END), strict=False)


class Value:
    """A number of a metric, in the slot of the process that counts."""

    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: tuple[str, ...],
        labelvalues: tuple[str, ...],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        labels = dict(zip(labelnames, labelvalues, strict=True))
        self._key = Key(typ, multiprocess_mode, metric_name, name, labels, help_text)
        self._slot: Slot | None = None
        with _counting:
            self._attach()

    def _attach(self) -> None:
        """Finds its place, if this process has another slot than it had."""
        if self._slot is not _slot:
            self._slot = _slot
            self._place = _slot.place(self._key)

    def inc(self, amount: float) -> None:
        """Adds to it."""
        with _counting:
            self._attach()
            _slot.numbers[self._place] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - prometheus_client's
        """Sets it."""
        with _counting:
            self._attach()
            _slot.numbers[self._place] = value

    def get(self) -> float:
        """What this process has counted, and those before it in its slot."""
        with _counting:
            self._attach()
            return _slot.numbers[self._place]

    def set_exemplar(self, exemplar: Any) -> None:
        """There are none here."""

    def get_exemplar(self) -> None:
        """There is none."""


class _Collector:
    """What all processes have counted, for prometheus_client to show."""

    def collect(self) -> list[Metric]:
        """Each metric, over all slots."""
        metrics: dict[str, Metric] = {}
        for number, slot in enumerate(_slots):
            for key, place in slot.read():
                metric = metrics.setdefault(key.metric, Metric(key.metric, key.help, key.type))
                labels = tuple(sorted(key.labels.items()))
                if key.type == "gauge":
                    vars(metric)["_multiprocess_mode"] = key.mode
                    labels += (("pid", str(number)),)
                metric.add_sample(key.sample, labels, slot.numbers[place])  # type: ignore[arg-type] # what is called next wants them so
        merge: Any = MultiProcessCollector._accumulate_metrics  # noqa: SLF001 - its public form reads files
        return list(merge(metrics, accumulate=True))


# Guards the numbers of this process.
_counting = threading.Lock()


def _memory(n_slots: int) -> memoryview:
    """Zeroed memory that forked processes share; pages not written take none."""
    return memoryview(mmap.mmap(-1, n_slots * _SLOT_BYTES))


# Of the master, and of each worker; until `share`, of this process alone.
_slots: list[Slot] = [Slot(_memory(1))]
# Where this process counts.
_slot = _slots[0]
_taken: set[int] = set()


def share(n_workers: int) -> None:
    """Lets this process and those forked from it count together. Again it changes nothing.

    What this process has counted stays, so that metrics may be made before or after.

    Args:
        n_workers: The most at one time. Others count for themselves alone, and what they count is not shown.
    """
    global _slot
    if len(_slots) > 1:
        return
    memory = _memory(n_workers + 1)
    with _counting:
        memory[:_SLOT_BYTES] = _slot.memory
        _slots[:] = [Slot(memory[start : start + _SLOT_BYTES]) for start in range(0, len(memory), _SLOT_BYTES)]
        _slot = _slots[0]


def registry() -> CollectorRegistry:
    """What all processes have counted."""
    registry = CollectorRegistry()
    registry.register(_Collector())
    return registry


def take() -> int:
    """The lowest free slot, for a worker that is about to be forked; the master gives it back with `leave`."""
    number = next(number for number in itertools.count(1) if number not in _taken)
    _taken.add(number)
    return number


def become(number: int) -> None:
    """From now on this process, which was just forked, counts in its slot."""
    global _slot
    _slot = _at(number)


def leave(number: int) -> None:
    """The worker of a slot is gone: what it had in hand is no more, and what it counted stays."""
    _taken.discard(number)
    slot = _at(number)
    for key, place in slot.read():
        if key.mode.startswith("live"):
            slot.numbers[place] = 0.0


def n_taken() -> int:
    """How many workers there are."""
    return len(_taken)


def _at(number: int) -> Slot:
    has_one = number < len(_slots)
    # As it is now: those that had it before have told it more.
    return Slot(_slots[number].memory if has_one else memoryview(bytearray(_SLOT_BYTES)))
